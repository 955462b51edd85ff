"""What is published of sources: found by timm's name, without a download, and plausible."""

from pathlib import Path

import pytest
import timm
from random_sources import write_source

from autotransfer.sources import find_sources, published
from autotransfer.sources.published import find_published, published_models


def test_a_timm_name_with_its_tag_has_its_published_figures():
    known = find_published("resnet50.a1_in1k")
    assert known.parameters == 25_560_000
    assert known.macs == pytest.approx(4.11e9)
    assert (known.image_size, known.pretraining, known.method) == (224, "in1k", "supervised")
    assert 0.79 < known.top1 < 0.81
    assert not known.is_larger_pretraining


def test_timms_own_hub_repository_is_the_model_of_that_name_and_no_other_is():
    (ours, theirs) = find_sources(["hf-hub:timm/resnet50.a1_in1k", "hf-hub:someone/resnet50.a1_in1k"])
    assert ours.published == find_published("resnet50.a1_in1k")
    assert theirs.published is None


def test_embedded_and_local_sources_have_no_published_figures(tmp_path: Path):
    local = write_source(tmp_path / "resnet50.a1_in1k", "test_vit", img_size=64)
    (embedded,) = find_sources(["embedded:resnet10t.glyphs"])
    assert local.published is None
    assert embedded.published is None


def test_a_model_without_imagenet_classifier_has_the_accuracy_of_the_one_tuned_from_it():
    known, tuned = find_published("convnext_base.fb_in22k"), find_published("convnext_base.fb_in22k_ft_in1k")
    assert known.top1 is None and tuned.tuned_top1 is None
    assert known.tuned_top1 == tuned.top1


@pytest.mark.parametrize(
    ("name", "pretraining", "method"),
    [
        ("convnext_tiny.in12k_ft_in1k", "in12k+in1k", "supervised"),
        ("vit_base_patch16_clip_224.laion2b_ft_in12k_in1k", "laion2b+in12k+in1k", "image-text"),
        ("vit_base_patch16_224.augreg_in21k", "in21k", "supervised"),
        ("vit_small_patch16_224.dino", "in1k", "self-supervised"),
        ("deit_tiny_distilled_patch16_224.fb_in1k", "in1k", "distilled"),
        ("beit_base_patch16_224.in22k_ft_in22k_in1k", "in21k+in1k", "self-supervised"),
        ("tf_efficientnet_b0.ns_jft_in1k", "jft300m+in1k", "distilled"),
    ],
)
def test_pretraining_is_what_timms_tags_say(name: str, pretraining: str, method: str):
    known = find_published(name)
    assert (known.pretraining, known.method) == (pretraining, method)


def test_published_parameters_are_those_of_the_network():
    for name in ("resnet18.a1_in1k", "mobilenetv3_small_100.lamb_in1k", "vit_tiny_patch16_224.augreg_in21k_ft_in1k"):
        network = timm.create_model(name, pretrained=False)
        count = sum(parameter.numel() for parameter in network.parameters())
        assert find_published(name).parameters == pytest.approx(count, rel=0.01)


def test_all_figures_are_plausible_and_most_of_timms_models_have_some():
    models = published_models()
    assert len(models) > 1500
    for known in models.values():
        assert known.parameters > 1e5 and known.macs > 1e6 and 32 <= known.image_size <= 1600
        for top1 in (known.top1, known.tuned_top1):
            assert top1 is None or 0.3 < top1 < 0.95
        assert known.top1 is None or known.tuned_top1 is None
    assert len(set(timm.list_pretrained()) & set(models)) > 0.8 * len(timm.list_pretrained())


def test_the_table_is_small_and_names_its_origin():
    table = Path(published.__file__).with_name("published.csv")
    assert table.stat().st_size < 200_000
    assert "pytorch-image-models" in table.read_text().splitlines()[0]
