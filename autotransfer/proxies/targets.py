"""What the features are scored against: class labels, label sets or real values.

A target becomes [n, T] float64 columns for the proxies that are linear in it (LogME, H-score, ridge). For
classes those columns are one-hot and are never built: a product with them is a sum over class blocks.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from autotransfer.errors import ProxyError
from autotransfer.task import Task

_FEW_CLASSES = 64
"""Up to this many classes in a block of rows, a one-hot product is faster than scattered additions."""


@dataclass(frozen=True)
class Targets:
    """A checked target.

    Attributes:
        task: What the columns mean.
        labels: [n] class numbers 0..C-1 in ascending order (classification), else None.
        matrix: [n, T] float64 columns (multilabel: 0/1, regression: values), else None.
        order: The permutation that brings the caller's rows into this order; None where they are in it.
    """

    task: Task
    labels: torch.Tensor | None
    matrix: torch.Tensor | None
    order: torch.Tensor | None

    @property
    def class_labels(self) -> torch.Tensor:
        """[n] class numbers; a ProxyError for other tasks."""
        if self.labels is None:
            raise ProxyError(f"this proxy needs one class per sample; the target is {self.task}.")
        return self.labels

    @property
    def given_labels(self) -> torch.Tensor:
        """[n] class numbers in the caller's order."""
        if self.order is None:
            return self.class_labels
        return torch.empty_like(self.class_labels).index_copy_(0, self.order, self.class_labels)

    @cached_property
    def class_counts(self) -> torch.Tensor:
        """[C] samples of each class, float64."""
        return torch.bincount(self.class_labels).to(torch.float64)

    @property
    def columns(self) -> int:
        """T: classes, labels or regression values."""
        return len(self.class_counts) if self.matrix is None else int(self.matrix.shape[1])

    @cached_property
    def mean(self) -> torch.Tensor:
        """[T] mean of each column (class frequencies for classes)."""
        if self.matrix is None:
            return self.class_counts / self.class_counts.sum()
        return self.matrix.mean(dim=0)

    @cached_property
    def varying(self) -> torch.Tensor:
        """[T] whether a column takes more than one value; a label that never occurs does not."""
        if self.matrix is None:
            return torch.ones(self.columns, dtype=torch.bool, device=self.class_labels.device)
        return (self.matrix != self.matrix[0]).any(0)

    @cached_property
    def scatter(self) -> torch.Tensor:
        """[T, T] = Yc'Yc of the centred columns."""
        if self.matrix is None:
            return self.class_counts.sum() * (torch.diag(self.mean) - torch.outer(self.mean, self.mean))
        centred = self.matrix - self.mean
        return centred.T @ centred

    def dense(self) -> torch.Tensor:
        """[n, T] the columns themselves, one-hot for classes."""
        if self.matrix is not None:
            return self.matrix
        return torch.nn.functional.one_hot(self.class_labels, self.columns).to(torch.float64)

    def add_products(self, total: torch.Tensor, block: torch.Tensor, rows: slice) -> None:
        """Add Y[rows]' block to total [T, D]."""
        if self.matrix is not None:
            total.addmm_(self.matrix[rows].T, block)
            return
        labels = self.class_labels[rows]
        first, last = int(labels[0]), int(labels[-1])
        if last - first < _FEW_CLASSES:
            local = torch.nn.functional.one_hot(labels - first, last - first + 1).to(block.dtype)
            total[first : last + 1].addmm_(local.T, block)
        else:
            total.index_add_(0, labels, block)


def read_targets(
    labels: torch.Tensor | np.ndarray, samples: int, device: torch.device, task: Task | None = None
) -> Targets:
    """Check a target and settle its task.

    Args:
        labels: Integers [n] are classes (any integers; they are renumbered); integers or booleans [n, L] in
            {0, 1} are label sets; floating point [n] or [n, T] is regression.
        samples: n, the number of feature rows.
        device: Where the result lives (the features' device).
        task: Overrides what the dtype and shape say.

    Raises:
        ProxyError: The length does not fit, a value is not finite, or nothing varies (one class).
    """
    raw = read_array(labels, "labels").to(device)
    if raw.ndim not in (1, 2) or raw.shape[0] != samples:
        raise ProxyError(f"labels must have {samples} rows, one per feature row, but have shape {tuple(raw.shape)}.")
    task = task or _task_of(raw)
    if task == "classification":
        return _read_classes(raw)
    matrix = raw.to(torch.float64).reshape(samples, -1)
    if not bool(torch.isfinite(matrix).all()):
        raise ProxyError("labels contain NaN or infinite values; drop or fill those samples first.")
    if task == "multilabel" and not bool(((matrix == 0) | (matrix == 1)).all()):
        raise ProxyError("multi-label targets must be 0 or 1, one column per label.")
    if bool((matrix == matrix[0]).all()):
        raise ProxyError("labels do not vary: every sample has the same target, so nothing can be ranked.")
    return Targets(task, None, matrix, None)


def read_array(array: torch.Tensor | np.ndarray, what: str) -> torch.Tensor:
    """A tensor of real numbers that shares the array's memory where it can.

    Raises:
        ProxyError: it holds text, objects or complex numbers.
    """
    if isinstance(array, torch.Tensor):
        if array.dtype.is_complex:
            raise ProxyError(f"{what} must be real numbers but are {array.dtype}.")
        return array.detach()
    values = np.asarray(array)
    if values.dtype.kind not in "fiub":
        raise ProxyError(f"{what} must be real numbers but are {values.dtype}; encode classes as integers.")
    values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # it is only read
        return torch.from_numpy(values)


def _task_of(raw: torch.Tensor) -> Task:
    if raw.dtype.is_floating_point:
        return "regression"
    return "classification" if raw.numel() == raw.shape[0] else "multilabel"


def _read_classes(raw: torch.Tensor) -> Targets:
    if raw.numel() != raw.shape[0]:
        raise ProxyError(f"class labels must be one integer per sample but have shape {tuple(raw.shape)}.")
    flat = raw.reshape(-1)
    if flat.dtype.is_floating_point and not bool(((flat == flat.round()) & torch.isfinite(flat)).all()):
        raise ProxyError("class labels must be integers; pass task='regression' for real values.")
    classes, numbered = torch.unique(flat.to(torch.int64), return_inverse=True)
    if len(classes) < 2:
        raise ProxyError("labels hold one class only; a proxy needs at least two classes to compare.")
    if bool((numbered.diff() >= 0).all()):
        return Targets("classification", numbered, None, None)
    order = torch.argsort(numbered, stable=True)
    return Targets("classification", numbered[order], None, order)
