"""SFDA: self-challenging Fisher discriminant analysis."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from autotransfer.proxies.gram import symmetric_product
from autotransfer.proxies.statistics import FeatureStatistics

_LEAST_SHRINKAGE = 1e-10
_POWER_STEPS = 3
_SMALLEST = 1e-300
_ROUNDING = 1e-13


@dataclass(frozen=True)
class _Discriminant:
    """Linear class scores x @ weights + offsets."""

    weights: torch.Tensor
    offsets: torch.Tensor


def sfda(statistics: FeatureStatistics) -> float:
    """SFDA (Shao et al., ECCV 2022).

    Stage 1: regularised linear discriminant analysis, Sw = sum_c (n_c / n) cov_c,

        s = max(exp(-5 lambda_max(Sw)), 1e-10),   A = (1 - s) Sw + s tr(Sw) / D I
        P = softmax_c(x' A^-1 m_c - 1/2 m_c' A^-1 m_c + log(n_c / n))

    ConfMix makes it hard on itself: with q = softmax(P)[n, y_n], x <- q x + (1 - q) (mean of the other
    class means). Stage 2 fits the discriminant again on the mixed rows, s unchanged, and

        SFDA = mean_n P2[n, y_n]

    lambda_max comes from three double power steps, as its authors do.

    Args:
        statistics: n x D features with classes.

    Returns:
        In (0, 1]; higher is better; the squared class frequencies, summed, where nothing varies within
        classes and between them.

    Complexity: one more weighted Gram matrix (n D^2), two Cholesky factors (D^3 / 3), 2 n D C.

    Invariant to sample order and class renaming; to rotation but for the power steps, which start at the
    all-ones direction; not to scaling (s falls with the variance).
    Misleads where n < D (the stages overfit) and on features so small that s nears 1.
    """
    counts, offsets = statistics.counts, statistics.class_offsets
    within = statistics.within_scatter / statistics.samples
    intensity = max(math.exp(-5 * _largest_eigenvalue(within)), _LEAST_SHRINKAGE)
    first = _fit(within, intensity, offsets, counts)
    others = (offsets.sum(0) - offsets) / (len(counts) - 1)
    confidence = torch.empty(statistics.samples, dtype=torch.float64, device=statistics.device)
    sums, pulled = torch.zeros_like(offsets), torch.zeros_like(offsets)

    def confident_blocks() -> Iterator[torch.Tensor]:
        for rows, block in statistics.centred_chunks():
            posterior = torch.softmax(torch.addmm(first.offsets, block, first.weights), 1)
            own = _own(torch.softmax(posterior, 1), statistics.labels[rows])  # twice, as published
            confidence[rows] = own
            block.mul_(own[:, None])
            statistics.targets.add_products(sums, block, rows)
            statistics.targets.add_products(pulled, block * (1 - own)[:, None], rows)
            yield block

    # The rows q x + (1 - q) o, o the same for a class, are never built: their scatter is that of q x and class sums.
    product = symmetric_product(confident_blocks(), statistics.dimension, statistics.device)
    doubt = torch.zeros_like(counts).index_add_(0, statistics.labels, 1 - confidence)
    doubt_squares = torch.zeros_like(counts).index_add_(0, statistics.labels, (1 - confidence).square())
    means = (sums + others * doubt[:, None]) / counts[:, None]
    product.addmm_(pulled.T, others).addmm_(others.T, pulled + others * doubt_squares[:, None])
    product.addmm_((means * counts[:, None]).T, means, alpha=-1).div_(statistics.samples)
    second = _fit(product, intensity, means, counts)
    others_scores = others @ second.weights
    total = 0.0
    for rows, block in statistics.centred_chunks():
        labels, own = statistics.labels[rows], confidence[rows, None]
        scores = (block @ second.weights).mul_(own)
        scores += (1 - own) * others_scores[labels] + second.offsets
        total += float(_own(torch.softmax(scores, 1), labels).sum())
    return total / statistics.samples


def _largest_eigenvalue(matrix: torch.Tensor) -> float:
    """Three double power steps from the row sums, as published (an estimate, not the exact value)."""
    start = matrix.sum(1)
    if float(start.abs().max()) == 0:
        return 0.0
    left = right = start / start.abs().max()  # unscaled, its square may overflow
    for _ in range(_POWER_STEPS):
        left = torch.nn.functional.normalize(matrix @ right, dim=0, eps=_SMALLEST)
        right = torch.nn.functional.normalize(matrix @ left, dim=0, eps=_SMALLEST)
    return float(right @ matrix @ left)


def _fit(within: torch.Tensor, intensity: float, means: torch.Tensor, counts: torch.Tensor) -> _Discriminant:
    """Discriminant of class means [C, D] under the shrunk within-class covariance."""
    between = float((counts @ means.square()).sum()) / (float(counts.sum()) * len(within))
    spread = float(within.trace()) / len(within)
    if spread <= _ROUNDING * between:  # nothing varies within classes: what is left is rounding
        within, spread = torch.zeros_like(within), 0.0
    shrunk = (1 - intensity) * within
    shrunk.diagonal().add_(max(intensity * spread, _LEAST_SHRINKAGE**2 * between) or 1.0)
    factor, failed = torch.linalg.cholesky_ex(shrunk)
    floor = _LEAST_SHRINKAGE * max(spread, _LEAST_SHRINKAGE * between, _SMALLEST)
    while int(failed):
        shrunk.diagonal().add_(floor)
        floor *= 100
        factor, failed = torch.linalg.cholesky_ex(shrunk)
    weights = torch.cholesky_solve(means.T, factor)
    offsets = (counts / counts.sum()).log() - 0.5 * (weights * means.T).sum(0)
    return _Discriminant(weights, offsets)


def _own(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return values.gather(1, labels[:, None])[:, 0]
