"""What the quick answer promises: the pool's table, from data alone, with nothing trained."""

import pandas as pd
import pytest
import yaml
from small_study import CONVNEXT, MOBILENET, SMALL_SPACE, SOURCES, Told, small_pool

import autotransfer
from autotransfer.errors import AutotransferError, SourceError
from autotransfer.search.events import Notice, PhaseStarted, SourceProbed
from autotransfer.search.scoring import score
from autotransfer.search.space import load_space
from autotransfer.settings import settings
from autotransfer.sources import Source


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOTRANSFER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AUTOTRANSFER_CACHE_DIR", str(tmp_path / "cache"))
    settings.cache_clear()
    yield
    settings.cache_clear()


def test_the_score_is_the_pools_table(digits_folder, digits, cache_dir):
    pool = small_pool(digits, cache_dir, space=load_space("offline", sources=list(SOURCES)))
    table = score(digits_folder, space="offline", sources=SOURCES, device="cpu")
    pd.testing.assert_frame_equal(table, pool.table())


def test_it_is_part_of_the_public_api():
    assert autotransfer.score is score


def test_the_users_sources_replace_the_spaces(digits_folder, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**SMALL_SPACE, "proxies": ["knn"], "sources": [MOBILENET]}))
    told = Told()
    table = score(digits_folder, space=str(path), sources=[CONVNEXT], device="cpu", listeners=[told])
    assert set(table["source"]) == {CONVNEXT}
    assert "knn" in table.columns
    assert "logme" not in table.columns
    assert [event.phase for event in told.of(PhaseStarted)] == ["data", "probing"]
    assert [event.source for event in told.of(SourceProbed)] == [CONVNEXT]


def test_nothing_is_trained_and_no_study_is_kept(digits_folder, tmp_path):
    score(digits_folder, space="offline", sources=[CONVNEXT], device="cpu")
    assert not (tmp_path / "home").exists()


def test_a_second_score_takes_the_probe_from_the_cache(digits_folder):
    first, second = Told(), Told()
    tables = [
        score(digits_folder, space="offline", sources=[CONVNEXT], device="cpu", listeners=[told])
        for told in (first, second)
    ]
    assert [told.of(SourceProbed)[0].cached for told in (first, second)] == [False, True]
    pd.testing.assert_frame_equal(*tables)


@pytest.mark.parametrize(
    ("options", "phrase"),
    [
        ({"space": "defualt"}, "no search space 'defualt'"),
        ({"space": "offline", "sources": ["embedded:nothing"]}, "no embedded source matches 'nothing'"),
        ({"space": "offline", "plugins": ["no_such_plugin"]}, "plugin 'no_such_plugin'"),
        ({"space": "offline", "device": "tpu"}, "auto, cpu or cuda"),
    ],
)
def test_a_mistake_is_told_as_something_to_act_on(digits_folder, options, phrase):
    with pytest.raises(AutotransferError, match=phrase):
        score(digits_folder, **options)


def test_of_many_that_a_pattern_matches_only_the_most_promising_are_loaded(digits_folder, tmp_path, monkeypatch):
    asked, load = [], Source.load

    def watch(source: Source):
        if source.kind == "embedded":
            return load(source)
        asked.append(source.name)
        raise SourceError(f"source '{source.name}' cannot be loaded: there is no hub here")

    monkeypatch.setattr(Source, "load", watch)
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({**SMALL_SPACE, "sources": ["resnet1*", CONVNEXT], "probing": {"max_sources": 3}}))
    told = Told()
    table = score(digits_folder, space=str(path), device="cpu", listeners=[told])
    assert set(table["source"]) == {CONVNEXT}
    assert len(asked) == 2
    assert "3 are probed" in told.of(Notice)[0].message
