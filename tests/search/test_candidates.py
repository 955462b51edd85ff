"""What the pool promises: every (source, level) probed, scored and in one order, whatever happens to a source."""

import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_sources import write_source
from safetensors.torch import load_file, save_file
from small_study import CONVNEXT, MOBILENET, SOURCES, Told, small_pool, small_sources, small_space, stop_after

from autotransfer.errors import SourceError, StudyError
from autotransfer.proxies import DEFAULT_PROXIES, ProxyValue
from autotransfer.proxies.combine import combine
from autotransfer.search.candidates import Pool, _ordered, same_pool
from autotransfer.search.events import PhaseStarted, SourceProbed, SourceSkipped
from autotransfer.sources import Source, find_sources
from autotransfer.transfer.evaluation import get_metric

LEVELS = [(CONVNEXT, level) for level in (1, 2, 3, 4)] + [(MOBILENET, level) for level in (1, 2, 3, 4, 5)]


def pairs(pool) -> list[tuple[str, int]]:
    return [(candidate.source.name, candidate.level) for candidate in pool.candidates]


def test_every_level_of_every_source_is_a_candidate(pool):
    assert sorted(pairs(pool)) == sorted(LEVELS)
    for candidate in pool.candidates:
        assert tuple(candidate.proxies) == DEFAULT_PROXIES
        assert 0 <= candidate.linear_probe <= 1


def test_what_proxies_and_size_say_together_orders_the_pool(pool):
    table = pool.table()
    combined = combine({name: table[name] for name in (*DEFAULT_PROXIES, "parameters")})
    assert table["expected"].to_numpy() == pytest.approx(combined.expected)
    assert table["uncertainty"].to_numpy() == pytest.approx(combined.uncertainty)
    assert table["expected"].is_monotonic_decreasing


def test_a_candidate_that_is_behind_in_everything_is_expected_to_be_behind(pool):
    table = pool.table()
    said = table[[*DEFAULT_PROXIES, "parameters"]].to_numpy()
    behind = [(i, j) for i, j in np.ndindex(9, 9) if (said[i] <= said[j]).all() and (said[i] < said[j]).any()]
    assert len(behind) > 5
    for worse, better in behind:
        assert table["expected"][worse] < table["expected"][better]


def test_the_order_of_sources_does_not_matter(digits, cache_dir, pool):
    reversed_pool = small_pool(digits, cache_dir, sources=small_sources()[::-1])
    pd.testing.assert_frame_equal(reversed_pool.table(), pool.table())


def test_ties_are_ordered_by_name(digits, cache_dir, tmp_path):
    original = find_sources([CONVNEXT])[0].folder
    for name in ("b", "a"):
        shutil.copytree(original, tmp_path / name)
    twins = find_sources([f"local-dir:{tmp_path / 'b'}", f"local-dir:{tmp_path / 'a'}"])
    pool = small_pool(digits, cache_dir, sources=twins)
    for first, second in zip(pool.candidates[::2], pool.candidates[1::2], strict=True):
        assert (first.expected, first.level) == (second.expected, second.level)
        assert (Path(first.source.name).name, Path(second.source.name).name) == ("a", "b")


@settings(deadline=None)
@given(values=st.lists(st.floats(-1e6, 1e6), min_size=len(LEVELS), max_size=len(LEVELS)))
def test_a_proxy_that_is_not_trusted_does_not_count(pool, values):
    doubtful = [
        replace(candidate, proxies={**candidate.proxies, "h_score": ProxyValue(value, False, "n < 2D", 0.0)})
        for candidate, value in zip(pool.candidates, values, strict=True)
    ]
    expected = {(c.source.name, c.level): c.expected for c in pool.candidates}
    assert {(c.source.name, c.level): c.expected for c in _ordered(doubtful)} == pytest.approx(expected, abs=1e-12)


def test_without_any_trusted_proxy_the_larger_network_is_expected_to_be_better(pool):
    doubtful = [replace(c, proxies={"knn": ProxyValue(0.9, False, "n < D", 0.0)}) for c in pool.candidates]
    sizes = [c.source.levels[c.level - 1].parameter_count for c in _ordered(doubtful)]
    assert sizes == sorted(sizes, reverse=True)


def test_a_space_without_proxies_orders_by_size_alone(digits, cache_dir):
    table = small_pool(digits, cache_dir, space=small_space(proxies=[])).table()
    assert table["parameters"].is_monotonic_decreasing


def test_a_candidates_head_has_the_score_that_the_table_shows(digits, pool):
    val = digits.rows("val")
    for candidate in pool.candidates:
        features = pool.probes[candidate.source.name].at(candidate.level, val)
        answers = (features @ candidate.head.weight.T + candidate.head.bias).argmax(axis=1)
        assert candidate.linear_probe == pytest.approx((answers == digits.codes[val]).mean())


