"""From decoded images to what a network takes: normalised batches, augmented where training asks for it."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from autotransfer.sources import DataConfig
from autotransfer.transfer.augmentation import Augmentation

Rows = npt.NDArray[np.int64]


class Inputs(Protocol):
    """Where batches come from. What `batch` returns is what the network is called with next."""

    @property
    def device(self) -> torch.device:
        """Where the batches lie."""
        ...

    def batch(self, rows: Rows) -> Tensor:
        """The images as they are."""
        ...

    def augmented(self, rows: Rows, augmentation: Augmentation) -> Tensor:
        """The images, changed at random."""
        ...


@dataclass(frozen=True)
class ImageInputs:
    """Batches of decoded images.

    Attributes:
        images: uint8 [n, H, W, 3], memory-mapped: they need not fit into memory.
        preprocessing: mean and standard deviation that the network wants.
        device: where the batches are wanted.
    """

    images: npt.NDArray[np.uint8]
    preprocessing: DataConfig
    device: torch.device

    def batch(self, rows: Rows) -> Tensor:
        """Normalised images: float32 [n, 3, H, W]."""
        return normalise(to_batch(self.images[rows], self.device), self.preprocessing.mean, self.preprocessing.std)

    def augmented(self, rows: Rows, augmentation: Augmentation) -> Tensor:
        """The same, augmented."""
        batch = augmentation.pixels(to_batch(self.images[rows], self.device))
        return augmentation.normalised(batch, self.preprocessing.mean, self.preprocessing.std)


def to_batch(images: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
    """uint8 [n, H, W, 3] -> uint8 [n, 3, H, W] on `device`, in channels-last memory (as the images lie)."""
    batch = torch.from_numpy(np.ascontiguousarray(images))
    if device.type == "cuda":
        batch = batch.pin_memory().to(device, non_blocking=True)
    return batch.permute(0, 3, 1, 2)


def normalise(batch: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 0..255 -> float32, scaled to 0..1, then (x - mean) / std per channel."""
    return Augmentation().normalised(batch, mean, std)
