"""A small target of real image files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from autotransfer.datasets import Dataset, load_dataset

COUNTS = {"ant": 12, "bee": 8, "cat": 5}


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """25 photographs of noise, 60 x 45, in three classes."""
    root: Path = tmp_path_factory.mktemp("pets")
    generator = np.random.default_rng(0)
    for label, count in COUNTS.items():
        (root / label).mkdir()
        for number in range(count):
            pixels = generator.integers(0, 256, (45, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / label / f"{number}.png")
    return load_dataset(root)
