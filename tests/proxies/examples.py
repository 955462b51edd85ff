"""Small targets with class structure, shared by the proxy tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Example:
    """Features X [n, D], classes y [n] and source class probabilities P [n, S]."""

    X: NDArray[np.float64]
    y: NDArray[np.int64]
    P: NDArray[np.float64]


def make_example(
    samples: int, dimension: int, classes: int, separation: float, seed: int, rectified: bool = False
) -> Example:
    """Gaussian classes of unequal size around random centres, off the origin, in random order."""
    generator = np.random.default_rng(seed)
    weights = np.linspace(1, 2, classes)
    y = generator.permutation(np.arange(samples) % classes)
    y = np.where(generator.random(samples) < 0.3, generator.choice(classes, samples, p=weights / weights.sum()), y)
    y[:classes] = np.arange(classes)
    X = separation * generator.standard_normal((classes, dimension))[y] + 1.5
    X = X + generator.standard_normal((samples, dimension)) * np.logspace(0, -1, dimension)
    logits = 2 * generator.standard_normal((classes, 7))[y] + generator.standard_normal((samples, 7))
    P = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return Example(np.maximum(X, 0) if rectified else X, y, P)
