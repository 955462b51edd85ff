"""Linear probes in closed form: ridge regression scored leave-one-out, and LinMSE."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from autotransfer.proxies.statistics import FeatureStatistics

Fit = tuple[slice, torch.Tensor, torch.Tensor]
"""Rows, their fitted targets [k, T] and their leverages H_nn [k]."""

_PENALTIES = tuple(10.0**power for power in range(-6, 5))
_LEAST_SLACK = 1e-9
_LEAST_RELATIVE_PENALTY = 1e-13
_PANEL_COLUMNS = 256
_AMPLE_SAMPLES = 3
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

    Complexity: the shared decomposition, n D^2 for H_nn (n <= D: n^3), n D T for H Y.

    Invariant to sample order, class renaming, rotation and overall scaling (unless `penalty` is given), not
    to scaling single features. Misleads least of all here where n is small, being an honest error estimate.
    """
    targets = statistics.targets
    ridge = penalty if penalty is not None else _chosen_penalty(statistics)
    actual = targets.dense()
    left_out = torch.empty_like(actual)
    fits = _fits_by_samples(statistics, ridge) if statistics.wide else _fits_by_features(statistics, ridge)
    for rows, fitted, leverage in fits:
        slack = (1 - leverage[:, None]).clamp_min(_LEAST_SLACK)
        left_out[rows] = actual[rows] - (actual[rows] - fitted) / slack
    if targets.task == "classification":
        return float((left_out.argmax(1) == statistics.labels).to(torch.float64).mean())
    return _mean_r_squared(actual[:, targets.varying], left_out[:, targets.varying])


def _fits_by_samples(statistics: FeatureStatistics, ridge: float) -> Iterator[Fit]:
    """H = 1/n + U Theta / (Theta + lambda) U', from the n x n decomposition."""
    spectrum = statistics.spectrum
    theta = spectrum.eigenvalues
    vectors = statistics.left_vectors
    kept = theta / (theta + ridge)
    fitted = statistics.targets.mean + vectors @ (kept[:, None] * spectrum.cross / theta.sqrt()[:, None])
    yield slice(0, statistics.samples), fitted, 1 / statistics.samples + vectors.square() @ kept


def _fits_by_features(statistics: FeatureStatistics, ridge: float) -> Iterator[Fit]:
    """H_nn = 1/n + |L^-1 x_n|^2 with Xc'Xc + lambda = L L': half the work of a product with eigenvectors."""
    damped = statistics.gram.clone()
    damped.diagonal().add_(max(ridge, _LEAST_RELATIVE_PENALTY * statistics.total_variation, _LEAST_VARIANCE))
    lower = torch.linalg.cholesky(damped)
    weights = torch.cholesky_solve(statistics.cross, lower)
    deviation = max(statistics.total_variation / statistics.samples, _LEAST_VARIANCE) ** 0.5
    identity = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
    ample = statistics.samples >= _AMPLE_SAMPLES * statistics.dimension  # else leverages near 1 need all digits
    precision = statistics.dtype if ample else torch.float64
    whitening = torch.linalg.solve_triangular(lower, identity, upper=False).T.mul(deviation).to(precision)
    for rows, block in statistics.centred_chunks():
        fitted = statistics.targets.mean + block @ weights
        # the one large product, only where the triangle is not zero
        scaled = block.div_(deviation).to(whitening.dtype)
        leverage = torch.full_like(fitted[:, 0], 1 / statistics.samples)
        for start in range(0, statistics.dimension, _PANEL_COLUMNS):
            stop = start + _PANEL_COLUMNS
            panel = scaled[:, :stop] @ whitening[:stop, start:stop]
            leverage += panel.square_().sum(1, dtype=torch.float64)
        yield rows, fitted, leverage


def linear_mse(statistics: FeatureStatistics, penalty: float = 0.0) -> float:
    """LinMSE: negated error of the best regularised affine fit (Mensink et al., TPAMI 2021).

        - min_{A, b} 1/n |Y - X A - b|_F^2 + penalty |A|_F^2

    Args:
        statistics: n x D features with any target.
        penalty: of the squared weights, at least 0.

    Returns:
        At most 0; higher is better; minus the target's variance for constant features.

    Complexity: the shared decomposition, then O(r T). Misleads where n is not far above D (it is no estimate of
    what new samples cost).
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
    press = (actual - left_out).square().sum(0)
    return float((1 - press / variation).mean())
