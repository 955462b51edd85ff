"""What is written down of a study beside its trials: its name, what it is about, what it cost."""

from os import PathLike
from pathlib import Path

import optuna
import pandas as pd
import torch

import autotransfer
from autotransfer.datasets import Dataset
from autotransfer.search.space import Space
from autotransfer.search.study import open_storage, storage_url, study_name
from autotransfer.settings import settings


def free_name(given: str | None, dataset: Dataset, space: Space, seed: int, storage: str | None, resume: bool) -> str:
    """The given name, or the job's own: the latest of that job to resume, the next free one to start."""
    if given is not None:
        return given
    base = study_name(dataset, space, seed)

    def exists(name: str) -> bool:
        url = storage_url(storage or settings().storage, name, settings().studies_dir)
        if url.startswith("journal:") and not Path(url.removeprefix("journal:")).exists():
            return False
        return name in optuna.get_all_study_names(open_storage(url))

    name, number = base, 1
    while exists(name):
        previous, number = name, number + 1
        name = f"{base}-{number}"
        if resume and not exists(name):
            return previous
    return name


def params(
    dataset: Dataset,
    space: Space,
    seconds: float | None,
    trials: int | None,
    seed: int,
    device: torch.device,
    data: str | PathLike[str],
) -> dict[str, str | int | float | bool | None]:
    """What the study is about, for MLflow."""
    return {
        "dataset": dataset.name,
        "data": str(data),
        "images": len(dataset),
        "task": dataset.task,
        "classes": len(dataset.classes),
        "splits": dataset.split_origin,
        "space": space.name,
        "sources": ", ".join(space.sources)[:500],
        "budget": seconds,
        "trials": trials,
        "seed": seed,
        "device": str(device),
    }


def versions() -> dict[str, str]:
    """Of what computes."""
    import timm

    return {
        "version.autotransfer": autotransfer.__version__,
        "version.torch": torch.__version__,
        "version.timm": timm.__version__,
        "version.optuna": optuna.__version__,
    }


def counts(study: optuna.Study) -> dict[str, float]:
    """Trials by how they ended."""
    states = [trial.state.name.lower() for trial in study.get_trials(deepcopy=False)]
    return {
        "trials_complete": states.count("complete"),
        "trials_pruned": states.count("pruned"),
        "trials_failed": states.count("fail"),
    }


def trials_table(study: optuna.Study) -> pd.DataFrame:
    """One row a trial that got a configuration."""
    rows = []
    for trial in study.get_trials(deepcopy=False):
        if "config" not in trial.user_attrs:
            continue
        rows.append(
            {
                "number": trial.number,
                "state": trial.state.name.lower(),
                "value": trial.value,
                "role": trial.user_attrs.get("role", ""),
                "reason": trial.user_attrs.get("reason", ""),
                "seconds": trial.user_attrs.get("seconds"),
                **trial.user_attrs["config"],
            }
        )
    return pd.DataFrame(rows)
