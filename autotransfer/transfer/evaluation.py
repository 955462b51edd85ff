"""Metrics, by torchmetrics, and bootstrap intervals."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchmetrics.functional import classification, regression

from autotransfer.errors import SpaceError
from autotransfer.task import Task

Predictions = npt.NDArray[np.floating]
Targets = npt.NDArray[Any]


@dataclass(frozen=True)
class Metric:
    """A score of predictions against what is true.

    Attributes:
        name: what users and MLflow call it.
        greater_is_better: direction of the objective.
        compute: (predictions [n, outputs], targets) -> scalar. Classification: class probabilities and codes [n].
            Multilabel: label probabilities and labels 0 or 1, [n, L]. Regression: numbers, [n, T] both.
        task: what it is a metric of.
    """

    name: str
    greater_is_better: bool
    compute: Callable[[Tensor, Tensor], Tensor]
    task: Task = "classification"

    def better(self, value: float, than: float) -> bool:
        """True where `value` is the better score."""
        return value > than if self.greater_is_better else value < than

    def __call__(self, predictions: Predictions, targets: Targets) -> float:
        """The score as a Python float."""
        return float(self.compute(torch.as_tensor(predictions).float(), torch.as_tensor(targets)))


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


def _calibration_error(probabilities: Tensor, codes: Tensor) -> Tensor:
    """The expected calibration error over 15 bins of the highest probability (Guo et al., 2017)."""
    return classification.multiclass_calibration_error(probabilities, codes, probabilities.shape[1], n_bins=15)


def _mean_over_labels(
    of_one: Callable[[Tensor, Tensor], Tensor], otherwise: float | None = None
) -> Callable[[Tensor, Tensor], Tensor]:
    """The mean of a metric of one label over all, or over those that are on some images and not on all.

    `otherwise` is what the metric is said to be where none is such.
    """

    def mean(probabilities: Tensor, labels: Tensor) -> Tensor:
        varies = (labels != labels[0]).any(dim=0).tolist()
        columns = [i for i, there in enumerate(varies) if there or otherwise is None]
        scores = [of_one(probabilities[:, i], labels[:, i]) for i in columns]
        return torch.stack(scores).mean() if scores else torch.tensor(otherwise)

    return mean


def _label_accuracy(probabilities: Tensor, labels: Tensor) -> Tensor:
    return ((probabilities >= 0.5) == (labels == 1)).float().mean()


def _label_log_loss(probabilities: Tensor, labels: Tensor) -> Tensor:
    return torch.nn.functional.binary_cross_entropy(probabilities.clamp(1e-12, 1 - 1e-7), labels.float())


def _r2(predicted: Tensor, numbers: Tensor) -> Tensor:
    """The mean over the numbers of 1 - squared error / variance; 0 where one does not vary."""
    error = ((predicted - numbers) ** 2).mean(dim=0)
    variance = ((numbers - numbers.mean(dim=0)) ** 2).mean(dim=0)
    return torch.where(variance > 0, 1 - error / variance.clamp_min(1e-30), 0.0).mean()


def _mae(predicted: Tensor, numbers: Tensor) -> Tensor:
    return regression.mean_absolute_error(predicted, numbers)


def _rmse(predicted: Tensor, numbers: Tensor) -> Tensor:
    return regression.mean_squared_error(predicted, numbers, squared=False)


METRICS = (
    Metric("accuracy", True, _accuracy),
    Metric("balanced_accuracy", True, _balanced_accuracy),
    Metric("macro_f1", True, _macro_f1),
    Metric("auroc", True, _auroc),
    Metric("log_loss", False, _log_loss),
    Metric("calibration_error", False, _calibration_error),
    Metric("average_precision", True, _mean_over_labels(classification.binary_average_precision, 0.0), "multilabel"),
    Metric("accuracy", True, _label_accuracy, "multilabel"),
    Metric("macro_f1", True, _mean_over_labels(classification.binary_f1_score), "multilabel"),
    Metric("auroc", True, _mean_over_labels(classification.binary_auroc, 0.5), "multilabel"),
    Metric("log_loss", False, _label_log_loss, "multilabel"),
    Metric("r2", True, _r2, "regression"),
    Metric("mae", False, _mae, "regression"),
    Metric("rmse", False, _rmse, "regression"),
)
METRIC_NAMES = tuple(dict.fromkeys(metric.name for metric in METRICS))
DEFAULT_METRICS: dict[Task, str] = {
    "classification": "accuracy",
    "multilabel": "average_precision",
    "regression": "r2",
}


def get_metric(name: str = "auto", task: Task = "classification") -> Metric:
    """The metric of that name for a task; `auto` is the task's usual one.

    Raises:
        SpaceError: there is none; the message lists the names.
    """
    wanted = DEFAULT_METRICS[task] if name == "auto" else name
    fitting = {metric.name: metric for metric in METRICS if metric.task == task}
    if wanted not in fitting:
        unknown = "is unknown" if name not in METRIC_NAMES else f"is not one of {task}"
        raise SpaceError(f"metric '{name}' {unknown}. Choose one of: {', '.join(fitting)}.")
    return fitting[wanted]


def prediction_loss(predictions: Predictions, targets: Targets, task: Task) -> float:
    """The mean negative log-likelihood of classes or labels; the mean squared error of numbers."""
    if task == "regression":
        return float(((predictions - targets) ** 2).mean())
    if task == "multilabel":
        right = np.where(targets == 1, predictions, 1 - predictions)
    else:
        right = predictions[np.arange(len(targets)), targets]
    return float(-np.log(np.maximum(right, 1e-12)).mean())


def bootstrap_interval(
    metric: Metric,
    predictions: Predictions,
    targets: Targets,
    *,
    resamples: int = 500,
    seed: int = 0,
) -> tuple[float, float]:
    """The 2.5% and 97.5% quantiles of the metric over resampled images (Efron 1979, percentile method)."""
    generator = np.random.default_rng(seed)
    scores = []
    for _ in range(resamples):
        chosen = generator.integers(0, len(targets), len(targets))
        scores.append(metric(predictions[chosen], targets[chosen]))
    low, high = np.quantile(scores, [0.025, 0.975])
    return float(low), float(high)


def bootstrap_difference(
    metric: Metric,
    ours: Predictions,
    theirs: Predictions,
    targets: Targets,
    *,
    resamples: int = 500,
    seed: int = 0,
) -> tuple[float, float]:
    """A 95% interval of how much better `ours` is than `theirs` on the same resampled images; > 0 is better."""
    generator = np.random.default_rng(seed)
    sign = 1.0 if metric.greater_is_better else -1.0
    gains = []
    for _ in range(resamples):
        chosen = generator.integers(0, len(targets), len(targets))
        gains.append(sign * (metric(ours[chosen], targets[chosen]) - metric(theirs[chosen], targets[chosen])))
    low, high = np.quantile(gains, [0.025, 0.975])
    return float(low), float(high)
