"""What is expected of sources before they are downloaded."""

import math
from dataclasses import replace

import pytest

from autotransfer.search.hub_prior import HubPrior, shipped_hub_prior
from autotransfer.sources.published import find_published, published_models


def expect(name: str) -> float:
    return shipped_hub_prior().expect(find_published(name))


def test_better_on_imagenet_is_expected_to_transfer_better():
    assert expect("resnet50.a1_in1k") > expect("resnet50.tv_in1k") > expect("resnet18.tv_in1k")


def test_self_supervised_sources_are_expected_to_transfer_less_than_their_accuracy_says():
    known = find_published("convnext_tiny.fb_in1k")
    prior = shipped_hub_prior()
    assert prior.expect(replace(known, method="self-supervised")) < prior.expect(known)


def test_a_model_is_worth_what_its_fine_tuned_version_is():
    assert expect("convnext_base.fb_in22k") == pytest.approx(expect("convnext_base.fb_in22k_ft_in1k"))


def test_without_any_accuracy_less_is_expected_than_of_a_usual_model_of_that_size():
    known = replace(find_published("resnet50.tv_in1k"), top1=None, tuned_top1=None)
    assert shipped_hub_prior().expect(known) < expect("resnet50.a1_in1k")


def test_every_published_model_has_a_finite_expectation_around_zero():
    expected = [shipped_hub_prior().expect(model) for model in published_models().values()]
    assert all(math.isfinite(value) for value in expected)
    assert sum(expected) / len(expected) == pytest.approx(0, abs=0.01)


def test_the_coefficients_survive_json():
    assert HubPrior.from_json(shipped_hub_prior().to_json()) == shipped_hub_prior()
