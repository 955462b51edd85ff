"""The small job of these tests: its images, its probed sources, its workshop."""

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from small_study import new_study, small_pool, small_workshop, write_digits

from autotransfer.datasets import Dataset, load_dataset
from autotransfer.search.candidates import Pool
from autotransfer.search.workshop import Workshop


@pytest.fixture(scope="session")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("data") / "digits")


@pytest.fixture(scope="session")
def digits(digits_folder: Path) -> Dataset:
    return load_dataset(digits_folder, seed=0)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def pool(digits: Dataset, cache_dir: Path) -> Pool:
    return small_pool(digits, cache_dir)


@pytest.fixture
def make_workshop(digits: Dataset, pool: Pool, cache_dir: Path, tmp_path: Path) -> Callable[..., Workshop]:
    """`make_workshop(max_parameters=1000)`: the small job's workshop, some of its fields changed."""
    return lambda **changes: small_workshop(
        changes.pop("dataset", digits), changes.pop("pool", pool), cache_dir, tmp_path / "checkpoints", **changes
    )


@pytest.fixture
def workshop(make_workshop: Callable[..., Workshop]) -> Workshop:
    return make_workshop()


@pytest.fixture
def study() -> optuna.Study:
    return new_study()
