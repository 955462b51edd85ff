"""The linear probe: logistic regression on the fixed features of one level."""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.exceptions import ConvergenceWarning

STRENGTHS = (0.01, 0.1, 1.0)
_TOLERANCE = 1e-4
_RANKING_TOLERANCE = 1e-3  # half the time for a quarter of a point of accuracy


@dataclass(frozen=True)
class LinearHead:
    """A classifier on raw features: logits = features @ weight.T + bias.

    Attributes:
        weight: [num_classes, D] float32.
        bias: [num_classes] float32.
        strength: inverse regularisation strength C that it was fitted with, on standardised features.
    """

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]
    strength: float

    def probabilities(self, features: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Class probabilities [n, num_classes] of features [n, D]."""
        logits = features.astype(np.float64) @ self.weight.T.astype(np.float64) + self.bias
        logits -= logits.max(axis=1, keepdims=True)
        exponentials = np.exp(logits)
        normalised: npt.NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
        return normalised


def fit_linear_head(
    features: npt.NDArray[Any], codes: npt.NDArray[np.int64], num_classes: int, strength: float
) -> LinearHead:
    """Fit multinomial logistic regression with an L2 penalty on standardised features.

    Args:
        features: [n, D].
        codes: [n] class indices; classes without a sample get a bias that makes them improbable.
        num_classes: outputs of the head.
        strength: C, the inverse of the penalty; larger means less regularisation.

    Returns:
        The head, with the standardisation folded into weight and bias.
    """
    (head,) = _fit_path(features, codes, num_classes, (strength,), _TOLERANCE)
    return head


def best_linear_head(
    train: tuple[npt.NDArray[Any], npt.NDArray[np.int64]],
    val: tuple[npt.NDArray[Any], npt.NDArray[np.int64]],
    num_classes: int,
) -> LinearHead:
    """The head over `STRENGTHS` with the lowest log loss on the validation features and codes.

    For ranking many candidates: solved less far than `fit_linear_head` solves.
    """
    heads = _fit_path(*train, num_classes, STRENGTHS, _RANKING_TOLERANCE)
    losses = [_log_loss(head.probabilities(val[0]), val[1]) for head in heads]
    return heads[int(np.argmin(losses))]


def _fit_path(
    features: npt.NDArray[Any],
    codes: npt.NDArray[np.int64],
    num_classes: int,
    strengths: tuple[float, ...],
    tolerance: float,
) -> list[LinearHead]:
    """One head a strength, in ascending order, each fit started where the one before ended.

    One BLAS thread: the products are small, and a second thread costs more in waiting than it computes.
    """
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    values = features.astype(np.float64)
    centre, scale = values.mean(axis=0), values.std(axis=0)
    scale[scale < 1e-12 * max(1.0, float(np.abs(values).max()))] = 1.0
    standardised = ((values - centre) / scale).astype(np.float32)
    regression = LogisticRegression(max_iter=200, tol=tolerance, warm_start=True)
    heads = []
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 200 steps are as good as it needs to be
        for strength in strengths:
            regression.set_params(C=strength).fit(standardised, codes)
            heads.append(_folded(regression, centre, scale, num_classes, strength))
    return heads


def _folded(
    regression: Any, centre: npt.NDArray[np.float64], scale: npt.NDArray[np.float64], num_classes: int, strength: float
) -> LinearHead:
    """The fitted regression as a head on raw features."""
    coefficients, intercepts = regression.coef_.astype(np.float64), regression.intercept_.astype(np.float64)
    if len(regression.classes_) == 2:  # scikit-learn keeps one row for two classes; softmax wants two
        coefficients = np.concatenate([-coefficients / 2, coefficients / 2])
        intercepts = np.concatenate([-intercepts / 2, intercepts / 2])
    weight = np.zeros((num_classes, len(centre)))
    bias = np.full(num_classes, float(intercepts.min()) - 10.0)
    weight[regression.classes_] = coefficients / scale
    bias[regression.classes_] = intercepts - (coefficients / scale) @ centre
    return LinearHead(weight.astype(np.float32), bias.astype(np.float32), strength)


def _log_loss(probabilities: npt.NDArray[np.float64], codes: npt.NDArray[np.int64]) -> float:
    picked = probabilities[np.arange(len(codes)), codes]
    return float(-np.log(np.maximum(picked, 1e-12)).mean())
