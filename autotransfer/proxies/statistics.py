"""Feature statistics that all proxies of one (source, level) share.

Everything expensive happens once, lazily and in float64: the mean, the class means, one centred Gram matrix
(D x D, or n x n where that is smaller) and one eigendecomposition of it. LogME, the H-scores, ridge, the
principal components and the coding rate of TransRate are all read from that decomposition.

Rows are numbered in class order, so that a class is a slice. All tensors stay on the device of the features.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from autotransfer.errors import ProxyError
from autotransfer.proxies.eigen import Eigen, decompose
from autotransfer.proxies.gram import CHUNK_ROWS, symmetric_product
from autotransfer.proxies.targets import Targets, read_array, read_targets
from autotransfer.task import Task

_RANK_TOLERANCE = 1e-13
"""Eigenvalues at or under this share of the largest are rounding error of a float64 Gram matrix."""

_CONSTANT_TOLERANCE = 1e-26
"""A variance under this share of the squared mean is rounding error: nothing varies."""

_SHIFT_ROWS = 256

_LARGEST_MAGNITUDE = 1e70
"""Fourth powers of larger values overflow float64, those of values under its inverse vanish."""


@dataclass(frozen=True)
class Spectrum:
    """Eigendecomposition of the centred Gram matrix Xc'Xc, restricted to its numerical rank r.

    Attributes:
        eigenvalues: [r] descending, all positive.
        cross: [r, T] = W' Xc' Y for the target columns Y (one-hot for classes), W [D, r] the orthonormal
            eigenvectors in feature space.
        mean: [r] = W' m, the feature mean in the eigenbasis.
        mean_remainder: Squared length of the part of the mean outside the eigenbasis.
    """

    eigenvalues: torch.Tensor
    cross: torch.Tensor
    mean: torch.Tensor
    mean_remainder: float


@dataclass(frozen=True)
class _Moments:
    """What one pass over the rows yields: the Gram matrix, Xc'Y [D, T] and the mean [D]."""

    gram: torch.Tensor
    cross: torch.Tensor
    mean: torch.Tensor


