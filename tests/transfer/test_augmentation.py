"""Augmentation: each image changed on its own, recognisable, repeatable, as torchvision would change it."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional

from autotransfer.transfer import augmentation
from autotransfer.transfer.augmentation import Augmentation
from autotransfer.transfer.config import TransferConfig

LIGHT, FLIP = Augmentation(crop=True, colour=True), Augmentation(crop=True, colour=True, flip=True)
EVERYTHING = Augmentation(crop=True, colour=True, flip=True, randaugment=9, erasing=0.5)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pictures(count: int = 40, size: int = 24) -> torch.Tensor:
    """Dark on the left, bright on the right, noise on top."""
    ramp = torch.linspace(20, 200, size).round().expand(count, 3, size, size)
    noise = torch.randint(0, 20, (count, 3, size, size), generator=torch.Generator().manual_seed(0))
    return (ramp + noise).to(torch.uint8).contiguous(memory_format=torch.channels_last)


def augmented(change: Augmentation, batch: torch.Tensor, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return change.normalised(change.pixels(batch), MEAN, STD)


def in_pixels(values: torch.Tensor) -> torch.Tensor:
    return (values * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)) * 255


def rises(batch: torch.Tensor) -> torch.Tensor:
    """Which images are brighter on the right than on the left."""
    half = batch.shape[-1] // 2
    return batch[..., half:].float().mean(dim=(1, 2, 3)) > batch[..., :half].float().mean(dim=(1, 2, 3))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"augmentation": "none"}, Augmentation()),
        ({"augmentation": "light"}, LIGHT),
        ({"augmentation": "flip"}, FLIP),
        ({"augmentation": "flip", "randaugment": 9, "random_erasing": 0.5}, EVERYTHING),
    ],
)
def test_a_configuration_says_what_is_changed(changes, expected):
    config = TransferConfig(source="s", transferred_layers=1, upper_layers="drop", frozen_layers=0, learning_rate=0.1)
    assert Augmentation.of(config.replace(**changes)) == expected


def test_without_augmentation_images_are_only_normalised():
    batch = pictures()
    expected = functional.normalize(batch.float() / 255, list(MEAN), list(STD))
    torch.testing.assert_close(augmented(Augmentation(), batch), expected)


@pytest.mark.parametrize("change", [LIGHT, FLIP, EVERYTHING], ids=["light", "flip", "everything"])
@pytest.mark.parametrize("size", [16, 24, 48])
def test_augmented_images_have_the_size_that_they_had(change, size):
    values = augmented(change, pictures(8, size))
    assert values.shape == (8, 3, size, size)
    assert values.dtype == torch.float32
    assert torch.isfinite(values).all()


@pytest.mark.parametrize("change", [LIGHT, FLIP], ids=["light", "flip"])
def test_each_image_is_changed_on_its_own_and_stays_recognisable(change):
    same = pictures(1).expand(40, -1, -1, -1)
    changed = in_pixels(augmented(change, same))
    assert len({image.numpy().tobytes() for image in changed}) == 40
    assert (changed.mean(dim=(1, 2, 3)) / same[0].float().mean() - 1).abs().max() < 0.5
    contrast = [image[:, :, ::23].mean(dim=(0, 1)).diff().abs().item() for image in changed]
    assert min(contrast) > 60


def test_only_flip_mirrors():
    assert rises(augmented(LIGHT, pictures())).all()
    mirrored = (~rises(augmented(FLIP, pictures()))).sum()
    assert 8 <= mirrored <= 32


@pytest.mark.parametrize("change", [LIGHT, FLIP, EVERYTHING], ids=["light", "flip", "everything"])
def test_augmentation_is_drawn_from_torchs_seed_and_leaves_its_input_alone(change):
    given = pictures()
    draws = []
    for seed in (1, 1, 2):
        np.random.seed(len(draws))  # no other generator matters
        draws.append(augmented(change, given, seed))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(given, pictures())


def test_crops_are_those_that_torchvision_would_cut():
    """The boxes that were drawn, each cut out and enlarged by torchvision."""
    batch = torch.randint(0, 256, (6, 3, 40, 40), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    torch.manual_seed(0)
    corners, sides = (drawn.int().tolist() for drawn in augmentation._random_boxes(6, torch.tensor([40.0, 40.0])))
    torch.manual_seed(0)
    cropped = Augmentation(crop=True).pixels(batch)
    for image, found, (top, left), (height, width) in zip(batch, cropped, corners, sides, strict=True):
        assert 0.69 * 1600 <= height * width <= 1600
        assert 0 <= top <= 40 - height and 0 <= left <= 40 - width
        expected = functional.resized_crop(image, top, left, height, width, [40, 40], antialias=True)
        assert (expected.int() - found.int()).abs().max() <= 1


def test_the_kernel_for_gpus_cuts_the_same_boxes():
    batch = pictures(12, 32)
    torch.manual_seed(0)
    size = torch.tensor([32.0, 32.0])
    corners, sides = augmentation._random_boxes(12, size)
    found = augmentation._resampled(batch, corners, sides, size)
    for image, made, corner, side in zip(batch, found, corners.int().tolist(), sides.int().tolist(), strict=True):
        expected = functional.resized_crop(image, *corner, *side, [32, 32], antialias=True)
        assert (expected.float() - made.float()).abs().mean() < 1.5


def test_colours_change_as_torchvision_changes_them(monkeypatch):
    """Brightness, then contrast around the image's mean, on images that stay within 0..255."""
    batch = torch.randint(60, 160, (5, 3, 16, 16), dtype=torch.uint8)
    factors = torch.rand(2, 5, 1, 1, 1)
    monkeypatch.setattr(augmentation.torch, "rand", lambda *shape: factors)
    found = in_pixels(Augmentation(colour=True).normalised(batch, MEAN, STD))
    for image, made, brightness, contrast in zip(batch.float(), found, *(0.8 + 0.4 * factors).flatten(1), strict=True):
        brightened = image * brightness
        expected = (brightened - brightened.mean()) * contrast + brightened.mean()
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-2)


def test_erased_rectangles_have_the_mean_colour():
    values = augmented(Augmentation(erasing=1.0), pictures())
    erased = (values == 0).all(dim=1).flatten(1).float().mean(dim=1)
    assert (erased > 0.01).all() and (erased < 0.5).all()
    assert (augmented(Augmentation(erasing=0.5), pictures()) == 0).any(dim=(1, 2, 3)).float().mean() < 1
