"""The decoded cache: right, shared, and whole after whatever happened."""

import logging
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autotransfer.datasets import Dataset, DecodedImages, decode_image, load_dataset
from autotransfer.errors import CacheError, DatasetError


@pytest.fixture
def dataset(tmp_path: Path, write_folder) -> Dataset:
    return load_dataset(write_folder(tmp_path / "pets", {"cat": 30, "dog": 30}))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def no_decoding(monkeypatch):
    """From here on, decoding fails: what is asked for must be in the cache."""

    def fail(*_: object) -> None:
        raise AssertionError("decoded again")

    def forbid() -> None:
        monkeypatch.setattr("autotransfer.datasets.decoded.decode_image", fail)

    return forbid


def files(cache: Path) -> list[str]:
    return sorted(path.suffix for path in (cache / "decoded").glob("*"))


def test_row_i_is_sample_i(dataset, cache):
    decoded = DecodedImages(dataset, 12, "bicubic", cache_dir=cache)
    assert isinstance(decoded.array, np.memmap)
    assert decoded.array.dtype == np.uint8
    expected = [decode_image(image, 12, "bicubic") for image in dataset.samples["image"]]
    np.testing.assert_array_equal(decoded.array, np.stack(expected))


def test_the_array_is_read_only(dataset, cache):
    with pytest.raises(ValueError, match="read-only"):
        DecodedImages(dataset, 8, cache_dir=cache).array[0] = 0


def test_the_second_time_nothing_is_decoded(dataset, cache, no_decoding):
    first = DecodedImages(dataset, 8, cache_dir=cache)
    no_decoding()
    assert DecodedImages(dataset, 8, cache_dir=cache).path == first.path
    assert files(cache) == [".npy"]


def test_other_labels_splits_and_names_share_the_file(dataset, cache, no_decoding, tmp_path):
    first = DecodedImages(dataset, 8, cache_dir=cache)
    (tmp_path / "pets").rename(tmp_path / "animals")
    no_decoding()
    renamed = load_dataset(tmp_path / "animals", seed=7)
    assert renamed.fingerprint != dataset.fingerprint
    assert DecodedImages(renamed, 8, cache_dir=cache).path == first.path


def test_another_size_interpolation_order_or_content_is_another_file(dataset, cache, tmp_path):
    paths = {
        DecodedImages(dataset, 8, cache_dir=cache).path,
        DecodedImages(dataset, 9, cache_dir=cache).path,
        DecodedImages(dataset, 8, "nearest", cache_dir=cache).path,
        DecodedImages(dataset.subset(range(len(dataset))[::-1]), 8, cache_dir=cache).path,
    }
    Image.new("RGB", (5, 5)).save(tmp_path / "pets" / "cat" / "0.png")
    paths.add(DecodedImages(load_dataset(tmp_path / "pets"), 8, cache_dir=cache).path)
    assert len(paths) == 5


def test_reordered_samples_get_their_own_rows(dataset, cache):
    backwards = dataset.subset(range(len(dataset))[::-1])
    forward = DecodedImages(dataset, 8, cache_dir=cache).array
    np.testing.assert_array_equal(DecodedImages(backwards, 8, cache_dir=cache).array, forward[::-1])


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[:20],
        lambda data: b"",
        lambda data: b"\0" * len(data),
        lambda data: data.replace(b"(60, 8, 8, 3)", b"(59, 8, 8, 3)", 1),
        lambda data: data.replace(b"'|u1'", b"'|i1'", 1),
    ],
)
def test_a_damaged_file_is_noticed_and_built_again(dataset, cache, damage, caplog):
    first = DecodedImages(dataset, 8, cache_dir=cache)
    expected = np.array(first.array)
    whole = first.path.read_bytes()
    damaged = damage(whole)
    assert damaged != whole
    first.path.unlink()
    first.path.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(DecodedImages(dataset, 8, cache_dir=cache).array, expected)
    assert "is damaged and is built again" in caplog.text
    assert first.path.read_bytes() == whole


def test_a_dataset_made_by_hand_is_decoded_too(dataset, cache):
    bare = Dataset("pets", dataset.samples[["image", "label", "split"]], dataset.classes, "f" * 64, "given")
    assert DecodedImages(bare, 8, cache_dir=cache).path == DecodedImages(dataset, 8, cache_dir=cache).path


def test_an_image_changed_since_loading_is_told_and_leaves_nothing_behind(dataset, cache):
    image = Path(dataset.samples["image"].iloc[7])
    Image.new("RGB", (5, 5)).save(image)
    with pytest.raises(DatasetError, match=f"{image.name}' changed since the dataset was loaded"):
        DecodedImages(dataset, 8, cache_dir=cache)
    image.unlink()
    with pytest.raises(DatasetError, match="cannot be read any more: No such file"):
        DecodedImages(dataset, 8, cache_dir=cache)
    assert files(cache) == []


def test_a_disk_too_small_is_told_before_anything_is_written(dataset, cache):
    with pytest.raises(CacheError, match=r"\d+\.\d GB are needed in .* are free"):
        DecodedImages(dataset, 1_000_000, cache_dir=cache)
    assert files(cache) == []


def test_temporary_files_of_killed_processes_are_removed_after_a_day(dataset, cache):
    folder = cache / "decoded"
    folder.mkdir(parents=True)
    for name, age_seconds in (("old.tmp", 2 * 24 * 3600), ("new.tmp", 60)):
        (folder / name).touch()
        os.utime(folder / name, (time.time() - age_seconds,) * 2)
    DecodedImages(dataset, 8, cache_dir=cache)
    assert files(cache) == [".npy", ".tmp"]
    assert (folder / "new.tmp").exists()


BUILD = """
import sys, time
from pathlib import Path
from autotransfer.datasets import DecodedImages, load_dataset, decoded
original = decoded.decode_image
def slowly(*arguments):
    time.sleep(float(sys.argv[3]))
    return original(*arguments)
decoded.decode_image = slowly
dataset = load_dataset(sys.argv[1])
print("building", flush=True)
print(int(DecodedImages(dataset, 8, cache_dir=Path(sys.argv[2]), workers=2).array.sum()))
"""


def builder(folder: Path, cache: Path, seconds_per_image: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", BUILD, str(folder), str(cache), str(seconds_per_image)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_processes_that_build_at_the_same_time_agree(dataset, cache, tmp_path):
    builders = [builder(tmp_path / "pets", cache, 0.01) for _ in range(2)]
    sums = {process.communicate(timeout=60)[0].split()[-1] for process in builders}
    assert [process.returncode for process in builders] == [0, 0]
    assert sums == {str(DecodedImages(dataset, 8, cache_dir=cache).array.sum())}
    assert files(cache) == [".npy"]


def test_a_process_killed_while_it_builds_does_no_harm(dataset, cache, tmp_path):
    process = builder(tmp_path / "pets", cache, 0.2)
    assert process.stdout is not None
    assert process.stdout.readline() == "building\n"
    deadline = time.monotonic() + 20
    while not list(cache.glob("decoded/*.tmp")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    process.stdout.close()
    assert files(cache) == [".tmp"]
    assert len(DecodedImages(dataset, 8, cache_dir=cache)) == 60
    assert ".npy" in files(cache)
