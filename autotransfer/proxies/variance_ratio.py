"""Between-class over within-class variance: a sanity value beside the proxies."""

from __future__ import annotations

from autotransfer.proxies.statistics import FeatureStatistics

_LARGEST = 1e12


def variance_ratio(statistics: FeatureStatistics) -> float:
    """tr(between-class scatter) / tr(within-class scatter) (Fisher, Annals of Eugenics 1936, as traces).

        sum_c n_c |m_c - m|^2 / sum_n |x_n - m_{y_n}|^2

    Args:
        statistics: n x D features with classes.

    Returns:
        In [0, 1e12]; higher is better: the cap where nothing varies within classes; 0 for constant features. About
        (C - 1) / (n - C) for noise, whatever the width.

    Complexity: read from the shared pass.

    Invariant to sample order, class renaming, rotation and overall scaling, not to scaling single features.
    Misleads where a few features of large variance carry no label information: it never whitens.
    """
    total = statistics.total_variation
    if total == 0:
        return 0.0
    between = float((statistics.cross.square() / statistics.counts).sum())
    within = total - between
    return min(between / within, _LARGEST) if within > total / _LARGEST else _LARGEST
