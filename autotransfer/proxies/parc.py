"""PARC: do samples that look alike to the source carry the same label?"""

from __future__ import annotations

import math

import torch

from autotransfer.proxies.statistics import FeatureStatistics

_MOST_SAMPLES = 5_000
_BLOCK_ROWS = 500
_DECIMALS = 10
"""Distances that are equal but for rounding share their rank."""


def parc(statistics: FeatureStatistics) -> float:
    """Pairwise annotation representation comparison (Bolya, Mittapalli, Hoffman, NeurIPS 2021).

    Columns are standardised; d_ij = 1 - Pearson(x_i, x_j); labels differ by 0 (same class) or 1. PARC is
    100 times the Spearman correlation of the two over all pairs i < j, which for a 0/1 variable is exact as

        100 (mean rank of different pairs - mean rank of same pairs) sqrt(n_1 n_0) / (n std(rank))

    with average ranks over the n = n_0 + n_1 pairs. No PCA (the published one is randomised). Above 5,000
    samples an evenly spaced stratified 5,000 stand for all.

    Args:
        statistics: n x D features with classes.

    Returns:
        In [-100, 100]; higher is better; 0 where all distances are equal or no class has two samples.

    Complexity: n^2 D and a sort of n^2 / 2 values; memory about 90 bytes a pair (1.1 GB for 5,000 samples).

    Invariant to sample order and class renaming (above 5,000 samples up to which are taken), and to shifts and
    positive scaling of single features; not to rotation or to the sign of a feature.
    Misleads where classes are spread over several clusters; noisy under some tens of samples.
    """
    rows, labels = _standardised(statistics)
    distances, different = [], []
    for start in range(0, len(rows), _BLOCK_ROWS):
        block = rows[start : start + _BLOCK_ROWS]
        above = torch.ones(len(block), len(rows) - start, device=rows.device).triu(1).bool()
        distances.append((1 - block @ rows[start:].T)[above].round(decimals=_DECIMALS))
        different.append((labels[start : start + _BLOCK_ROWS, None] != labels[None, start:])[above])
    return 100 * rank_biserial(torch.cat(distances), torch.cat(different))


def rank_biserial(values: torch.Tensor, flags: torch.Tensor) -> float:
    """Spearman correlation of real values with a 0/1 variable, average ranks for ties; 0 where undefined."""
    size, ones = len(values), int(flags.sum())
    if ones in (0, size):
        return 0.0
    ranks = _average_ranks(values)
    deviation = float(ranks.std(correction=0))
    if deviation == 0:
        return 0.0
    gap = float(ranks[flags].mean() - ranks[~flags].mean())
    return gap * math.sqrt(ones * (size - ones)) / (size * deviation)


def _average_ranks(values: torch.Tensor) -> torch.Tensor:
    ordered, order = torch.sort(values)
    _, group, sizes = torch.unique_consecutive(ordered, return_inverse=True, return_counts=True)
    last = torch.cumsum(sizes, 0).to(torch.float64)
    ranks = torch.empty_like(values)
    ranks[order] = (last - (sizes - 1) / 2)[group]
    return ranks


def _standardised(statistics: FeatureStatistics) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows whose inner products are Pearson correlations of standardised samples, and their labels."""
    kept = statistics.spread_rows(_MOST_SAMPLES)
    rows = statistics.rows(kept).to(torch.float64) - statistics.mean
    rows = rows - rows.mean(0)
    deviation = rows.square().mean(0).sqrt()
    varying = deviation > 1e-12 * (deviation.max() + statistics.mean.abs())
    rows = torch.where(varying, rows / deviation.clamp_min(torch.finfo(torch.float64).tiny), 0.0)
    rows = rows - rows.mean(1, keepdim=True)
    lengths = rows.norm(dim=1, keepdim=True)
    return torch.where(lengths > 1e-12, rows / lengths.clamp_min(1e-12), 0.0), statistics.labels[kept]
