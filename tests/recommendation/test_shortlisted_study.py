"""A study of more sources than are probed: what it has, it keeps."""

import pytest
import yaml
from small_study import CONVNEXT, SMALL_SPACE, Told, write_digits

from autotransfer.errors import SourceError
from autotransfer.recommendation import recommend
from autotransfer.search.events import Notice, SourceSkipped
from autotransfer.settings import settings
from autotransfer.sources import Source


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOTRANSFER_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("AUTOTRANSFER_CACHE_DIR", str(tmp_path / "cache"))
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    load = Source.load

    def only_embedded(source: Source):
        if source.kind != "embedded":
            raise SourceError(f"source '{source.name}' cannot be loaded: there is no hub here")
        return load(source)

    monkeypatch.setattr(Source, "load", only_embedded)


def test_a_resumed_study_keeps_its_sources_though_another_budget_would_choose_others(tmp_path):
    data = write_digits(tmp_path / "digits")
    space = tmp_path / "mine.yaml"
    space.write_text(yaml.safe_dump({**SMALL_SPACE, "sources": ["resnet1*", CONVNEXT], "probing": {"max_sources": 3}}))
    first, second = Told(), Told()
    job = {"space": str(space), "study": "many", "out": tmp_path / "out", "device": "cpu"}
    recommend(data, trials=1, max_params="30M", listeners=[first], **job)
    recommend(data, budget=3, resume=True, listeners=[second], **job)
    notices = [event.message for event in first.of(Notice)]
    assert "more than 30M parameters" in notices[0] and "3 are probed" in notices[1]
    skipped = [[event.source for event in told.of(SourceSkipped)] for told in (first, second)]
    assert skipped[0] == skipped[1]
    assert len(skipped[0]) == 2
