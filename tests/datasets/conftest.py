"""Small real image files for the tests of datasets."""

import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WriteImage = Callable[[Path], Path]
WriteFolder = Callable[[Path, Mapping[str, int]], Path]


@pytest.fixture(scope="session")
def write_image() -> WriteImage:
    """Write a small image of its own content: noise that depends on the last three parts of the path."""

    def write(path: Path) -> Path:
        seed = zlib.crc32("/".join(path.parts[-3:]).encode())
        pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        return path

    return write


@pytest.fixture(scope="session")
def write_folder(write_image: WriteImage) -> WriteFolder:
    """Write a folder of images: `write_folder(root, {"train/cat": 5})` makes train/cat/0.png to 4.png."""

    def write(root: Path, counts: Mapping[str, int]) -> Path:
        for folder, count in counts.items():
            (root / folder).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                write_image(root / folder / f"{number}.png")
        return root

    return write
