"""Sources with random weights, written once; targets that are easy to learn."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from random_sources import MORE_FAMILIES, SMALL_FAMILIES, write_source

from autotransfer.sources import DataConfig, Source
from autotransfer.transfer.inputs import ImageInputs
from autotransfer.transfer.training import Data

PREPROCESSING = DataConfig(32, False, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25), "bilinear")

GetSource = Callable[[str], Source]
MakeData = Callable[..., Data]


DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def get_source(tmp_path_factory: pytest.TempPathFactory) -> GetSource:
    """The source of an architecture, made on first use."""
    made: dict[str, Source] = {}

    def get(architecture: str) -> Source:
        if architecture not in made:
            model_args = {**SMALL_FAMILIES, **MORE_FAMILIES}[architecture]
            made[architecture] = write_source(tmp_path_factory.mktemp("source"), architecture, **model_args)
        return made[architecture]

    return get


@pytest.fixture(scope="session")
def make_data() -> MakeData:
    """Noise, dark for class 0 and bright for class 1: `train` images to learn from, `val` to be judged by."""

    def make(train: int = 32, val: int = 16, size: int = 32) -> Data:
        generator = np.random.default_rng(0)
        codes = np.arange(train + val) % 2
        noise = generator.integers(0, 80, (train + val, size, size, 3))
        images = (noise + 170 * codes[:, None, None, None]).astype(np.uint8)
        inputs = ImageInputs(images, PREPROCESSING, DEVICE)
        return Data(inputs, codes, np.arange(train), np.arange(train, train + val))

    return make
