"""GBC: how much the classes overlap when each is one Gaussian."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from autotransfer.proxies.statistics import FeatureStatistics

_COMPONENTS = 64
_VARIANCE_FLOOR = 1e-4


@dataclass(frozen=True)
class ClassGaussians:
    """Mean and per-dimension variance of each class, [C, d] float64; variances are at least 1e-4."""

    means: torch.Tensor
    variances: torch.Tensor


def class_gaussians(rows: torch.Tensor, labels: torch.Tensor, counts: torch.Tensor) -> ClassGaussians:
    """Fit one axis-aligned Gaussian (maximum likelihood) to each class of [n, d] rows."""
    zeros = torch.zeros(len(counts), rows.shape[1], dtype=torch.float64, device=rows.device)
    means = zeros.index_add(0, labels, rows) / counts[:, None]
    variances = zeros.index_add(0, labels, (rows - means[labels]).square()) / counts[:, None]
    return ClassGaussians(means, variances.clamp_min(_VARIANCE_FLOOR))


def gbc(statistics: FeatureStatistics) -> float:
    """Gaussian Bhattacharyya coefficient, diagonal Gaussians (Pandy et al., CVPR 2022).

    On the first min(64, n, D) principal components, with class means m_c and variances v_c per dimension:

        D_B(i, j) = sum_d (m_i - m_j)^2 / (8 v) + 1/2 log(v / sqrt(v_i v_j)),   v = (v_i + v_j) / 2
        GBC = - sum_{i != j} exp(-D_B(i, j))          (ordered pairs)

    Args:
        statistics: n x D features with classes.

    Returns:
        In [-C (C - 1), 0]; higher (nearer 0) is better; -C (C - 1) for constant features.

    Complexity: the shared decomposition, n D 64 for the projection, C^2 64.

    Invariant to sample order, class renaming and rotation; not to scaling, because variances are floored at
    1e-4. Misleads where classes hold few samples (one sample looks like a point; under 128 samples noise of
    any width looks separated).
    """
    return bhattacharyya_score(_fit(statistics))


def gbc_spherical(statistics: FeatureStatistics) -> float:
    """GBC with spherical Gaussians: the configuration that its authors publish (Pandy et al., CVPR 2022).

    As `gbc` with one variance v_c per class, the mean of its (floored) variances, and the determinant term
    counted once instead of once per dimension:

        D_B(i, j) = |m_i - m_j|^2 / (8 v) + 1/2 log(v / sqrt(v_i v_j))

    Args:
        statistics: n x D features with classes.

    Returns:
        In [-C (C - 1), 0]; higher (nearer 0) is better; -C (C - 1) for constant features.

    Complexity: the shared decomposition, n D 64 for the projection, C^2 64.

    Invariant as `gbc`. Misleads as `gbc`, and where classes differ in shape.
    """
    gaussians = _fit(statistics)
    spherical = gaussians.variances.mean(1)
    squares = torch.cdist(gaussians.means, gaussians.means, compute_mode="donot_use_mm_for_euclid_dist").square()
    middle = (spherical[:, None] + spherical[None, :]) / 2
    spread = middle.log() - 0.5 * (spherical.log()[:, None] + spherical.log()[None, :])
    return _overlap(squares / (8 * middle) + 0.5 * spread)


def bhattacharyya_score(gaussians: ClassGaussians) -> float:
    """- sum over ordered pairs of exp(-Bhattacharyya distance) of diagonal Gaussians."""
    means, variances = gaussians.means, gaussians.variances
    distances = []
    for mean, variance in zip(means, variances, strict=True):
        middle = (variances + variance) / 2
        spread = middle.log() - 0.5 * (variances.log() + variance.log())
        distances.append(((means - mean).square() / (8 * middle) + 0.5 * spread).sum(1))
    return _overlap(torch.stack(distances))


def _fit(statistics: FeatureStatistics) -> ClassGaussians:
    rows = statistics.principal_components(_COMPONENTS)
    return class_gaussians(rows, statistics.labels, statistics.counts)


def _overlap(distances: torch.Tensor) -> float:
    coefficients = torch.exp(-distances)
    return -float(coefficients.sum() - coefficients.diagonal().sum())
