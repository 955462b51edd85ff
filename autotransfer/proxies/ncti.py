"""NCTI: how near the features are to neural collapse."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from autotransfer.proxies.statistics import FeatureStatistics

_COMPONENTS = 64
_LEADING = 32
_LEAST_SHRINKAGE = 1e-10
_RELATIVE_CUT = 1e-10


@dataclass(frozen=True)
class CollapseComponents:
    """The three measurements of NCTI.

    Attributes:
        seli: Nuclear norm of the centred discriminant projection; higher is better.
        ncc: Mean posterior probability of the own class, by nearest centre; higher is better.
        log_variability: Log of the nuclear norms of the class posteriors, summed; lower is better.
    """

    seli: float
    ncc: float
    log_variability: float


def ncti(statistics: FeatureStatistics) -> float:
    """Neural-collapse transferability index (Wang, Zhao, Luo, Li, Zhang, ICCV 2023), on an absolute scale.

    The paper rescales its three components to [0, 1] over a pool of models, which gives no value for one
    model. Here each is put on [0, 1] by its own bounds (k discriminant directions, N = n samples):

        seli' = 1 - sqrt(N) k / seli        (0: classes coincide, 1: far apart)
        var'  = exp(log_variability) / sum_c sqrt(n_c min(n_c, C))
        NCTI  = seli' + ncc - var'

    `collapse_components` gives the published three for those who rescale over a pool.

    Args:
        statistics: n x D features with classes.

    Returns:
        In [-1, 2]; higher is better; sum_c (n_c / n)^2 minus var' for constant features.

    Complexity: the shared decomposition, n D 64, and per class one C x C eigenvalue problem.

    Invariant to sample order, class renaming and rotation; nearly so to scaling (the shrinkage depends on the
    variance). Misleads where n is under a few times 64.
    """
    parts = collapse_components(statistics)
    directions = min(statistics.classes - 1, _COMPONENTS, statistics.dimension, statistics.samples - 1)
    separation = max(0.0, 1 - math.sqrt(statistics.samples) * directions / parts.seli) if parts.seli > 0 else 0.0
    bound = (statistics.counts * statistics.counts.clamp_max(statistics.classes)).sqrt().sum()
    return separation + parts.ncc - math.exp(parts.log_variability) / float(bound)


def collapse_components(statistics: FeatureStatistics) -> CollapseComponents:
    """The three components as published, on the first min(64, n, D) principal components Z.

    t = max(exp(- sum of the leading 32 variances of Z), 1e-10)
    Sw = sum_c (n_c / n) cov_c,   Sigma = (1 - t) Sw + t tr(Sw) / d I   (Sb shrunk alike)
    P = softmax_c(z' Sigma^-1 m_c - 1/2 m_c' Sigma^-1 m_c + log(n_c / n))
    seli = |centred projection on the min(C - 1, d) discriminant directions, Sigma-whitened|_*
    ncc = mean_n P[n, y_n],   log_variability = log sum_c |P_c|_*   (P_c: rows of class c)

    Over a pool the paper takes minmax(seli) + minmax(ncc) - minmax(log_variability).
    """
    rows, labels, counts = statistics.principal_components(_COMPONENTS), statistics.labels, statistics.counts
    samples, classes = statistics.samples, statistics.classes
    means = torch.zeros(classes, rows.shape[1], dtype=rows.dtype, device=rows.device)
    means = means.index_add_(0, labels, rows) / counts[:, None]
    total = rows.T @ rows
    between = (means * counts[:, None]).T @ means
    variances = total.diagonal()[:_LEADING] / max(samples - 1, 1)
    intensity = max(math.exp(-float(variances.sum())), _LEAST_SHRINKAGE)
    within = (total - between) / samples
    covariance = _shrunk(within, intensity)
    whitening = _whitening(covariance, total / samples)
    separated = torch.linalg.eigh(whitening.T @ _shrunk(between, intensity) @ whitening)
    directions = whitening @ separated.eigenvectors.flip(1)[:, : classes - 1]
    spread = torch.linalg.eigvalsh(directions.T @ total @ directions)
    posterior = _posterior(rows @ whitening, means @ whitening, counts)
    ncc = float(posterior.gather(1, labels[:, None]).mean())
    norms = [_nuclear_norm(posterior[one]) for one in statistics.class_slices]
    return CollapseComponents(float(spread.clamp_min(0).sqrt().sum()), ncc, math.log(sum(norms)))


def _shrunk(covariance: torch.Tensor, intensity: float) -> torch.Tensor:
    """(1 - t) S + t tr(S) / d I."""
    result = (1 - intensity) * covariance
    result.diagonal().add_(intensity * float(covariance.trace()) / len(covariance))
    return result


def _whitening(covariance: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """W [d, r] with W' covariance W = I; directions without within-class variance count as tiny, not zero."""
    values: torch.Tensor
    vectors: torch.Tensor
    values, vectors = torch.linalg.eigh(covariance)
    largest = float(scale.trace())
    if largest <= 0:
        return torch.zeros_like(vectors)
    occupied = torch.einsum("ij,ik,kj->j", vectors, scale, vectors) > _RELATIVE_CUT * largest
    return (vectors / values.clamp_min(_RELATIVE_CUT * largest).sqrt())[:, occupied]


def _posterior(rows: torch.Tensor, means: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """[n, C] class probabilities of unit Gaussians around the class means."""
    offsets = (counts / counts.sum()).log() - 0.5 * means.square().sum(1)
    return torch.softmax(torch.addmm(offsets, rows, means.T), 1)


def _nuclear_norm(block: torch.Tensor) -> float:
    smaller = block.T @ block if block.shape[0] >= block.shape[1] else block @ block.T
    return float(torch.linalg.eigvalsh(smaller).clamp_min(0).sqrt().sum())
