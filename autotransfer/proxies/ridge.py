"""Linear probes in closed form: ridge regression scored leave-one-out, and LinMSE."""

from __future__ import annotations

import torch

from autotransfer.proxies.statistics import FeatureStatistics

_PENALTIES = tuple(10.0**power for power in range(-6, 5))
_LEAST_SLACK = 1e-9
_LEAST_VARIANCE = 1e-300


def ridge_loo(statistics: FeatureStatistics, penalty: float | None = None) -> float:
    """Leave-one-out score of a ridge classifier or regression with free intercept.

    With H = 1/n + Xc (Xc'Xc + lambda)^-1 Xc', the prediction for sample n without that sample is

        y_n - (y_n - (H Y)_n) / (1 - H_nn)          (Allen, Technometrics 1974; exact)

    Classes are one-hot columns and the largest prediction wins: the score is accuracy. Label sets and real
    values score R^2 = 1 - PRESS / variation, mean over the columns that vary.

    Args:
        statistics: n x D features with any target.
        penalty: lambda; None takes, among 1e-6 .. 1e4 times the mean eigenvalue, the least generalised
            cross-validation error (Golub, Heath, Wahba, Technometrics 1979), read from the spectrum.

    Returns:
        Accuracy in [0, 1], or R^2 at most 1; higher is better. Constant features give the accuracy of the
        other samples' majority, or an R^2 just under 0.

    Complexity: the shared decomposition, n D r for H_nn, n D T for H Y.

    Invariant to sample order, class renaming, rotation and overall scaling (unless `penalty` is given), not
    to scaling single features. Misleads least of all here where n is small, being an honest error estimate.
    """
    spectrum, targets = statistics.spectrum, statistics.targets
    ridge = penalty if penalty is not None else _chosen_penalty(statistics)
    shrunk = 1 / (spectrum.eigenvalues + ridge)
    weights = spectrum.basis @ (shrunk[:, None] * spectrum.cross)
    deviation = max(statistics.total_variation / statistics.samples, _LEAST_VARIANCE) ** 0.5
    half = (spectrum.basis * (shrunk.sqrt() * deviation)).to(statistics.dtype)
    actual = targets.dense()
    left_out = torch.empty_like(actual)
    for rows, block in statistics.centred_chunks():
        whitened = (block / deviation).to(half.dtype) @ half  # the one large product: in the input's precision
        leverage = 1 / statistics.samples + whitened.square().sum(1, keepdim=True, dtype=torch.float64)
        fitted = targets.mean + block @ weights
        left_out[rows] = actual[rows] - (actual[rows] - fitted) / (1 - leverage).clamp_min(_LEAST_SLACK)
    if targets.task == "classification":
        return float((left_out.argmax(1) == statistics.labels).to(torch.float64).mean())
    return _mean_r_squared(actual, left_out)


def linear_mse(statistics: FeatureStatistics, penalty: float = 0.0) -> float:
    """LinMSE: negated error of the best regularised affine fit (Mensink et al., TPAMI 2021).

        - min_{A, b} 1/n |Y - X A - b|_F^2 + penalty |A|_F^2

    Complexity: the shared decomposition, then O(r T).
    """
    spectrum, targets = statistics.spectrum, statistics.targets
    explained = (spectrum.cross.square() / (spectrum.eigenvalues + statistics.samples * penalty)[:, None]).sum()
    return -float(targets.scatter.trace() - explained) / statistics.samples


def _chosen_penalty(statistics: FeatureStatistics) -> float:
    """Take the lambda with the least generalised cross-validation error n RSS / (n - freedom)^2."""
    theta = statistics.spectrum.eigenvalues
    if not len(theta):
        return 1.0
    mean = float(theta.sum()) / statistics.dimension
    squares = statistics.spectrum.cross.square().sum(1)
    outside = float(statistics.targets.scatter.trace() - (squares / theta).sum())
    best, best_error = 1.0, float("inf")
    for penalty in (factor * mean for factor in _PENALTIES):
        freedom = statistics.samples - 1 - float((theta / (theta + penalty)).sum())
        residual = max(outside, 0.0) + float((squares / theta * (penalty / (theta + penalty)).square()).sum())
        error = residual / max(freedom, _LEAST_SLACK) ** 2
        if error < best_error:
            best, best_error = penalty, error
    return best


def _mean_r_squared(actual: torch.Tensor, left_out: torch.Tensor) -> float:
    variation = (actual - actual.mean(0)).square().sum(0)
    varies = variation > 0
    press = (actual - left_out).square().sum(0)
    return float((1 - press[varies] / variation[varies]).mean())
