"""LogME: log of the maximum evidence of a Bayesian linear model (You et al., ICML 2021; JMLR 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from autotransfer.proxies.statistics import FeatureStatistics

_STEPS = 11
_GUARD = 1e-5
_TOLERANCE = 1e-3
_SMALLEST = 1e-12


@dataclass(frozen=True)
class _Fit:
    """Per target column at its lambda: effective dimensions gamma, |m|^2 and |t - Xm|^2."""

    gamma: torch.Tensor
    weight_squares: torch.Tensor
    residual: torch.Tensor


def logme(statistics: FeatureStatistics) -> float:
    """Log evidence per sample of a linear model with Gaussian prior and noise, mean over target columns.

    For each target column t [n] (a one-vs-rest 0/1 indicator for classes, a label or a real value
    otherwise), with weights w ~ N(0, 1/alpha), t ~ N(Xw, 1/beta), no bias, and lambda = alpha / beta:

        m = (X'X + lambda)^-1 X't                 gamma = D - lambda tr (X'X + lambda)^-1
        alpha <- gamma / (|m|^2 + 1e-5)           beta <- (n - gamma) / (|t - Xm|^2 + 1e-5)

    starting at alpha = beta = 1, at most 11 steps, stopped when lambda changes by 0.1 % or less; then, with
    the m of the last step,

        logme = [D/2 log alpha + n/2 log beta - 1/2 log|alpha + beta X'X| - beta/2 |t - Xm|^2
                 - alpha/2 |m|^2 - n/2 log 2 pi] / n

    This is the authors' fixed-point algorithm (JMLR 2022) with the determinant over all D dimensions. It is
    evaluated in the eigenbasis of the centred Gram matrix, the mean entering as a rank-one term, so it
    shares its decomposition with every other proxy and does not lose digits where the mean dominates.

    Args:
        statistics: n x D features with classes, label sets or real-valued targets.

    Returns:
        A finite float, unbounded on both sides; higher is better. All-equal rows give the evidence of a
        constant fit.

    Complexity: the shared decomposition, then O(11 min(n, D) T).

    Invariant to sample order, class renaming and rotation of features; not to scaling (lambda starts at 1 and
    the guards are absolute), though at the fixed point scale cancels. Misleads where n < D (it is then
    close to noise) and between targets with different class counts.
    """
    samples, dimension = statistics.samples, statistics.dimension
    ridge = torch.ones(statistics.targets.columns, dtype=torch.float64, device=statistics.device)
    evidence = torch.full_like(ridge, -math.inf)
    active = torch.ones_like(ridge, dtype=torch.bool)
    for _ in range(_STEPS):
        fit = _fit(statistics, ridge)
        alpha = fit.gamma.clamp_min(_SMALLEST) / (fit.weight_squares + _GUARD)
        beta = (samples - fit.gamma).clamp_min(samples * _SMALLEST) / (fit.residual + _GUARD)
        updated = alpha / beta
        log_evidence = (
            0.5 * dimension * updated.log()
            + 0.5 * samples * beta.log()
            - 0.5 * _log_determinant(statistics, updated)
            - 0.5 * beta * fit.residual
            - 0.5 * alpha * fit.weight_squares
            - 0.5 * samples * math.log(2 * math.pi)
        )
        evidence = torch.where(active, log_evidence / samples, evidence)
        active = active & ((updated - ridge).abs() > _TOLERANCE * ridge)
        if not bool(active.any()):
            break
        ridge = torch.where(active, updated, ridge)
    return float(evidence[statistics.targets.varying].mean())


def _fit(statistics: FeatureStatistics, ridge: torch.Tensor) -> _Fit:
    """Ridge solution of every target column at its own lambda [T], through the centred spectrum.

    X'X = W Theta W' + n m m'. With p = W'Xc't, g = m'W (Theta + lambda)^-1 p and
    a = m'(Xc'Xc + lambda)^-1 m, the Sherman-Morrison formula leaves sums of squares only.
    """
    spectrum, targets, samples = statistics.spectrum, statistics.targets, statistics.samples
    theta = spectrum.eigenvalues[:, None]
    mean = spectrum.mean[:, None]
    cross = spectrum.cross
    shifted = theta + ridge
    leverage = (mean**2 / shifted).sum(0) + spectrum.mean_remainder / ridge
    damping = 1 + samples * leverage
    offset = (targets.mean - (mean * cross / shifted).sum(0)) / damping
    pull = samples * offset
    weights = (cross + mean * pull) / shifted
    weight_squares = (weights**2).sum(0) + pull**2 * spectrum.mean_remainder / ridge**2
    fitted = cross / theta.sqrt()
    outside = (targets.scatter.diagonal() - (fitted**2).sum(0)).clamp_min(0)
    inside = (((ridge * fitted - theta.sqrt() * mean * pull) / shifted) ** 2).sum(0)
    residual = outside + inside + samples * offset**2
    leverage_squared = (mean**2 / shifted**2).sum(0) + spectrum.mean_remainder / ridge**2
    gamma = (theta / shifted).sum(0) + ridge * samples / damping * leverage_squared
    return _Fit(gamma, weight_squares, residual)


def _log_determinant(statistics: FeatureStatistics, ridge: torch.Tensor) -> torch.Tensor:
    """log|X'X + lambda I| for every lambda [T]."""
    spectrum = statistics.spectrum
    shifted = spectrum.eigenvalues[:, None] + ridge
    leverage = (spectrum.mean[:, None] ** 2 / shifted).sum(0) + spectrum.mean_remainder / ridge
    null = statistics.dimension - len(spectrum.eigenvalues)
    return shifted.log().sum(0) + null * ridge.log() + (1 + statistics.samples * leverage).log()