def test_scores_are_in_the_metrics_own_unit(digits, cache_dir):
    table = small_pool(digits, cache_dir, metric=get_metric("log_loss")).table()
    assert (table["linear_probe"] > 0).all()
    assert table["linear_probe"].nunique() > 5


def test_the_table_has_one_row_a_candidate_best_first(pool):
    table = pool.table()
    assert list(table.columns) == [
        *("rank", "source", "level", "levels", "channels", "parameters", "flops", "images"),
        *DEFAULT_PROXIES,
        *("linear_probe", "expected", "uncertainty"),
    ]
    assert table["rank"].to_list() == list(range(1, 10))
    assert list(zip(table["source"], table["level"], strict=True)) == pairs(pool)
    assert table.loc[table["source"] == MOBILENET, "levels"].unique().tolist() == [5]


def test_the_pool_finds_sources_and_candidates(pool):
    best = pool.candidates[0]
    assert pool.sources()[0] == best.source
    assert sorted(source.name for source in pool.sources()) == sorted(SOURCES)
    assert pool.best_of(best.source.name) is best
    for name in SOURCES:
        first = next(level for source, level in pairs(pool) if source == name)
        assert pool.best_of(name) is pool.get(name, first)


def test_probing_looks_at_no_more_images_than_the_space_allows(digits, cache_dir):
    space = small_space(probing={"max_train_images": 40, "max_val_images": 20})
    pool = small_pool(digits, cache_dir, space=space)
    for probe in pool.probes.values():
        splits = digits.samples["split"].iloc[probe.rows].value_counts()
        assert splits.to_dict() == {"train": 40, "val": 20}


def test_listeners_are_told_of_every_source(digits, tmp_path):
    first, second = Told(), Told()
    small_pool(digits, tmp_path, listener=first)
    small_pool(digits, tmp_path, listener=second)
    assert first[0] == second[0] == PhaseStarted("probing", total=2)
    for told, cached in ((first, False), (second, True)):
        probed = told.of(SourceProbed)
        assert [(event.source, event.levels, event.cached) for event in probed] == [
            (CONVNEXT, 4, cached),
            (MOBILENET, 5, cached),
        ]


# Sources that fail


@pytest.fixture
def broken(tmp_path) -> Source:
    """A source whose weights are cut short."""
    source = write_source(tmp_path / "broken", "resnet10t")
    weights = source.folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    return source


def test_a_source_that_cannot_be_loaded_is_skipped_with_its_reason(digits, cache_dir, pool, broken):
    told = Told()
    rest = small_pool(digits, cache_dir, sources=[broken, *small_sources()], listener=told)
    assert pairs(rest) == pairs(pool)
    assert list(rest.skipped) == [broken.name]
    assert "cannot be loaded" in rest.skipped[broken.name]
    assert told.of(SourceSkipped) == [SourceSkipped(broken.name, rest.skipped[broken.name])]


def test_a_source_whose_features_are_no_numbers_is_skipped_with_its_reason(digits, cache_dir, pool, tmp_path):
    source = write_source(tmp_path / "poisoned", "resnet10t")
    weights = load_file(source.folder / "model.safetensors")
    save_file({name: tensor * float("nan") for name, tensor in weights.items()}, source.folder / "model.safetensors")
    rest = small_pool(digits, cache_dir, sources=[*small_sources(), source])
    assert pairs(rest) == pairs(pool)
    assert "NaN" in rest.skipped[source.name]


class TooLarge(Source):
    """Stands in for a source that the device has no memory for."""

    def load(self) -> torch.nn.Module:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80 GiB\nand many more lines")


def test_a_source_that_is_too_large_for_the_device_is_skipped(digits, cache_dir, pool):
    large = find_sources(["embedded:resnet10t.glyphs"])[0]
    rest = small_pool(
        digits,
        cache_dir,
        sources=[TooLarge("large", large.timm_name, "embedded"), *small_sources()],
    )
    assert pairs(rest) == pairs(pool)
    assert rest.skipped == {"large": "out of memory"}


def test_where_no_source_is_left_every_reason_and_a_way_out_is_told(digits, cache_dir, broken):
    with pytest.raises(SourceError) as caught:
        small_pool(digits, cache_dir, sources=[broken])
    message = str(caught.value)
    assert "no source could be used" in message
    assert f"{broken.name}: " in message
    assert "--space offline" in message
    assert "local-dir:" in message


# Stopping


