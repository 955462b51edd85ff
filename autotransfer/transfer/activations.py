"""Activations of the frozen prefix on disk: computed once for a source, shared by its trials, studies, processes.

A file holds one view of some images: the images as they are (view 0), or augmented (views 1, 2, ...), always in
the same way. Its name is a hash of whatever determines it: the images, the weights of the frozen part, the
preprocessing, the view. Training draws one of the views for each image in each epoch.
"""

import contextlib
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from autotransfer import disk_cache
from autotransfer.transfer.augmentation import Augmentation
from autotransfer.transfer.config import TransferConfig
from autotransfer.transfer.inputs import ImageInputs, Inputs, Rows
from autotransfer.transfer.memory import in_batches
from autotransfer.transfer.prefix import FrozenPrefix, find_prefix
from autotransfer.transfer.surgery import TransferModel

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1  # raise it when the activations of the same images and weights change
_BATCH_SIZE = 64
_TRIED_ON = 4
_BYTES_A_VALUE = 2
_LARGEST_FOR_HALF = 1e4


@dataclass(frozen=True)
class ActivationStore:
    """Where activations are kept, and how much they may take.

    Attributes:
        cache_dir: they lie in the folder `activations` below it.
        limit_bytes: of the whole cache folder.
        images_id: a hash of the decoded images.
        splits: which rows are computed together: each file holds those of one split.
    """

    cache_dir: Path
    limit_bytes: int
    images_id: str
    splits: tuple[Rows, ...]

    @contextlib.contextmanager
    def inputs(
        self,
        model: TransferModel,
        config: TransferConfig,
        images: ImageInputs,
        go_on: Callable[[], bool] = lambda: True,
    ) -> Iterator[Inputs]:
        """Inputs for training `model`: kept activations where its frozen part allows it, else the images.

        While the context is open the frozen modules are out of the network.
        """
        prefix = self._prefix(model, config, images)
        if prefix is None:
            yield images
            return
        made = _Activations(self, prefix, images, Augmentation.of(config), config.cached_views, go_on)
        with prefix.replaying():
            yield ActivationInputs(made, images.device)

    def _prefix(self, model: TransferModel, config: TransferConfig, images: ImageInputs) -> FrozenPrefix | None:
        rows = np.concatenate(self.splits)
        if not config.cached_views or not config.frozen_layers or len(rows) < 2:
            return None
        model.to(images.device)
        prefix = find_prefix(model, images.batch(rows[:_TRIED_ON]))
        if prefix is None:
            return None
        needed = len(rows) * (1 + config.cached_views) * int(np.prod(prefix.shape)) * _BYTES_A_VALUE
        if needed > self.limit_bytes // 2:
            logger.info(
                "the activations of level %d would take %.1f GB of a cache of %.1f GB: the frozen part runs in every "
                "epoch (AUTOTRANSFER_CACHE_LIMIT)", config.frozen_layers, needed / 1e9, self.limit_bytes / 1e9,
            )  # fmt: skip
            return None
        return prefix


@dataclass(frozen=True)
class ActivationInputs:
    """Batches of a frozen prefix's activations, laid ready in the network; what they return stands for images."""

    activations: "_Activations"
    device: torch.device

    def batch(self, rows: Rows) -> Tensor:
        """The images as they are."""
        return self.activations.feed(rows, np.zeros(len(rows), np.int64))

    def augmented(self, rows: Rows, augmentation: Augmentation) -> Tensor:
        """One of the kept views of each image, drawn by torch's generator."""
        views = self.activations.views
        if augmentation == Augmentation() or not views:
            return self.batch(rows)
        return self.activations.feed(rows, torch.randint(1, views + 1, (len(rows),)).numpy())


@dataclass
class _Activations:
    """The views of one prefix, computed when they are first asked for."""

    store: ActivationStore
    prefix: FrozenPrefix
    images: ImageInputs
    augmentation: Augmentation
    views: int
    go_on: Callable[[], bool]
    _open: dict[tuple[int, int], npt.NDArray[np.floating]] = field(default_factory=dict)

    @cached_property
    def _dtype(self) -> np.dtype[np.floating]:
        """Float16, unless what the prefix says would not fit into it."""
        sample = self.prefix.activations(self.images.batch(self.store.splits[0][:_TRIED_ON]))
        return np.dtype(np.float16 if float(sample.abs().max()) < _LARGEST_FOR_HALF else np.float32)

    @cached_property
    def _identity(self) -> str:
        return self.prefix.identity()

    def feed(self, rows: Rows, views: npt.NDArray[np.int64]) -> Tensor:
        """Lay the activations of `rows` ready, each in its view."""
        values, known = np.empty((len(rows), *self.prefix.shape), self._dtype), np.zeros(len(rows), bool)
        for split, members in enumerate(self.store.splits):
            at = np.searchsorted(members, rows).clip(max=len(members) - 1)
            here = members[at] == rows
            known |= here
            for view in np.unique(views[here]):
                chosen = here & (views == view)
                values[chosen] = self._file(split, int(view))[at[chosen]]
        if not known.all():
            raise ValueError("activations are kept of the training and validation rows only.")
        batch = torch.from_numpy(values).to(self.images.device).float()
        if batch.ndim == 4:
            batch = batch.contiguous(memory_format=torch.channels_last)
        return self.prefix.feed(batch)

    def _file(self, split: int, view: int) -> npt.NDArray[np.floating]:
        """The activations of one split in one view: [rows of the split, *shape], memory-mapped."""
        if (split, view) not in self._open:
            path = self.store.cache_dir / "activations" / f"{self._key(split, view)}.npy"
            shape = (len(self.store.splits[split]), *self.prefix.shape)
            self._open[split, view] = disk_cache.kept_array(
                path, shape, self._dtype, lambda: self._compute(path, split, view, shape)
            )
        return self._open[split, view]

    def _key(self, split: int, view: int) -> str:
        parts = (
            FORMAT_VERSION,
            self.store.images_id,
            self.store.splits[split].tolist(),
            self._identity,
            self.images.preprocessing,
            self.images.device.type,
            self._dtype.name,
            (view, self.augmentation) if view else 0,
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:40]

    def _compute(self, path: Path, split: int, view: int, shape: tuple[int, ...]) -> None:
        rows = self.store.splits[split]
        disk_cache.make_room(self.store.cache_dir, int(np.prod(shape)) * self._dtype.itemsize, self.store.limit_bytes)
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": shape}

        def activations(chosen: Rows) -> npt.NDArray[np.float32]:
            if not self.go_on():
                raise InterruptedError("stopped while the frozen layers ran")
            images = self.images.augmented(chosen, self.augmentation) if view else self.images.batch(chosen)
            values: npt.NDArray[np.float32] = self.prefix.activations(images).float().cpu().numpy()
            return values

        device = self.images.device
        devices = (
            [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
        )
        with (
            torch.random.fork_rng(devices=devices),
            disk_cache.replacing(path) as temporary,
            temporary.open("wb") as file,
        ):
            torch.manual_seed(view)
            np.lib.format.write_array_header_1_0(file, header)
            for values in in_batches(rows, _BATCH_SIZE, activations):
                file.write(np.ascontiguousarray(_clipped(values, self._dtype)).data)
            file.flush()
            os.fsync(file.fileno())


def _clipped(values: npt.NDArray[np.float32], dtype: np.dtype[np.floating]) -> npt.NDArray[np.floating]:
    largest = float(np.finfo(dtype).max)
    return values.clip(-largest, largest).astype(dtype)
