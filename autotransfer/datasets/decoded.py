"""All images of a dataset at one size, decoded once, as a memory-mapped array on disk.

The file is an ordinary `.npy`. Its name is a hash of the images' contents in the order of the samples, so it
is found again by other trials, studies and processes, after files were renamed or labels corrected, and never
by a dataset with other pixels. It is written under a temporary name and renamed when complete: a reader sees
all of it or nothing, whoever else writes and whoever is killed.
"""

import contextlib
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from autotransfer.datasets.dataset import Dataset
from autotransfer.datasets.image import decode_image
from autotransfer.datasets.parallel import map_in_order
from autotransfer.datasets.verification import content_hash, verified_content_hashes
from autotransfer.errors import DatasetError

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1  # raise it when decode_image makes other pixels than before
_ABANDONED_AFTER_SECONDS = 24 * 3600


class DecodedImages:
    """The pixels of a dataset: row i of `array` is row i of `dataset.samples`.

    Attributes:
        array: uint8 [n, size, size, 3], memory-mapped and read-only.
        path: The file behind it.
    """

    array: np.memmap

    def __init__(
        self,
        dataset: Dataset,
        size: int,
        interpolation: str = "bilinear",
        *,
        cache_dir: Path,
        workers: int | None = None,
    ) -> None:
        """Open the cached array, or decode the images first.

        Args:
            dataset: Its images are decoded as they were when it was loaded.
            size: Side in pixels.
            interpolation: As in `decode_image`.
            cache_dir: The file lies in the folder `decoded` below it.
            workers: Threads; as many as there are cores by default.

        Raises:
            DatasetError: If an image changed since the dataset was loaded, or the disk is full.
        """
        hashes = _content_hashes(dataset)
        self.path = Path(cache_dir) / "decoded" / f"{_key(hashes, size, interpolation)}.npy"
        shape = (len(dataset), size, size, 3)
        array = _open(self.path, shape)
        if array is None:
            samples = list(zip(dataset.samples["image"], hashes, strict=True))
            _build(self.path, samples, shape, interpolation, workers)
            array = _open(self.path, shape)
        if array is None:
            raise DatasetError(f"The cache file {self.path} was damaged right after it was written.")
        self.array = array

    def __len__(self) -> int:
        return len(self.array)


def _key(hashes: list[str], size: int, interpolation: str) -> str:
    digest = hashlib.sha256(f"{FORMAT_VERSION}/{size}/{interpolation}".encode())
    for sha in hashes:
        digest.update(bytes.fromhex(sha))
    return digest.hexdigest()[:32]


def _content_hashes(dataset: Dataset) -> list[str]:
    if "content_hash" in dataset.samples:
        return dataset.samples["content_hash"].to_list()
    images = dataset.samples["image"].to_list()
    return verified_content_hashes(images, Path(os.path.commonpath(images)))


def _open(path: Path, shape: tuple[int, ...]) -> np.memmap | None:
    """The array, or None if the file is not there or not whole."""
    try:
        array: np.memmap = np.lib.format.open_memmap(path, mode="r")
        complete = array.shape == shape and array.dtype == np.uint8 and path.stat().st_size == array.offset + array.size
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, SyntaxError):
        complete = False
    if not complete:
        logger.warning("The cache file %s is damaged and is built again.", path)
        return None
    return array


def _build(
    path: Path,
    samples: list[tuple[str, str]],
    shape: tuple[int, ...],
    interpolation: str,
    workers: int | None,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path.parent)
    _check_space(path.parent, int(np.prod(shape)))

    def decode(sample: tuple[str, str]) -> npt.NDArray[np.uint8]:
        image, expected = sample
        return _decode_unchanged(image, expected, shape[1], interpolation)

    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with _replacing(path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for pixels in map_in_order(decode, samples, workers):
            file.write(pixels.data)
        file.flush()
        os.fsync(file.fileno())


def _decode_unchanged(image: str, expected: str, size: int, interpolation: str) -> npt.NDArray[np.uint8]:
    try:
        data = Path(image).read_bytes()
    except OSError as error:
        raise DatasetError(
            f"Image {image!r} cannot be read any more: {error.strerror}. Load the dataset again."
        ) from error
    if content_hash(data) != expected:
        raise DatasetError(f"Image {image!r} changed since the dataset was loaded. Load it again.")
    return decode_image(data, size, interpolation)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place if the block succeeds, and vanishes if not."""
    handle, name = tempfile.mkstemp(prefix=f"{path.stem}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DatasetError(
            f"The decoded images need {needed / 1e9:.1f} GB in {folder} but {free / 1e9:.1f} GB are free. "
            "Free some space, or set another cache folder."
        )


def _remove_abandoned(folder: Path) -> None:
    """Temporary files of processes that were killed long ago."""
    for temporary in folder.glob("*.tmp"):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - temporary.stat().st_mtime > _ABANDONED_AFTER_SECONDS:
                temporary.unlink()
