"""Where autotransfer keeps things: under the home folder, unless the environment says otherwise."""

from pathlib import Path

import pytest

from autotransfer.settings import Settings, settings

NAMES = ("HOME", "CACHE_DIR", "CACHE_LIMIT", "TRACKING_URI", "STORAGE", "EXPERIMENT")


@pytest.fixture(autouse=True)
def clean_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in NAMES:
        monkeypatch.delenv(f"AUTOTRANSFER_{name}", raising=False)
    settings.cache_clear()
    yield
    settings.cache_clear()


def test_without_an_environment_everything_is_in_the_users_home(tmp_path):
    found = settings()
    assert found.home == tmp_path / ".autotransfer"
    assert found.studies_dir == tmp_path / ".autotransfer" / "studies"
    assert found.cache_dir == tmp_path / ".cache" / "autotransfer"
    assert found.default_tracking_uri() == f"sqlite:///{tmp_path}/.autotransfer/mlflow.db"
    assert (found.tracking_uri, found.storage, found.experiment) == (None, None, "autotransfer")


def test_the_environment_wins(monkeypatch):
    values = {
        "HOME": "/data/home",
        "CACHE_DIR": "/data/cache",
        "CACHE_LIMIT": "5GB",
        "TRACKING_URI": "http://mlflow:5000",
        "STORAGE": "sqlite:////data/optuna.db",
        "EXPERIMENT": "birds",
    }
    for name, value in values.items():
        monkeypatch.setenv(f"AUTOTRANSFER_{name}", value)
    found = settings()
    assert found.model_dump() == {
        "home": Path("/data/home"),
        "cache_dir": Path("/data/cache"),
        "cache_limit": 5 * 10**9,
        "tracking_uri": "http://mlflow:5000",
        "storage": "sqlite:////data/optuna.db",
        "experiment": "birds",
    }
    assert found.studies_dir == Path("/data/home/studies")
    assert found.default_tracking_uri() == "http://mlflow:5000"


def test_a_relative_home_gives_a_store_that_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AUTOTRANSFER_HOME", "here")
    assert settings().default_tracking_uri() == f"sqlite:///{tmp_path}/here/mlflow.db"


def test_other_variables_of_that_prefix_are_ignored(monkeypatch):
    monkeypatch.setenv("AUTOTRANSFER_COLOUR", "green")
    assert "colour" not in Settings().model_dump()


def test_settings_are_read_once_a_process(monkeypatch):
    first = settings()
    monkeypatch.setenv("AUTOTRANSFER_HOME", "/elsewhere")
    assert settings() is first


def test_reading_settings_makes_no_folder(tmp_path):
    settings().default_tracking_uri()
    assert list(tmp_path.iterdir()) == []
