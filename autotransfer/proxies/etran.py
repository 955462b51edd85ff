"""The two scores of ETran that stand alone: LDA classification score and energy."""

from __future__ import annotations

import torch

from autotransfer.proxies.gram import CHUNK_ROWS
from autotransfer.proxies.statistics import FeatureStatistics


def lda(statistics: FeatureStatistics) -> float:
    """Classification score of ETran (Gholami, Akbari, Wang, Kamranian, Zhang, ICCV 2023).

        lda = mean_n softmax_c(x_n' m_c - |m_c|^2 / 2 + log(n_c / n))[y_n]

    This is the posterior of unit spherical Gaussians around the class means.

    Args:
        statistics: n x D features with classes.

    Returns:
        In [0, 1]; higher is better; sum_c (n_c / n)^2 for constant features.

    Complexity: n D C.

    Invariant to sample order, class renaming, rotation and shifts; not to scaling (the variance is taken as
    1), so compare it on features of one scale (`FeatureStatistics.reduced`). Misleads where classes differ in
    shape, a few features dominate the variance, or noise is wide (n < 2 D).
    """
    offsets = statistics.class_offsets
    biases = (statistics.counts / statistics.samples).log() - 0.5 * offsets.square().sum(1)
    total = 0.0
    for rows, block in statistics.centred_chunks():
        posterior = torch.softmax(torch.addmm(biases, block, offsets.T), 1)
        total += float(posterior.gather(1, statistics.labels[rows, None]).sum())
    return total / statistics.samples


def energy(statistics: FeatureStatistics, share: float = 0.005) -> float:
    """Energy score of ETran over feature dimensions (Gholami et al., ICCV 2023).

        e_n = log sum_d exp(x_nd);   energy = mean of the floor(share n) smallest e_n (at least one)

    Args:
        statistics: n x D features with classes; ETran also takes the energy of source logits this way.
        share: of the samples that count, above 0 to 1; the paper's published call takes 0.005.

    Returns:
        A finite float, at least the smallest feature value; higher is better.

    Complexity: one pass, n D exponentials.

    Invariant to sample order and to the order of features; ignores the labels altogether, so it is never trusted
    here. Not invariant to rotation, shifts or scaling. Misleads between families: it grows with log D and the
    scale, also for noise.
    """
    values = [
        torch.logsumexp(statistics.rows(slice(start, start + CHUNK_ROWS)), 1).to(torch.float64)
        for start in range(0, statistics.samples, CHUNK_ROWS)
    ]
    lowest = max(1, int(share * statistics.samples))
    return float(torch.cat(values).topk(lowest, largest=False).values.mean())
