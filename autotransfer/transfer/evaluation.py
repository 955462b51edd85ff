"""Metrics, by torchmetrics, and bootstrap intervals."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics.functional import classification

from autotransfer.errors import SpaceError


@dataclass(frozen=True)
class Metric:
    """A score of class probabilities against labels.

    Attributes:
        name: what users and MLflow call it.
        greater_is_better: direction of the objective.
        compute: (probabilities [n, C], codes [n]) -> scalar.
    """

    name: str
    greater_is_better: bool
    compute: Callable[[Tensor, Tensor], Tensor]

    def better(self, value: float, than: float) -> bool:
        """True where `value` is the better score."""
        return value > than if self.greater_is_better else value < than

    def __call__(self, probabilities: npt.NDArray[np.floating], codes: npt.NDArray[np.int64]) -> float:
        """The score as a Python float."""
        return float(self.compute(torch.as_tensor(probabilities).float(), torch.as_tensor(codes)))


def _accuracy(probabilities: Tensor, codes: Tensor) -> Tensor:
    return (probabilities.argmax(dim=1) == codes).float().mean()


def _balanced_accuracy(probabilities: Tensor, codes: Tensor) -> Tensor:
    """The mean recall over the classes that are there (a resampled split may lack some)."""
    recalls = classification.multiclass_recall(probabilities, codes, probabilities.shape[1], average="none")
    return recalls[torch.unique(codes)].mean()


def _macro_f1(probabilities: Tensor, codes: Tensor) -> Tensor:
    return classification.multiclass_f1_score(probabilities, codes, probabilities.shape[1], average="macro")


def _auroc(probabilities: Tensor, codes: Tensor) -> Tensor:
    """The mean one-versus-rest AUROC over the classes that are there; 0.5 where there is only one."""
    present = torch.unique(codes)
    if len(present) < 2:
        return torch.tensor(0.5)
    members = (codes[:, None] == present).long()
    return classification.multilabel_auroc(probabilities[:, present], members, len(present), average="macro")


def _log_loss(probabilities: Tensor, codes: Tensor) -> Tensor:
    return torch.nn.functional.nll_loss(probabilities.clamp_min(1e-12).log(), codes)


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", True, _accuracy),
        Metric("balanced_accuracy", True, _balanced_accuracy),
        Metric("macro_f1", True, _macro_f1),
        Metric("auroc", True, _auroc),
        Metric("log_loss", False, _log_loss),
    )
}


def get_metric(name: str) -> Metric:
    """The metric of that name.

    Raises:
        SpaceError: there is none; the message lists the names.
    """
    if name not in METRICS:
        raise SpaceError(f"metric '{name}' is unknown. Choose one of: {', '.join(METRICS)}.")
    return METRICS[name]


def bootstrap_interval(
    metric: Metric,
    probabilities: npt.NDArray[np.floating],
    codes: npt.NDArray[np.int64],
    *,
    resamples: int = 500,
    seed: int = 0,
) -> tuple[float, float]:
    """The 2.5% and 97.5% quantiles of the metric over resampled images (Efron 1979, percentile method)."""
    generator = np.random.default_rng(seed)
    scores = []
    for _ in range(resamples):
        chosen = generator.integers(0, len(codes), len(codes))
        scores.append(metric(probabilities[chosen], codes[chosen]))
    low, high = np.quantile(scores, [0.025, 0.975])
    return float(low), float(high)


def bootstrap_difference(
    metric: Metric,
    ours: npt.NDArray[np.floating],
    theirs: npt.NDArray[np.floating],
    codes: npt.NDArray[np.int64],
    *,
    resamples: int = 500,
    seed: int = 0,
) -> tuple[float, float]:
    """A 95% interval of how much better `ours` is than `theirs` on the same resampled images; > 0 is better."""
    generator = np.random.default_rng(seed)
    sign = 1.0 if metric.greater_is_better else -1.0
    gains = []
    for _ in range(resamples):
        chosen = generator.integers(0, len(codes), len(codes))
        gains.append(sign * (metric(ours[chosen], codes[chosen]) - metric(theirs[chosen], codes[chosen])))
    low, high = np.quantile(gains, [0.025, 0.975])
    return float(low), float(high)
