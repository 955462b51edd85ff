"""The linear probe: a linear model on the fixed features of one level."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning

from autotransfer.task import Task
from autotransfer.transfer.evaluation import prediction_loss

STRENGTHS = (0.01, 0.1, 1.0)
_TOLERANCE = 1e-4
_RANKING_TOLERANCE = 1e-3  # half the time for a quarter of a point of accuracy
_IMPROBABLE = -10.0

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class LinearHead:
    """A linear model on raw features: features @ weight.T + bias.

    Attributes:
        weight: [outputs, D] float32.
        bias: [outputs] float32.
        strength: inverse regularisation strength C that it was fitted with, on standardised features.
        task: what its outputs mean: logits of classes or of labels, or numbers.
    """

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    strength: float
    task: Task = "classification"

    def predict(self, features: Array) -> npt.NDArray[np.float64]:
        """Probabilities of classes or labels, or numbers, [n, outputs], of features [n, D]."""
        outputs: npt.NDArray[np.float64] = features.astype(np.float64) @ self.weight.T.astype(np.float64) + self.bias
        if self.task == "regression":
            return outputs
        if self.task == "multilabel":
            likely: npt.NDArray[np.float64] = 1 / (1 + np.exp(-outputs.clip(-500, 500)))
            return likely
        exponentials = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        normalised: npt.NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
        return normalised


def fit_linear_head(
    features: Array, targets: Array, outputs: int, strength: float, task: Task = "classification"
) -> LinearHead:
    """Fit a linear model with an L2 penalty on standardised features.

    Args:
        features: [n, D].
        targets: class indices [n] (multinomial logistic regression; classes without a sample get a bias that
            makes them improbable), labels 0 or 1 [n, L] (a logistic regression each), or numbers [n, T] (ridge
            regression on standardised numbers).
        outputs: of the head.
        strength: C, the inverse of the penalty; larger means less regularisation.
        task: what the targets are.

    Returns:
        The head, with the standardisation folded into weight and bias.
    """
    (head,) = _fit_path(features, targets, outputs, (strength,), _TOLERANCE, task)
    return head


def best_linear_head(
    train: tuple[Array, Array], val: tuple[Array, Array], outputs: int, task: Task = "classification"
) -> LinearHead:
    """The head over `STRENGTHS` with the lowest loss on the validation features and targets.

    The loss is the log loss, or for numbers the squared error of each by its variance. For ranking many
    candidates: solved less far than `fit_linear_head` solves.
    """
    heads = _fit_path(*train, outputs, STRENGTHS, _RANKING_TOLERANCE, task)
    spread = np.maximum(train[1].std(axis=0), 1e-12) if task == "regression" else 1
    true = val[1] / spread if task == "regression" else val[1]
    losses = [prediction_loss(head.predict(val[0]) / spread, true, task) for head in heads]
    return heads[int(np.argmin(losses))]


def _fit_path(
    features: Array, targets: Array, outputs: int, strengths: tuple[float, ...], tolerance: float, task: Task
) -> list[LinearHead]:
    """One head a strength, in ascending order, each fit started where the one before ended.

    One BLAS thread: the products are small, and a second thread costs more in waiting than it computes.
    """
    from threadpoolctl import threadpool_limits

    values = features.astype(np.float64)
    centre, scale = values.mean(axis=0), values.std(axis=0)
    scale[scale < 1e-12 * max(1.0, float(np.abs(values).max()))] = 1.0
    standardised = ((values - centre) / scale).astype(np.float32)
    fit = {"classification": _fit_classes, "multilabel": _fit_labels, "regression": _fit_numbers}[task]
    heads = []
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 200 steps are as good as it needs to be
        solved = fit(standardised, targets, outputs, strengths, tolerance)
        for strength, (weight, bias) in zip(strengths, solved, strict=True):
            folded = weight / scale
            bias = bias - folded @ centre
            heads.append(LinearHead(folded.astype(np.float32), bias.astype(np.float32), strength, task))
    return heads


Solved = list[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]]


def _fit_classes(
    standardised: Array, codes: Array, outputs: int, strengths: tuple[float, ...], tolerance: float
) -> Solved:
    from sklearn.linear_model import LogisticRegression

    regression = LogisticRegression(max_iter=200, tol=tolerance, warm_start=True)
    solved: Solved = []
    for strength in strengths:
        regression.set_params(C=strength).fit(standardised, codes)
        coefficients, intercepts = regression.coef_.astype(np.float64), regression.intercept_.astype(np.float64)
        if len(regression.classes_) == 2:  # scikit-learn keeps one row for two classes; softmax wants two
            coefficients = np.concatenate([-coefficients / 2, coefficients / 2])
            intercepts = np.concatenate([-intercepts / 2, intercepts / 2])
        weight = np.zeros((outputs, standardised.shape[1]))
        bias = np.full(outputs, float(intercepts.min()) + _IMPROBABLE)
        weight[regression.classes_], bias[regression.classes_] = coefficients, intercepts
        solved.append((weight, bias))
    return solved


def _fit_labels(
    standardised: Array, labels: Array, outputs: int, strengths: tuple[float, ...], tolerance: float
) -> Solved:
    """One logistic regression a label; a label that is always or never there gets a bias alone."""
    from sklearn.linear_model import LogisticRegression

    solved: Solved = [(np.zeros((outputs, standardised.shape[1])), np.zeros(outputs)) for _ in strengths]
    for label in range(outputs):
        column = labels[:, label]
        regression = LogisticRegression(max_iter=200, tol=tolerance, warm_start=True)
        for strength, (weight, bias) in zip(strengths, solved, strict=True):
            if column.min() == column.max():
                bias[label] = -_IMPROBABLE if column[0] else _IMPROBABLE
                continue
            regression.set_params(C=strength).fit(standardised, column)
            weight[label], bias[label] = regression.coef_[0], regression.intercept_[0]
    return solved


def _fit_numbers(
    standardised: Array, numbers: Array, outputs: int, strengths: tuple[float, ...], tolerance: float
) -> Solved:
    from sklearn.linear_model import Ridge

    middle, spread = numbers.mean(axis=0), numbers.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    solved: Solved = []
    for strength in strengths:
        ridge = Ridge(alpha=1 / strength, tol=tolerance).fit(standardised, (numbers - middle) / spread)
        coefficients = np.atleast_2d(ridge.coef_).astype(np.float64)
        solved.append((coefficients * spread[:, None], np.atleast_1d(ridge.intercept_) * spread + middle))
    return solved