class FeatureStatistics:
    """Features [n, D], their target, and what proxies need of them, each computed at most once.

    Attributes:
        targets: The checked target, in class order.

    Example:
        >>> import numpy as np
        >>> statistics = FeatureStatistics(np.eye(4, 3), np.array([0, 0, 1, 1]))
        >>> statistics.samples, statistics.dimension, statistics.classes
        (4, 3, 2)
    """

    def __init__(
        self,
        features: torch.Tensor | np.ndarray,
        labels: torch.Tensor | np.ndarray,
        *,
        task: Task | None = None,
    ) -> None:
        """Check the input and put it in class order.

        Args:
            features: [n, D] of any real dtype; float16 and bfloat16 are widened to float32.
            labels: Integer classes [n], 0/1 label sets [n, L], or real values [n] or [n, T]; see
                `read_targets`.
            task: Overrides the task that the labels' dtype and shape say.

        Raises:
            ProxyError: Wrong shapes, fewer than two samples, NaN or infinite values, one class only.
        """
        rows = read_array(features, "features")
        if rows.ndim != 2 or rows.shape[0] < 2 or rows.shape[1] < 1:
            raise ProxyError(f"features must be [n >= 2, D >= 1] but have shape {tuple(rows.shape)}.")
        if rows.dtype not in (torch.float32, torch.float64):
            half = rows.dtype in (torch.float16, torch.bfloat16)
            rows = rows.to(torch.float32 if half else torch.float64)
        self.targets: Targets = read_targets(labels, rows.shape[0], rows.device, task)
        self._given = rows
        self._components: dict[int, torch.Tensor] = {}
        self._check_values()

    def _check_values(self) -> None:
        low, high = torch.aminmax(self._given)
        largest = max(-float(low), float(high))
        if not largest < float("inf"):
            raise ProxyError("features contain NaN or infinite values; check what the source gave for this target.")
        if largest > _LARGEST_MAGNITUDE or 0 < largest < 1 / _LARGEST_MAGNITUDE:
            raise ProxyError(f"features reach {largest:.3g} at most; rescale them to about unit size.")

    @property
    def samples(self) -> int:
        """Number of rows, n."""
        return int(self._given.shape[0])

    @property
    def dimension(self) -> int:
        """Feature width, D."""
        return int(self._given.shape[1])

    @property
    def device(self) -> torch.device:
        """Where the features, and all that is derived from them, live."""
        return self._given.device

    @property
    def dtype(self) -> torch.dtype:
        """float32 or float64: the precision in which the features were given."""
        return self._given.dtype

    @cached_property
    def features(self) -> torch.Tensor:
        """[n, D] all rows in class order: a copy where the caller's order is another one."""
        return self._given if self.targets.order is None else self._given[self.targets.order]

    def rows(self, which: slice | torch.Tensor) -> torch.Tensor:
        """The features [k, D] of these rows, which are numbered in class order; nothing else is copied."""
        if self.targets.order is None:
            return self._given[which]
        return self._given.index_select(0, self.targets.order[which])

    @property
    def classes(self) -> int:
        """Number of classes that occur, C."""
        return len(self.counts)

    @property
    def labels(self) -> torch.Tensor:
        """[n] class numbers in ascending order.

        Raises:
            ProxyError: The target is not classes.
        """
        return self.targets.class_labels

    @property
    def counts(self) -> torch.Tensor:
        """[C] samples of each class, float64."""
        return self.targets.class_counts

    @cached_property
    def class_slices(self) -> tuple[slice, ...]:
        """The rows of each class."""
        ends = torch.cumsum(self.counts, 0).to(torch.int64).tolist()
        return tuple(slice(start, end) for start, end in zip([0, *ends[:-1]], ends, strict=True))

    @cached_property
    def _shift(self) -> torch.Tensor:
        """[D] float64 mean of a few spread rows: near enough to the mean that nothing cancels."""
        return self.rows(self.spread_rows(_SHIFT_ROWS)).to(torch.float64).mean(0)

    def _shifted_chunks(self, shift: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
        buffer = torch.empty(min(CHUNK_ROWS, self.samples), self.dimension, dtype=torch.float64, device=self.device)
        for start in range(0, self.samples, CHUNK_ROWS):
            rows = slice(start, min(start + CHUNK_ROWS, self.samples))
            yield rows, buffer[: rows.stop - start].copy_(self.rows(rows)).sub_(shift)

    def centred_chunks(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """Rows minus the mean in float64, block by block to bound the extra memory.

        Each block is overwritten by the next (fresh memory for every block costs more than the subtraction);
        until then it may be changed in place.
        """
        return self._shifted_chunks(self.mean)

    @property
    def wide(self) -> bool:
        """Whether the n x n side is the smaller one."""
        return self.samples <= self.dimension

    @cached_property
    def _moments(self) -> _Moments:
        """One pass over the rows, shifted by `_shift`; the exact mean is taken out afterwards (rank one)."""
        sums = torch.zeros(self.dimension, dtype=torch.float64, device=self.device)
        cross = torch.zeros(self.targets.columns, self.dimension, dtype=torch.float64, device=self.device)

        def observed() -> Iterator[torch.Tensor]:
            for rows, block in self._shifted_chunks(self._shift):
                sums.add_(block.sum(0))
                self.targets.add_products(cross, block, rows)
                yield block

        if self.wide:
            shifted = torch.cat([block.clone() for block in observed()])
            offset = sums / self.samples
            shifted -= offset
            gram = symmetric_product([shifted.T], self.samples, self.device)
        else:
            gram = symmetric_product(observed(), self.dimension, self.device)
            offset = sums / self.samples
            gram.addr_(sums, offset, alpha=-1)
        mean = self._shift + offset
        cross = (cross - torch.outer(self.targets.mean * self.samples, offset)).T
        if float(gram.trace()) <= _CONSTANT_TOLERANCE * self.samples * float(mean @ mean):
            gram, cross = torch.zeros_like(gram), torch.zeros_like(cross)
        return _Moments(gram, cross, mean)

    @property
    def mean(self) -> torch.Tensor:
        """[D] mean of all rows, float64."""
        return self._moments.mean

    @property
    def gram(self) -> torch.Tensor:
        """Xc'Xc [D, D], or Xc Xc' [n, n] where `wide`; float64."""
        return self._moments.gram

    @property
    def cross(self) -> torch.Tensor:
        """[D, T] = Xc'Y; for classes column c is n_c (m_c - m)."""
        return self._moments.cross

    @cached_property
    def row_squares(self) -> torch.Tensor:
        """[n] squared lengths of the centred rows."""
        if self.total_variation == 0:
            return torch.zeros(self.samples, dtype=torch.float64, device=self.device)
        if self.wide:
            return self.gram.diagonal()
        return torch.cat([torch.linalg.vecdot(block, block) for _, block in self.centred_chunks()])

    @cached_property
    def total_variation(self) -> float:
        """Sum of all squared deviations from the mean: the trace of the Gram matrix."""
        return float(self.gram.trace())

    @cached_property
    def class_offsets(self) -> torch.Tensor:
        """[C, D] class means minus the overall mean."""
        return (self.cross / self.counts).T

    @cached_property
    def _eigen(self) -> Eigen:
        """The one eigendecomposition, of the smaller side."""
        return decompose(self.gram)

    @cached_property
    def spectrum(self) -> Spectrum:
        """What is read from the one eigendecomposition: O(min(n, D)^3) once, then O(min(n, D)^2 T).

        On the n x n side Xc Xc' = U Theta U', and the feature-space eigenvectors are Xc'U / sqrt(Theta).
        """
        values = self._eigen.values
        largest = max(float(values[0]), 0.0)
        rank = int((values > largest * _RANK_TOLERANCE).sum()) if largest > 0 else 0
        values = values[:rank]
        if self.wide:
            heights = torch.cat([block @ self.mean for _, block in self.centred_chunks()])
            columns = torch.cat([self.targets.dense() - self.targets.mean, heights[:, None]], 1)
            roots = values.sqrt()[:, None]
            projected = self._eigen.project(columns)[:rank]
            cross, mean = projected[:, :-1] * roots, projected[:, -1:] / roots
        else:
            projected = self._eigen.project(torch.cat([self.cross, self.mean[:, None]], 1))[:rank]
            cross, mean = projected[:, :-1], projected[:, -1:]
        mean = mean[:, 0]
        remainder = max(float(self.mean @ self.mean - mean @ mean), 0.0)
        return Spectrum(values, cross, mean, remainder)

    @cached_property
    def left_vectors(self) -> torch.Tensor:
        """[n, r] = U, the eigenvectors of Xc Xc' where `wide`, with the signs of the spectrum."""
        return self._eigen.vectors(len(self.spectrum.eigenvalues))

    @cached_property
    def within_scatter(self) -> torch.Tensor:
        """[D, D] sum over classes of the squared deviations from the class means."""
        offsets = self.class_offsets
        if not self.wide:
            return self.gram - (offsets * self.counts[:, None]).T @ offsets
        rows = (block - offsets[self.labels[one]] for one, block in self.centred_chunks())
        return symmetric_product(rows, self.dimension, self.device)

    def principal_components(self, components: int) -> torch.Tensor:
        """[n, min(components, n, D)] centred rows on the leading eigenvectors, float64.

        Directions without variance are columns of zeros. An eigenvector's sign is arbitrary: here the largest
        value of a column is positive.
        """
        width = min(components, self.samples, self.dimension)
        cached = self._components.get(width)
        if cached is None:
            values = self.spectrum.eigenvalues[:width]
            vectors = self._eigen.vectors(len(values))
            cached = torch.zeros(self.samples, width, dtype=torch.float64, device=self.device)
            if self.wide:
                torch.mul(vectors, values.sqrt(), out=cached[:, : len(values)])
            else:
                for rows, block in self.centred_chunks():
                    cached[rows, : len(values)] = block @ vectors
            low, high = torch.aminmax(cached, dim=0)
            cached.mul_(torch.where(-low > high, -1.0, 1.0))
            self._components[width] = cached
        return cached

    def reduced(self, dimension: int) -> FeatureStatistics:
        """The same samples on their leading principal components, at one scale.

        Sources of different width and scale become comparable: min(dimension, n, rank) components, divided
        by one number so that their mean variance is 1. Keep `dimension` under n / 2 where n is small.

        Raises:
            ProxyError: `dimension` is not positive.
        """
        if dimension < 1:
            raise ProxyError(f"the common dimension must be at least 1 but is {dimension}.")
        rank = len(self.spectrum.eigenvalues)
        rows = self.principal_components(max(1, min(dimension, rank)))
        deviation = rows.square().mean().sqrt()
        if float(deviation) > 0:
            rows = rows / deviation
        matrix = self.targets.matrix
        return FeatureStatistics(rows, self.labels if matrix is None else matrix, task=self.targets.task)

    def spread_rows(self, most: int, of: int | None = None) -> torch.Tensor:
        """Numbers of at most `most` evenly spaced rows among the first `of` (None: all n).

        Rows are in class order, so this is a stratified sample.
        """
        rows = self.samples if of is None else of
        kept = min(most, rows)
        return torch.arange(kept, device=self.device) * rows // kept
