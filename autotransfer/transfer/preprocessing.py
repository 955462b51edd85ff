"""From decoded images to what a network takes: normalised batches, augmented where training asks for it."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from autotransfer.transfer.config import Augmentation


def to_batch(images: npt.NDArray[np.uint8], device: torch.device) -> Tensor:
    """uint8 [n, H, W, 3] -> uint8 [n, 3, H, W] on `device`, in channels-last memory (as the images lie)."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2)


def normalise(batch: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """uint8 0..255 -> float32, scaled to 0..1, then (x - mean) / std per channel."""
    centre = torch.tensor(mean, device=batch.device).view(1, -1, 1, 1)
    scale = torch.tensor(std, device=batch.device).view(1, -1, 1, 1)
    return (batch.float() / 255 - centre) / scale


def augmenter(augmentation: Augmentation, image_size: int) -> Callable[[Tensor], Tensor] | None:
    """A function that changes a uint8 batch [n, 3, H, W] at random, each image on its own; None for `none`."""
    if augmentation == "none":
        return None
    from torchvision.transforms import v2

    steps: list[torch.nn.Module] = [
        v2.RandomResizedCrop(image_size, scale=(0.7, 1.0), ratio=(0.85, 1.18), antialias=True),
        v2.ColorJitter(brightness=0.2, contrast=0.2),
    ]
    if augmentation == "flip":
        steps.append(v2.RandomHorizontalFlip())
    change = v2.Compose(steps)

    def apply(batch: Tensor) -> Tensor:
        changed = torch.stack([change(image) for image in batch])
        return changed.contiguous(memory_format=torch.channels_last)

    return apply
