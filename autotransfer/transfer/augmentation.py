"""Augmentation of whole batches: each image is changed on its own, at the cost of a few operations a batch.

Crop, mirror image and RandAugment work on bytes; brightness and contrast are one scale and one shift an image,
which are folded into the normalisation, so that they cost one mean. All randomness is torch's own (CPU) generator.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from autotransfer.transfer.config import TransferConfig

_AREA = (0.7, 1.0)
_ASPECT = (0.85, 1.18)
_COLOUR = 0.2
_RANDAUGMENT_OPERATIONS = 2


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a batch, as a configuration asks for them.

    Attributes:
        crop: shift and scale: a part of 70 to 100% of the image, enlarged to its whole size.
        colour: brightness and contrast, each by up to 20%.
        flip: mirror half of the images left to right.
        randaugment: magnitude 0..30 of two random operations an image; 0 is off.
        erasing: probability of erasing a rectangle of an image.
    """

    crop: bool = False
    colour: bool = False
    flip: bool = False
    randaugment: int = 0
    erasing: float = 0.0
    _operations: list[Any] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def of(cls, config: TransferConfig) -> "Augmentation":
        """What a configuration asks for."""
        light = config.augmentation != "none"
        flip = config.augmentation == "flip"
        return cls(light, light, flip, config.randaugment, config.random_erasing)

    def pixels(self, batch: Tensor) -> Tensor:
        """Change the geometry of a uint8 batch [n, 3, H, W]; same shape and type."""
        if self.randaugment:
            batch = self._randaugmented(batch)
        if self.crop:
            batch = _cropped(batch)
        if self.flip:
            mirrored = torch.rand(len(batch)) < 0.5
            batch = torch.where(mirrored.to(batch.device).view(-1, 1, 1, 1), batch.flip(-1), batch)
        return batch

    def normalised(self, batch: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
        """A uint8 batch as float32, (x / 255 - mean) / std per channel, its colours changed and parts erased."""
        scale = 1 / (255 * torch.tensor(std, device=batch.device).view(1, -1, 1, 1))
        shift = -(torch.tensor(mean) / torch.tensor(std)).to(batch.device).view(1, -1, 1, 1)
        values = batch.float()
        if self.colour:
            brightness, contrast = (1 + _COLOUR * (2 * torch.rand(2, len(batch), 1, 1, 1) - 1)).to(batch.device)
            # What is brightened (b x) and then spread around its mean m (c (b x - m) + m) is one line in x.
            middle = brightness * values.mean(dim=(1, 2, 3), keepdim=True)
            shift = shift + scale * middle * (1 - contrast)
            scale = scale * brightness * contrast
        values = values.mul_(scale).add_(shift)
        return self._erased(values) if self.erasing else values

    def _randaugmented(self, batch: Tensor) -> Tensor:
        if not self._operations:
            from torchvision.transforms import v2

            middle = [127, 127, 127]
            self._operations.append(v2.RandAugment(_RANDAUGMENT_OPERATIONS, self.randaugment, fill=middle))
        (change,) = self._operations
        changed = torch.stack([change(image) for image in batch])
        return changed.contiguous(memory_format=torch.channels_last)

    def _erased(self, values: Tensor) -> Tensor:
        from torchvision.transforms import v2

        erase = v2.RandomErasing(self.erasing, inplace=True)  # to zero: the mean of what the network has learnt on
        for image in values:
            erase(image)
        return values


def _cropped(batch: Tensor) -> Tensor:
    """A random part of every image, enlarged (bilinear) to its whole size."""
    size = torch.tensor(batch.shape[-2:], dtype=torch.float32)
    corners, sides = _random_boxes(len(batch), size)
    if batch.is_cuda:
        return _resampled(batch, corners, sides, size)
    cropped = torch.empty_like(batch)
    boxes = zip(corners.int().tolist(), sides.int().tolist(), strict=True)
    for index, ((top, left), (height, width)) in enumerate(boxes):
        part = batch[index : index + 1, :, top : top + height, left : left + width]
        # On bytes this is five times faster than sampling a batch of floats along a grid.
        cropped[index] = functional.interpolate(part, tuple(batch.shape[-2:]), mode="bilinear", antialias=True)[0]
    return cropped


def _random_boxes(count: int, size: Tensor) -> tuple[Tensor, Tensor]:
    """Corners and sides [n, 2], (vertical, horizontal) in whole pixels, of boxes within an image of `size`."""
    area = torch.empty(count).uniform_(*_AREA)
    aspect = torch.exp(torch.empty(count).uniform_(*torch.tensor(_ASPECT).log().tolist()))
    sides = (torch.stack([area / aspect, area * aspect], dim=1).sqrt() * size).round().minimum(size)
    corners = (torch.rand(count, 2) * (size - sides + 1)).floor().minimum(size - sides)
    return corners, sides


def _resampled(batch: Tensor, corners: Tensor, sides: Tensor, size: Tensor) -> Tensor:
    """The same by one kernel on a GPU: [n, 2] corners and sides as (vertical, horizontal), in pixels."""
    theta = torch.zeros(len(batch), 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = (sides / size)[:, 1], (sides / size)[:, 0]
    theta[:, :, 2] = ((2 * corners + sides) / size - 1).flip(1)
    grid = functional.affine_grid(theta.to(batch.device), list(batch.shape), align_corners=False)
    sampled = functional.grid_sample(batch.float(), grid, padding_mode="border", align_corners=False)
    return sampled.round_().to(torch.uint8).contiguous(memory_format=torch.channels_last)
