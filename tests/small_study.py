"""A small but real job: 150 digits, two embedded sources, and all that their trials need."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.trial import TrialState
from PIL import Image

from autotransfer.datasets import Dataset
from autotransfer.search.budget import Budget
from autotransfer.search.candidates import Pool, build_pool
from autotransfer.search.events import Event
from autotransfer.search.space import Space
from autotransfer.search.workshop import Workshop
from autotransfer.sources import Source, find_sources
from autotransfer.transfer.config import TransferConfig
from autotransfer.transfer.evaluation import get_metric

CONVNEXT, MOBILENET = SOURCES = ("embedded:test_convnext2.scenes", "embedded:mobilenetv3_small_050.textures")
CPU = torch.device("cpu")
SMALL_SPACE: dict[str, Any] = {
    "sources": list(SOURCES),
    "parameters": {"epochs": {"min": 1, "max": 2}},
    "training": {"augmentation": "none"},
}


def write_digits(folder: Path, labels: Sequence[int] = (1, 3, 5, 8, 9), each: int = 30) -> Path:
    """Write the first digits of some classes as PNG files in class folders."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for label in labels:
        (folder / str(label)).mkdir(parents=True)
        for index in np.flatnonzero(digits.target == label)[:each]:
            grey = Image.fromarray(np.round(digits.images[index] * 255 / 16).astype(np.uint8))
            grey.resize((32, 32), Image.Resampling.BICUBIC).save(folder / str(label) / f"{index:04d}.png")
    return folder


def small_space(**changes: Any) -> Space:
    """The space of the small job, some of its top-level keys changed."""
    return Space.model_validate({**SMALL_SPACE, **changes})


@cache
def small_sources() -> tuple[Source, ...]:
    """Both sources, found once: they remember their levels."""
    return tuple(find_sources(SOURCES))


def small_pool(dataset: Dataset, cache_dir: Path, **changes: Any) -> Pool:
    """Both sources, probed; some arguments of `build_pool` changed."""
    arguments: dict[str, Any] = {
        "sources": small_sources(),
        "dataset": dataset,
        "space": small_space(),
        "metric": get_metric("accuracy"),
        "seed": 0,
        "device": CPU,
        "cache_dir": cache_dir,
        "listener": lambda event: None,
    }
    return build_pool(**{**arguments, **changes})


def small_workshop(dataset: Dataset, pool: Pool, cache_dir: Path, checkpoints: Path, **changes: Any) -> Workshop:
    """What the trials of the small job need, some of it changed."""
    fields: dict[str, Any] = {
        "dataset": dataset,
        "space": small_space(),
        "pool": pool,
        "metric": get_metric("accuracy"),
        "device": CPU,
        "cache_dir": cache_dir,
        "checkpoints": checkpoints,
        "seed": 0,
        "max_parameters": None,
        "max_latency_ms": None,
        "latencies_ms": {},
        "go_on": lambda: True,
    }
    return Workshop(**{**fields, **changes})


def config_of(source: str = CONVNEXT, level: int = 2, **changes: Any) -> TransferConfig:
    """One epoch of fine-tuning all of the first levels of a source, the rest cut off."""
    config = TransferConfig(
        source=source,
        transferred_layers=level,
        upper_layers="drop",
        frozen_layers=0,
        learning_rate=1e-3,
        epochs=1,
        image_size=48 if source == CONVNEXT else 64,
        augmentation="none",
    )
    return config.replace(**changes)


def new_study(**options: Any) -> optuna.Study:
    """A study in memory; a greater score is better unless said otherwise."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(**{"direction": "maximize", **options})


def queue_trial(study: optuna.Study, source: str, level: int, upper_layers: str = "drop", **params: Any) -> None:
    """Queue a trial as the sampler might choose it: without a role."""
    fixed = {"frozen_layers": 0, "learning_rate": 1e-3, "epochs": 1, **params}
    study.enqueue_trial({"source": source, "transferred_layers": level, "upper_layers": upper_layers, **fixed})


def states(study: optuna.Study) -> list[TrialState]:
    """The state of each trial."""
    return [trial.state for trial in study.get_trials()]


def reasons(study: optuna.Study) -> list[str]:
    """Why each trial ended, empty where there is nothing to say."""
    return [trial.user_attrs.get("reason", "") for trial in study.get_trials()]


def unlimited(trials: int) -> Budget:
    """All the time for a number of trained trials."""
    return Budget(None, trials)


class Told(list[Event]):
    """A listener that remembers what it was told."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    def of(self, kind: type) -> list[Any]:
        """The events of one kind, in order."""
        return [event for event in self if isinstance(event, kind)]


class Stopwatch:
    """A clock that moves only when told: `watch.now += 5`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def stop_after(count: int) -> Callable[[], bool]:
    """A `go_on` that says yes `count` times, then no."""
    asked = [0]

    def go_on() -> bool:
        asked[0] += 1
        return asked[0] <= count

    return go_on
