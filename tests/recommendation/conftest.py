"""The small job of these tests, searched once: its workshop, its finished study, its answer."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from small_study import Told, new_study, small_pool, small_workshop, unlimited, write_digits

from autotransfer.datasets import Dataset, load_dataset
from autotransfer.recommendation import Recommendation
from autotransfer.recommendation.answer import answer
from autotransfer.search import trials
from autotransfer.search.budget import Budget
from autotransfer.search.candidates import Pool
from autotransfer.search.first_trials import queue_first_trials
from autotransfer.search.strategy import Strategy
from autotransfer.search.trials import run_trials
from autotransfer.search.workshop import Workshop


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return load_dataset(write_digits(tmp_path_factory.mktemp("data") / "digits"), seed=0)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def pool(digits: Dataset, cache_dir: Path) -> Pool:
    return small_pool(digits, cache_dir)


@pytest.fixture(scope="session")
def workshop(digits: Dataset, pool: Pool, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return small_workshop(digits, pool, cache_dir, tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="session")
def study(workshop: Workshop) -> optuna.Study:
    """Four trained trials: the best by proxies, from scratch, the best of the other source, half frozen."""
    made = new_study()
    queue_first_trials(made, Strategy("tpe", workshop))
    with pytest.MonkeyPatch.context() as patched:  # the tests retell which trial was best: all weights are kept
        patched.setattr(trials, "drop_weights", lambda study, workshop: None)
        run_trials(made, Strategy("tpe", workshop), unlimited(4), Told())
    return made


@pytest.fixture(scope="session")
def evidence(study: optuna.Study, workshop: Workshop) -> dict[str, Any]:
    """What `answer` says of that study."""
    _, found = answer(study, workshop, Budget(None, None), plugins=())
    return found


@pytest.fixture(scope="session")
def recommendation(evidence: dict[str, Any], study: optuna.Study, pool: Pool) -> Recommendation:
    return Recommendation(
        **evidence,
        cost={"total_seconds": 12.5, "trials_complete": 4.0},
        sources=pool.table(),
        trials=study.trials_dataframe(attrs=("number", "state", "value")),
        study="digits",
        storage="journal:/studies/digits.journal",
        tracking_uri=None,
    )
