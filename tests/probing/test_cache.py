"""The feature cache: what is read is what was written, whole, whoever else writes."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from autotransfer.probing.cache import FeatureCache

ARRAYS = {
    "level.1": np.arange(12, dtype=np.float32).reshape(3, 4),
    "half": np.array([[1.5]], dtype=np.float16),
    "transposed": np.arange(6, dtype=np.float64).reshape(2, 3).T,
    "empty": np.zeros((0, 5), dtype=np.float32),
}


@pytest.fixture
def cache(tmp_path: Path) -> FeatureCache:
    return FeatureCache(tmp_path / "not yet" / "features")


@pytest.fixture
def key(cache: FeatureCache) -> str:
    return cache.key(dataset="d", rows=[1, 2])


def entry(cache: FeatureCache, tmp_path: Path) -> Path:
    (path,) = (tmp_path / "not yet" / "features").iterdir()
    return path


def assert_equal(found: dict | None, expected: dict) -> None:
    assert found is not None
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_what_is_put_is_got_also_by_another_process(cache, key, tmp_path):
    assert cache.get(key) is None
    cache.put(key, ARRAYS)
    assert_equal(cache.get(key), ARRAYS)
    assert_equal(FeatureCache(tmp_path / "not yet" / "features").get(key), ARRAYS)


def test_keys_depend_on_every_part_and_not_on_their_order(cache):
    parts = {"dataset": "d", "rows": [1, 2], "weights": "w", "preprocessing": [64, "bilinear", (0.5,), (0.5,)]}
    keys = {cache.key(**parts), cache.key(**dict(reversed(parts.items())))}
    assert len(keys) == 1
    changes = [{"dataset": "e"}, {"rows": [2, 1]}, {"weights": "v"}, {"preprocessing": [64, "bicubic", (0.5,), (0.5,)]}]
    assert len({cache.key(**{**parts, **change}) for change in changes} | keys) == 5


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: b"\xff" * 64,
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),  # one bit of one array
    ],
)
def test_a_damaged_entry_counts_as_absent_and_is_replaced(cache, key, tmp_path, caplog, damage):
    cache.put(key, ARRAYS)
    path = entry(cache, tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert cache.get(key) is None
    assert str(path) in caplog.text and "computed again" in caplog.text
    cache.put(key, ARRAYS)
    assert_equal(cache.get(key), ARRAYS)


def test_a_write_that_fails_leaves_nothing(cache, key, tmp_path, monkeypatch):
    def fail(_: object, name: str) -> None:
        Path(name).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("autotransfer.probing.cache.save_file", fail)
    with pytest.raises(OSError, match="No space left"):
        cache.put(key, ARRAYS)
    assert list((tmp_path / "not yet" / "features").iterdir()) == []
    assert cache.get(key) is None


def test_concurrent_writers_and_readers_see_whole_entries(cache, key, tmp_path):
    versions = [{"level.1": np.full((300, 100), number, np.float32)} for number in range(4)]

    def write(number: int) -> None:
        for _ in range(15):
            cache.put(key, versions[number])

    def read(_: int) -> int:
        seen = 0
        for _ in range(60):
            found = cache.get(key)
            if found is not None:
                assert_equal(found, versions[int(found["level.1"][0, 0])])
                seen += 1
        return seen

    with ThreadPoolExecutor(6) as pool:
        writers = [pool.submit(write, number) for number in range(4)]
        readers = [pool.submit(read, number) for number in range(2)]
        assert [writer.result() for writer in writers] == [None] * 4
        assert sum(reader.result() for reader in readers) > 0
    assert entry(cache, tmp_path).suffix == ".safetensors"


def test_an_entry_is_marked_as_used(cache, key, tmp_path):
    cache.put(key, ARRAYS)
    os.utime(entry(cache, tmp_path), (0, 0))
    cache.get(key)
    assert entry(cache, tmp_path).stat().st_mtime > 1e9


def test_an_entry_that_cannot_be_marked_is_read_all_the_same(cache, key, monkeypatch):
    def refuse(_: object) -> None:
        raise PermissionError("another user's file")

    cache.put(key, ARRAYS)
    monkeypatch.setattr("autotransfer.disk_cache.os.utime", refuse)
    assert_equal(cache.get(key), ARRAYS)
