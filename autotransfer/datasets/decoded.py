"""All images of a dataset at one size, decoded once, as a memory-mapped array on disk.

The file is an ordinary `.npy`. Its name is a hash of the images' contents in the order of the samples, so it
is found again by other trials, studies and processes, after files were renamed or labels corrected, and never
by a dataset with other pixels. It is written under a temporary name and renamed when complete: a reader sees
all of it or nothing, whoever else writes and whoever is killed.
"""

import hashlib
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from autotransfer import disk_cache
from autotransfer.datasets.dataset import Dataset
from autotransfer.datasets.image import decode_image
from autotransfer.datasets.parallel import map_in_order
from autotransfer.datasets.verification import content_hash, verified_content_hashes
from autotransfer.errors import DatasetError
from autotransfer.settings import settings

FORMAT_VERSION = 1  # raise it when decode_image makes other pixels than before


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
            DatasetError: If an image changed since the dataset was loaded.
            CacheError: If the disk is full, or the file does not stay there.
        """
        hashes = _content_hashes(dataset)
        self.path = Path(cache_dir) / "decoded" / f"{_key(hashes, size, interpolation)}.npy"
        shape = (len(dataset), size, size, 3)

        def build() -> None:
            samples = list(zip(dataset.samples["image"], hashes, strict=True))
            _build(self.path, samples, shape, interpolation, workers)

        self.array = disk_cache.kept_array(self.path, shape, np.uint8, build)

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


def _build(
    path: Path,
    samples: list[tuple[str, str]],
    shape: tuple[int, ...],
    interpolation: str,
    workers: int | None,
) -> None:
    disk_cache.make_room(path.parents[1], int(np.prod(shape)), settings().cache_limit)

    def decode(sample: tuple[str, str]) -> npt.NDArray[np.uint8]:
        image, expected = sample
        return _decode_unchanged(image, expected, shape[1], interpolation)

    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with disk_cache.replacing(path) as temporary, temporary.open("wb") as file:
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
