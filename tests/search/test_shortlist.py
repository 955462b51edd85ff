"""Which of many sources are probed, decided without loading any."""

from typing import Any

import pytest
import torch
from small_study import CPU, SOURCES, small_space

from autotransfer.errors import SourceError
from autotransfer.search import shortlist as module
from autotransfer.search.shortlist import (
    Shortlist,
    describe_sources,
    fewest_parameters,
    macs_per_second,
    order_sources,
    shortlist,
)
from autotransfer.search.space import Space
from autotransfer.sources import Source, find_sources
from autotransfer.sources.published import find_published


@pytest.fixture(autouse=True)
def loads_nothing(monkeypatch):
    """Neither weights nor hub configurations may be asked for; ten GMACs a second on every machine."""

    def refuse(*arguments, **options):
        raise AssertionError("a source was loaded")

    monkeypatch.setattr(Source, "load", refuse)
    monkeypatch.setattr("timm.models.load_model_config_from_hf", refuse)
    monkeypatch.setattr(module, "macs_per_second", lambda device: 1e10)


def space_of(*patterns: str, max_sources: int = 5, **changes: Any) -> Space:
    return small_space(sources=list(patterns), probing={"max_sources": max_sources}, **changes)


def listed(digits, space: Space, **options: Any) -> Shortlist:
    options = {"budget_seconds": None, "device": CPU, **options}
    return shortlist(find_sources(space.sources), digits, space, **options)


def names(found: Shortlist) -> list[str]:
    return [source.name for source in found.sources]


def test_few_sources_are_all_kept_in_their_order_and_nothing_is_told(digits):
    space = space_of("resnet18.a3_in1k", "resnet50.a1_in1k", *SOURCES)
    found = listed(digits, space, budget_seconds=1.0)
    assert names(found) == space.sources
    assert found.notices == []


def test_of_many_sources_those_expected_to_transfer_best_are_kept_and_this_is_told(digits):
    space = space_of("resnet1*")
    found = listed(digits, space)
    assert found.sources == order_sources(find_sources(["resnet1*"]))[:5]
    (notice,) = found.notices
    assert f"{len(find_sources(['resnet1*']))} sources match; 5 are probed" in notice
    assert "max_sources" in notice


def test_what_was_named_or_is_at_hand_keeps_its_place_at_the_front(digits):
    space = space_of("resnet1*", "resnet18.a3_in1k", "resnet26", "hf-hub:org/model", *SOURCES, max_sources=7)
    kept = names(listed(digits, space))
    assert len(kept) == 7
    assert {*kept[:5]} == {"resnet18.a3_in1k", "resnet26.bt_in1k", "hf-hub:org/model", *SOURCES}
    assert kept[5].startswith("resnet1")


def test_none_that_was_named_is_one_too_many(digits):
    space = space_of("resnet1*", *SOURCES, "resnet18.a3_in1k", max_sources=2)
    assert set(names(listed(digits, space))) == {*SOURCES, "resnet18.a3_in1k"}


def test_a_source_that_the_budget_has_no_time_for_stands_back(digits):
    space = space_of("resnet1*")
    best = [find_published(name).macs for name in names(listed(digits, space))]
    short = [find_published(name).macs for name in names(listed(digits, space, budget_seconds=10.0))]
    long = names(listed(digits, space, budget_seconds=1e7))
    assert max(short) < min(best)
    assert long == names(listed(digits, space))


def test_where_nothing_fits_the_budget_what_costs_least_is_kept(digits):
    space = space_of("resnet1*", max_sources=1)
    (name,) = names(listed(digits, space, budget_seconds=1e-3))
    cheapest = min(find_published(source.name).macs for source in find_sources(["resnet1*"]))
    assert find_published(name).macs < 2 * cheapest


def test_speed_is_measured_only_where_there_is_something_to_choose(digits, monkeypatch):
    def refuse(device):
        raise AssertionError("measured")

    monkeypatch.setattr(module, "macs_per_second", refuse)
    listed(digits, space_of(*SOURCES), budget_seconds=10.0)
    listed(digits, space_of("resnet1*"))


def test_too_many_published_parameters_are_left_out_and_told(digits):
    found = listed(digits, space_of("resnet18*", "resnet152*", max_sources=60), max_parameters=12_000_000)
    assert {name.split(".")[0] for name in names(found)} == {"resnet18", "resnet18d"}
    (notice,) = found.notices
    assert "12M" in notice and "not downloaded" in notice


def test_what_fits_without_its_classifier_is_not_left_out(digits):
    assert fewest_parameters(find_published("resnet18.a1_in1k")) < 11_200_000  # so many without classifier
    assert names(listed(digits, space_of("resnet18.a1_*"), max_parameters=11_200_000)) == ["resnet18.a1_in1k"]


def test_what_may_be_cut_to_fit_is_left_out_only_if_it_was_not_named_or_little_would_remain(digits):
    limit = {"max_parameters": 10_000_000}
    named = space_of("resnet50.a1_in1k", *SOURCES)
    assert "resnet50.a1_in1k" in names(listed(digits, named, **limit))
    assert "resnet50.a1_in1k" not in names(listed(digits, named, max_parameters=2_000_000))
    assert "resnet50.a1_in1k" not in names(listed(digits, space_of("resnet50.a1_*", *SOURCES), **limit))
    whole = space_of("resnet50.a1_in1k", *SOURCES, parameters={"upper_layers": ["reinit"]})
    assert "resnet50.a1_in1k" not in names(listed(digits, whole, **limit))


def test_sources_of_unknown_size_are_never_left_out(digits):
    space = space_of("hf-hub:org/model", *SOURCES)
    assert names(listed(digits, space, max_parameters=1000)) == space.sources


def test_where_all_are_too_large_the_error_says_what_to_do(digits):
    with pytest.raises(SourceError, match=r"--max-params 1,000 .*--source"):
        listed(digits, space_of("resnet152*"), max_parameters=1000)


def test_a_study_keeps_the_sources_that_it_has(digits):
    space = space_of("resnet1*")
    kept = ["resnet18.a3_in1k", "resnet10t.c3_in1k"]
    assert names(listed(digits, space, budget_seconds=3.0, kept=kept)) == kept
    assert names(listed(digits, space, kept=["no longer there"])) == names(listed(digits, space))


def test_sources_are_described_best_first_with_nothing_where_nothing_is_known():
    table = describe_sources(find_sources(["embedded:resnet10t.glyphs", "resnet18.*", "resnet152.a1_in1k"]))
    assert list(table.columns) == ["source", "kind", "parameters", "gmacs", "top1", "pretraining", "expected"]
    assert table["source"].iloc[0] == "resnet152.a1_in1k"
    assert table["expected"].iloc[:-1].astype(float).is_monotonic_decreasing
    assert table["source"].iloc[-1] == "embedded:resnet10t.glyphs"
    assert table.iloc[-1, 2:].isna().all()


def test_speed_is_a_power_of_two_so_that_the_same_machine_chooses_the_same():
    speed = macs_per_second(torch.device("cpu"))
    assert speed > 1e8
    assert 2 ** round(torch.log2(torch.tensor(speed)).item()) == speed
