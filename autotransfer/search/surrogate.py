"""A Gaussian process over transfer configurations, with the prior as its mean.

Configurations are alike where they share a source, a depth, a way of training, a learning rate; how much each of
these counts is measured on other targets and shipped with the prior, so nothing is fitted while a study runs and
the first observations already tell much. One conditioning on n observations costs O(n^3), n at most 256.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.special import ndtr
from threadpoolctl import ThreadpoolController

from autotransfer.search.prior import KINDS, Array, Ints, Landscape, Points

KERNEL = {  # variances of the parts, then length scales, then the correlation of unlike ways
    "target": 0.05,
    "source": 0.05,
    "level": 0.02,
    "way": 0.02,
    "configuration": 0.02,
    "noise": 0.01,
    "depth_scale": 0.3,
    "rate_scale": 0.7,
    "frozen_scale": 0.4,
    "unlike": 0.3,
}
_LEAST_NOISE = 1e-6
_HEAD = KINDS.index("head")
_USUAL_RATE = -3.0
_SHARE_OF_HEADS_RATE = 0.3


@dataclass(frozen=True)
class Posterior:
    """What is expected of some configurations after the observations: log errors over the anchor, [m]."""

    mean: Array
    deviation: Array


@dataclass(frozen=True)
class Past:
    """What an earlier study on another target says.

    Attributes:
        study: its name.
        similarity: 0..1: how far what the prior left open there is taken to be left open here too.
        points: its configurations, their sources by this target's positions.
        surprise: log errors over what the prior expected there, less their mean, [n].
        noise: their variances, [n].
    """

    study: str
    similarity: float
    points: Points
    surprise: Array
    noise: Array


def covariance(kernel: Mapping[str, float], landscape: Landscape, first: Points, second: Points) -> Array:
    """Of what the prior leaves open between two sets of configurations: [m, n]."""
    same_source = _weights_of(landscape, first)[:, None] == _weights_of(landscape, second)[None, :]
    depth_first = first.transferred / landscape.depths[first.source]
    depth_second = second.transferred / landscape.depths[second.source]
    level = same_source * _like(depth_first, depth_second, kernel["depth_scale"])
    kinds_first, kinds_second = first.kinds(landscape), second.kinds(landscape)
    rates = _effective(first.rate, kinds_first), _effective(second.rate, kinds_second)
    same_kind = kinds_first[:, None] == kinds_second[None, :]
    way = np.where(same_kind, 1.0, kernel["unlike"]) * _like(*rates, kernel["rate_scale"])
    frozen_first = first.frozen / landscape.depths[first.source]
    frozen_second = second.frozen / landscape.depths[second.source]
    frozen = _like(frozen_first, frozen_second, kernel["frozen_scale"])
    total: Array = (
        kernel["target"]
        + kernel["source"] * same_source
        + kernel["level"] * level
        + kernel["way"] * way
        + kernel["configuration"] * level * way * frozen
    )
    return total


def variance(kernel: Mapping[str, float]) -> float:
    """Of what the prior leaves open of one configuration."""
    return sum(kernel[name] for name in ("target", "source", "level", "way", "configuration"))


def condition(
    kernel: Mapping[str, float],
    landscape: Landscape,
    seen: Points,
    surprise: Array,
    noise: Array,
    asked: Points,
    mean: Array,
    tasks: Ints | None = None,
    likeness: Array | None = None,
) -> Posterior:
    """The posterior of configurations.

    Args:
        kernel: see `KERNEL`.
        landscape: the target.
        seen: observed configurations, n.
        surprise: their log errors minus their prior means, [n].
        noise: variance of each observation beside the kernel's own, [n].
        asked: configurations in question, m.
        mean: their prior means, [m].
        tasks: which target each observation is of, [n], 0 for this one; all of this one where None.
        likeness: correlation of what the prior leaves open there with what it leaves open here, [n], 1 for this one.
    """
    whole = variance(kernel)
    if not len(seen):
        return Posterior(mean, np.full(len(asked), np.sqrt(whole)))
    own = covariance(kernel, landscape, seen, seen)
    cross = covariance(kernel, landscape, asked, seen)
    if tasks is not None and likeness is not None:
        own *= np.where(tasks[:, None] == tasks[None, :], 1.0, likeness[:, None] * likeness[None, :])
        cross *= likeness[None, :]
    own[np.diag_indices_from(own)] += kernel["noise"] + noise + _LEAST_NOISE
    with _blas().limit(limits=1):  # threads cost more than they save on matrices of a few hundred rows
        factor = cho_factor(own, lower=True, check_finite=False)
        solved = cho_solve(factor, cross.T, check_finite=False)
    left = whole - np.einsum("mn,nm->m", cross, solved)
    return Posterior(mean + solved.T @ surprise, np.sqrt(np.maximum(left, 1e-9)))


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def expected_improvement(posterior: Posterior, best: float) -> Array:
    """Of the log error over `best` (Mockus, 1975): [m], zero or more."""
    z = (posterior.mean - best) / posterior.deviation
    density = np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi)
    gain: Array = posterior.deviation * (z * ndtr(z) + density)
    return np.maximum(gain, 0.0)


def _weights_of(landscape: Landscape, points: Points) -> Array:
    """A number for the weights that a configuration starts from: from scratch, those of its architecture."""
    names = sorted(set(landscape.architectures))
    architecture = np.array([names.index(name) for name in landscape.architectures])
    return np.where(points.transferred > 0, points.source, len(landscape.sources) + architecture[points.source])


def _effective(rates: Array, kinds: Ints) -> Array:
    """Learning rates as they count: a head on frozen levels starts solved and hardly depends on its own."""
    as_head = _USUAL_RATE + _SHARE_OF_HEADS_RATE * (rates - _USUAL_RATE)
    effective: Array = np.where(kinds == _HEAD, as_head, rates)
    return effective


def _like(first: Array, second: Array, scale: float) -> Array:
    result: Array = np.exp(-0.5 * ((first[:, None] - second[None, :]) / scale) ** 2)
    return result
