"""The cache folder: whole files, a limit, the least recently used go first, and it can be emptied."""

import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from autotransfer import disk_cache, settings
from autotransfer.cli import app
from autotransfer.errors import CacheError


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("AUTOTRANSFER_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("AUTOTRANSFER_CACHE_LIMIT", "10kB")
    settings.settings.cache_clear()
    yield tmp_path / "cache"
    settings.settings.cache_clear()


def put(cache: Path, kind: str, name: str, size: int, age: float = 0) -> Path:
    path = cache / kind / name
    with disk_cache.replacing(path) as temporary:
        temporary.write_bytes(b"x" * size)
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def test_room_is_made_by_the_least_recently_used(cache):
    old, middle, new = (put(cache, kind, "a", 3000, age) for kind, age in zip(disk_cache.KINDS, (3, 2, 1), strict=True))
    disk_cache.make_room(cache, 1000, 10_000)
    assert old.exists() and middle.exists() and new.exists()
    disk_cache.used(old)
    disk_cache.make_room(cache, 4000, 10_000)
    assert (old.exists(), middle.exists(), new.exists()) == (True, False, True)
    disk_cache.make_room(cache, 20_000, 10_000)  # more than the limit: as much room as can be
    assert not old.exists() and not new.exists()


def test_what_the_disk_cannot_hold_is_told_and_nothing_is_taken_away(cache):
    kept = put(cache, "features", "a", 3000)
    with pytest.raises(CacheError, match=r"1000000\.0 GB are needed in .* AUTOTRANSFER_CACHE_DIR"):
        disk_cache.make_room(cache, 10**15, 10**16)
    assert kept.exists()


def test_a_file_that_is_taken_away_stays_readable_for_whoever_has_opened_it(cache):
    path = cache / "decoded" / "a.npy"
    expected = np.arange(1000)
    with disk_cache.replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, expected)
    opened = disk_cache.open_array(path, (1000,), np.int64)
    disk_cache.clear(cache)
    assert not path.exists()
    np.testing.assert_array_equal(opened, expected)


def test_opening_an_array_marks_it_as_used(cache):
    path = cache / "decoded" / "a.npy"
    with disk_cache.replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.arange(3))
    os.utime(path, (0, 0))
    disk_cache.open_array(path, (3,), np.int64)
    assert path.stat().st_mtime > 1e9


def test_emptying_the_cache_does_not_disturb_who_is_writing(cache):
    with disk_cache.replacing(cache / "features" / "a") as temporary:
        temporary.write_bytes(b"whole")
        disk_cache.clear(cache)
    assert (cache / "features" / "a").read_bytes() == b"whole"


@pytest.mark.skipif(sys.platform == "win32", reason="no flock")
def test_what_is_mapped_is_not_taken_away_to_make_room(cache, caplog):
    def build() -> None:
        with disk_cache.replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, np.arange(1000))

    path = cache / "decoded" / "a.npy"
    part = disk_cache.kept_array(path, (1000,), np.int64, build)[10:20]
    other = put(cache, "features", "b", 3000)
    code = (
        "import pathlib, sys; from autotransfer.disk_cache import make_room; make_room(pathlib.Path(sys.argv[1]), 1, 1)"
    )
    subprocess.run([sys.executable, "-c", code, str(cache)], check=True)
    assert path.exists() and not other.exists()
    with caplog.at_level(logging.WARNING):
        disk_cache.make_room(cache, 5000, 10_000)
    assert path.exists() and "more than its limit" in caplog.text
    assert part.sum() == sum(range(10, 20))
    del part
    disk_cache.make_room(cache, 5000, 10_000)
    assert not path.exists()


def test_a_file_that_does_not_stay_is_told(cache):
    with pytest.raises(CacheError, match="taken away right after it was written, 3 times"):
        disk_cache.kept_array(cache / "decoded" / "a.npy", (3,), np.int64, lambda: None)


def test_a_failed_write_leaves_nothing(cache):
    with pytest.raises(OSError, match="full"), disk_cache.replacing(cache / "features" / "a") as temporary:
        temporary.write_bytes(b"half")
        raise OSError("disk full")
    assert list((cache / "features").iterdir()) == []


def test_the_cache_is_shown_and_emptied(cache):
    put(cache, "decoded", "a.npy", 3000)
    put(cache, "features", "b.safetensors", 500)
    dead = subprocess.Popen(["true"])
    dead.wait()
    (cache / "features" / f"half.{socket.gethostname()}.{dead.pid}.x.tmp").write_bytes(b"of a killed process")
    (cache / "notes.txt").write_text("a user's own")
    shown = json.loads(CliRunner().invoke(app, ["cache", "show", "--json"]).stdout)
    assert shown["kinds"]["decoded"] == {"files": 1, "bytes": 3000}
    assert shown["kinds"]["features"] == {"files": 1, "bytes": 500}
    assert shown["limit_bytes"] == 10_000
    table = CliRunner().invoke(app, ["cache", "show"]).stdout
    assert "3.0 kB" in table and "limit 10.0 kB" in table
    assert "2 files (3.5 kB) removed" in CliRunner().invoke(app, ["cache", "clear"]).stdout
    assert sorted(path.name for path in cache.rglob("*") if path.is_file()) == ["notes.txt"]


def test_an_empty_cache_is_shown_and_emptied_too(cache):
    assert "together" in CliRunner().invoke(app, ["cache", "show"]).stdout
    assert "0 files" in CliRunner().invoke(app, ["cache", "clear"]).stdout


@pytest.mark.parametrize("limit", ["a lot", "-3"])
def test_a_limit_that_is_no_size_is_told(monkeypatch, limit):
    monkeypatch.setenv("AUTOTRANSFER_CACHE_LIMIT", limit)
    settings.settings.cache_clear()
    result = CliRunner().invoke(app, ["cache", "show"])
    settings.settings.cache_clear()
    assert result.exit_code != 0
    assert "AUTOTRANSFER_CACHE_LIMIT" in result.stderr
