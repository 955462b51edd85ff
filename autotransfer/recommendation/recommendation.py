"""The answer of a study."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd

from autotransfer.transfer.config import TransferConfig
from autotransfer.transfer.model import TrainedModel


@dataclass(frozen=True)
class Score:
    """A metric on the test split, with a bootstrap 95% interval.

    Attributes:
        metric: its name.
        value: on the test images.
        low, high: 2.5% and 97.5% quantiles over resampled test images.
        n: number of test images.
    """

    metric: str
    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Recommendation:
    """Which model to transfer, how much of it and how, with the evidence.

    Attributes:
        model: the trained model.
        config: the transfer configuration that it was trained with.
        test: its score on the test split.
        baselines: scores of `majority_class` (`label_frequencies`, `mean_value`), `linear_probe` and
            `from_scratch` on the same test images.
        negative_transfer: verdict, its evidence in a sentence, and the numbers behind it.
        alternatives: the Pareto front of validation score, parameters, megabytes on disk and latency, best score first.
        why: plain sentences backed by numbers.
        sources: every (source, level) with proxies and linear-probe score, best first.
        trials: one row a trial.
        cost: seconds by phase, trials by state.
        study: name of the study; storage and tracking say where it lies.
    """

    model: TrainedModel
    config: TransferConfig
    test: Score
    baselines: Mapping[str, Score]
    negative_transfer: Mapping[str, Any]
    alternatives: Sequence[Mapping[str, Any]]
    why: Sequence[str]
    sources: pd.DataFrame
    trials: pd.DataFrame
    cost: Mapping[str, float]
    study: str
    storage: str
    tracking_uri: str | None
    folder: Path | None = None
    mlflow_command: str | None = None
    mlflow_run_url: str | None = None

    def predict(self, paths: Sequence[str | PathLike[str] | bytes]) -> pd.DataFrame:
        """What the model says about images given as paths or bytes; one row an image."""
        return self.model.predict(paths)

    def to_dict(self) -> dict[str, Any]:
        """Everything but the model and the tables, JSON-able: what `recommendation.json` holds."""
        from dataclasses import asdict

        return {
            "study": self.study,
            "storage": self.storage,
            "tracking_uri": self.tracking_uri,
            "config": self.config.to_dict(),
            "task": self.model.task,
            "classes": list(self.model.classes),
            "test": asdict(self.test),
            "baselines": {name: asdict(score) for name, score in self.baselines.items()},
            "negative_transfer": dict(self.negative_transfer),
            "alternatives": [dict(row) for row in self.alternatives],
            "why": list(self.why),
            "cost": dict(self.cost),
            "folder": str(self.folder) if self.folder else None,
        }

    def save(self, folder: str | PathLike[str]) -> Path:
        """Write the model and the evidence to `folder`; see `autotransfer.recommendation.folder`."""
        from autotransfer.recommendation.folder import save_recommendation

        return save_recommendation(self, Path(folder))