def test_a_stop_request_leaves_what_is_probed(digits, tmp_path):
    pool = small_pool(digits, tmp_path, go_on=stop_after(4))
    assert {source for source, _ in pairs(pool)} == {CONVNEXT}
    assert pool.skipped == {}


def test_a_stop_request_in_the_middle_of_a_probe_drops_that_source_alone(digits, tmp_path):
    pool = small_pool(digits, tmp_path, go_on=stop_after(5))
    assert {source for source, _ in pairs(pool)} == {CONVNEXT}


def test_a_stop_request_before_anything_is_probed_is_told_as_such(digits, tmp_path):
    with pytest.raises(SourceError, match="stopped before the first source was probed"):
        small_pool(digits, tmp_path, go_on=lambda: False)


# The race


@pytest.fixture
def race(digits, cache_dir):
    """Three sources, of which one goes on after 40 images."""

    def run(**changes) -> Pool:
        probing = {"race_above": 1, "race_images": 40, "race_keep": 0.3}
        sources = [*small_sources(), *find_sources(["embedded:resnet10t.glyphs"])]
        options = {"cache_dir": cache_dir, "sources": sources, "space": small_space(probing=probing), **changes}
        return small_pool(digits, **options)

    return run


def test_of_many_sources_the_best_after_a_few_images_are_probed_in_full(race, digits):
    told = Told()
    pool = race(listener=told)
    train = len(digits.rows("train"))
    (winner,) = pool.sources()
    assert {candidate.images for candidate in pool.candidates} == {train}
    assert {candidate.images for candidate in pool.raced_out} < set(range(20, 41))
    assert len({candidate.source.name for candidate in pool.raced_out}) == 2
    assert [event.total for event in told.of(PhaseStarted)] == [3, 1]
    assert len(told.of(SourceProbed)) == 4
    table = pool.table()
    assert table["rank"].to_list() == list(range(1, len(table) + 1))
    assert table["source"].iloc[0] == winner.name
    assert set(table["source"]) == {*SOURCES, "embedded:resnet10t.glyphs"}
    assert table["images"].is_monotonic_decreasing


def test_who_wins_the_race_is_scored_as_without_one(race, digits, cache_dir):
    pool = race()
    (winner,) = pool.sources()
    alone = small_pool(digits, cache_dir, sources=[winner])
    for candidate in pool.candidates:
        expected = alone.get(winner.name, candidate.level)
        assert candidate.linear_probe == expected.linear_probe
        for name, proxy in candidate.proxies.items():
            assert proxy.value == pytest.approx(expected.proxies[name].value, rel=1e-5)


def test_images_of_the_race_are_not_looked_at_twice(race, digits, monkeypatch, tmp_path):
    looked_at: dict[str, list[int]] = {}
    module = import_module("autotransfer.probing.probe")
    original = module._extract

    def watch(network, source, images, rows, *options):
        looked_at.setdefault(source.name, []).extend(rows.tolist())
        return original(network, source, images, rows, *options)

    monkeypatch.setattr(module, "_extract", watch)
    (winner,) = race(cache_dir=tmp_path).sources()
    assert sorted(looked_at[winner.name]) == digits.rows("train", "val").tolist()
    assert max(len(rows) for name, rows in looked_at.items() if name != winner.name) <= 60


def test_few_sources_or_few_images_do_not_race(race, digits):
    for probing in ({"race_above": 3, "race_images": 40}, {"race_above": 1, "race_images": 60}):
        pool = race(space=small_space(probing=probing))
        assert len(pool.sources()) == 3
        assert pool.raced_out == []


def test_stopped_after_the_race_all_that_ran_are_the_pool(race):
    asked, answers = [], Told()

    def go_on() -> bool:
        asked.append(1)
        return len(answers.of(SourceProbed)) < 3

    pool = race(listener=answers, go_on=go_on)
    assert len(pool.sources()) == 3
    assert pool.raced_out == []


# Going on


def test_a_study_keeps_the_sources_that_it_began_with(pool, study):
    first, second = (source.name for source in pool.sources())
    only_first = replace(pool, candidates=[c for c in pool.candidates if c.source.name == first])
    assert same_pool(study, only_first, lambda: True).sources() == only_first.sources()
    study.ask()
    assert [s.name for s in same_pool(study, pool, lambda: True).sources()] == [first]  # the other came too late
    lost = replace(pool, candidates=[c for c in pool.candidates if c.source.name == second], skipped={first: "no net"})
    with pytest.raises(StudyError, match=f"cannot go on without sources that it began with: {first}: no net"):
        same_pool(study, lost, lambda: True)
    assert same_pool(study, lost, lambda: False).sources() == []  # stopped while it probed
