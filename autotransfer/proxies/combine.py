"""From several proxies of many candidates to one ranking with an uncertainty.

No proxy wins everywhere and each fails somewhere (Agostinelli et al., "How Stable are Transferability Metrics
Evaluations?", ECCV 2022), so none is believed alone: their values are replaced by ranks, which no outlier and no
scale can bend, and a proxy counts by how far the others agree with it on this very target.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

# What a proxy counts that the others contradict: little, but it can still break a tie.
_SMALLEST_WEIGHT = 0.05
# The spread of a percentile of which nothing is known: that of a uniform distribution on 0..1.
_IGNORANCE = 1 / np.sqrt(12)


@dataclass(frozen=True)
class Combined:
    """The combination of several proxies over n candidates.

    Attributes:
        expected: weighted mean percentile, [n], 0 (worst) to 1 (best); 0.5 where nothing is known.
        uncertainty: how far from it the truth may be, as a standard deviation of that percentile, [n]:
            small where many proxies say the same, 0.29 where nothing is known.
        weights: what each proxy counted, by name; they sum to 1.
    """

    expected: Array
    uncertainty: Array
    weights: Mapping[str, float]


def combine(proxies: Mapping[str, Sequence[float] | Array], prior: Mapping[str, float] | None = None) -> Combined:
    """Combine proxies, higher is better in each, over the same candidates of one target.

    With r_pi the percentile of candidate i under proxy p (ties share their mean; between 0 and 1), the weight of
    p is w_p = prior_p * max(0.05, s_p rho_p), where rho_p is the Spearman correlation of r_p with the mean of all
    other proxies and s_p the share of the candidates that it is known for; expected_i = sum_p w_p r_pi / sum_p
    w_p over the proxies that are known for i.

    Args:
        proxies: name to values [n]; NaN where a value is missing or not to be trusted.
        prior: what a proxy counts before its agreement is seen; 1 where none is given.

    Returns:
        Expectation, uncertainty and weights. A proxy that is NaN or the same everywhere counts nothing.

    Raises:
        ValueError: the proxies have different lengths, or a value is infinite.
    """
    columns = {name: np.asarray(values, dtype=float) for name, values in proxies.items()}
    lengths = {len(values) for values in columns.values()}
    if len(lengths) != 1:
        raise ValueError(f"proxies must cover the same candidates, but their lengths are {sorted(lengths)}.")
    if any(np.isinf(values).any() for values in columns.values()):
        raise ValueError("proxies must be finite, or NaN where they are not known.")
    (count,) = lengths
    ranks = {name: _percentiles(values) for name, values in columns.items()}
    telling = {name: rank for name, rank in ranks.items() if np.unique(rank[~np.isnan(rank)]).size > 1}
    weights = {name: (prior or {}).get(name, 1.0) * _agreement(name, telling) for name in telling}
    total = sum(weights.values())
    if not total:
        return Combined(np.full(count, 0.5), np.full(count, _IGNORANCE), dict.fromkeys(columns, 0.0))
    table = np.stack([telling[name] for name in telling])
    counted = np.array([weights[name] for name in telling])[:, None] * ~np.isnan(table)
    mass = counted.sum(axis=0)
    safe = np.where(mass > 0, mass, 1.0)
    expected = np.where(mass > 0, (counted * np.nan_to_num(table)).sum(axis=0) / safe, 0.5)
    return Combined(
        expected,
        _uncertainty(table, counted, safe, expected, mass > 0),
        {name: weights.get(name, 0.0) / total for name in columns},
    )


def _uncertainty(table: Array, counted: Array, mass: Array, expected: Array, known: npt.NDArray[np.bool_]) -> Array:
    """The standard error of the weighted mean, as if one further proxy had said nothing at all."""
    share = counted / mass
    spread = (share * np.nan_to_num(table - expected) ** 2).sum(axis=0)
    effective = 1 / np.maximum((share**2).sum(axis=0), 1e-12)
    variance = (effective * spread + _IGNORANCE**2) / (effective + 1)
    error = np.sqrt(variance / np.maximum(effective, 1.0))
    result: Array = np.where(known, np.minimum(error, _IGNORANCE), _IGNORANCE)
    return result


def _agreement(name: str, ranks: Mapping[str, Array]) -> float:
    """Spearman's correlation of one proxy with the mean of the others times the share it is known for.

    At least the smallest weight: also where hardly anything shows whether it agrees.
    """
    others = [rank for other, rank in ranks.items() if other != name]
    if not others:
        return 1.0
    stacked = np.stack(others)
    present = ~np.isnan(stacked)
    mean = np.nan_to_num(stacked).sum(axis=0) / np.maximum(present.sum(axis=0), 1)
    both = ~np.isnan(ranks[name]) & present.any(axis=0)
    if both.sum() < 3:
        return _SMALLEST_WEIGHT
    first, second = _percentiles(ranks[name][both]), _percentiles(mean[both])
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return _SMALLEST_WEIGHT
    return max(_SMALLEST_WEIGHT, float(both.mean() * np.corrcoef(first, second)[0, 1]))


def _percentiles(values: Array) -> Array:
    """Percentiles between 0 and 1 (excluded): (mean rank - 1/2) / n among the known; NaN stays NaN."""
    from scipy.stats import rankdata

    known = ~np.isnan(values)
    result = np.full(len(values), np.nan)
    if known.any():
        result[known] = (rankdata(values[known]) - 0.5) / known.sum()
    return result
