"""Searches that executors run: a study in a storage that other processes see."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from postgres import postgres_server
from small_study import small_workshop

from autotransfer.datasets import Dataset
from autotransfer.search.candidates import Pool
from autotransfer.search.executors import SearchJob
from autotransfer.search.first_trials import queue_first_trials
from autotransfer.search.strategy import Strategy
from autotransfer.search.study import open_storage


@pytest.fixture(scope="package")
def postgres_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with postgres_server(tmp_path_factory.mktemp("server")) as url:
        yield url


@pytest.fixture(scope="module")
def ray_on_this_machine() -> Iterator[None]:
    """One Ray for all tests of a module: starting it takes longer than they do."""
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def make_job(digits: Dataset, pool: Pool, cache_dir: Path) -> Callable[..., SearchJob]:
    """`make_job(folder, trials=5)`: a new study in a journal there (or at `storage`), its first trials queued."""

    def make(folder: Path, *, storage: str = "", sampler: str = "proxy", **fields: Any) -> SearchJob:
        url = storage or f"journal:{folder / 'study.journal'}"
        workshop = small_workshop(digits, pool, cache_dir, folder / "checkpoints")
        study = optuna.create_study(study_name=folder.name, storage=open_storage(url), direction="maximize")
        queue_first_trials(study, Strategy(sampler, workshop))
        return SearchJob(url, folder.name, workshop, sampler, **fields)

    return make
