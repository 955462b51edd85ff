"""From decoded images to batches: as timm does it; augmentation stays an image of the same thing."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from autotransfer.datasets import decode_image
from autotransfer.transfer.preprocessing import augmenter, normalise, to_batch

CPU = torch.device("cpu")


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [32, 64])
def test_batches_are_those_of_timms_evaluation_transform(interpolation, size):
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    transform = create_transform(
        input_size=(3, size, size), interpolation=interpolation, mean=mean, std=std, crop_pct=1.0, crop_mode="squash"
    )
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 256, (45, width, 3), dtype=np.uint8)) for width in (30, 45, 90)]
    expected = torch.stack([transform(picture) for picture in pictures])
    decoded = np.stack([decode_image(png(picture), size, interpolation) for picture in pictures])
    torch.testing.assert_close(normalise(to_batch(decoded, CPU), mean, std), expected, rtol=0, atol=1e-5)


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_a_batch_has_channels_first_and_keeps_every_pixel():
    images = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    batch = to_batch(images, CPU)
    assert batch.dtype == torch.uint8
    assert batch.shape == (2, 3, 4, 5)
    np.testing.assert_array_equal(batch.permute(0, 2, 3, 1).numpy(), images)
    np.testing.assert_array_equal(to_batch(images[::-1], CPU).permute(0, 2, 3, 1).numpy(), images[::-1])


def pictures(count: int = 40, size: int = 24) -> torch.Tensor:
    """Dark on the left, bright on the right, noise on top."""
    ramp = torch.linspace(20, 200, size).round().expand(count, 3, size, size)
    noise = torch.randint(0, 20, (count, 3, size, size), generator=torch.Generator().manual_seed(0))
    return (ramp + noise).to(torch.uint8)


def rises(batch: torch.Tensor) -> torch.Tensor:
    """Which images are brighter on the right than on the left."""
    half = batch.shape[-1] // 2
    return batch[..., half:].float().mean(dim=(1, 2, 3)) > batch[..., :half].float().mean(dim=(1, 2, 3))


def test_none_is_no_augmentation():
    assert augmenter("none", 24) is None


@pytest.mark.parametrize("augmentation", ["light", "flip"])
@pytest.mark.parametrize("size", [16, 24, 48])
def test_augmented_images_have_the_size_and_type_that_is_asked_for(augmentation, size):
    changed = augmenter(augmentation, size)(pictures())
    assert changed.shape == (40, 3, size, size)
    assert changed.dtype == torch.uint8


@pytest.mark.parametrize("augmentation", ["light", "flip"])
def test_each_image_is_changed_on_its_own_and_stays_recognisable(augmentation):
    torch.manual_seed(0)
    same = pictures(1).expand(40, -1, -1, -1)
    changed = augmenter(augmentation, 24)(same)
    assert len({image.numpy().tobytes() for image in changed}) == 40
    assert (changed.float().mean(dim=(1, 2, 3)) / same[0].float().mean() - 1).abs().max() < 0.5
    contrast = [image[:, :, ::23].float().mean(dim=(0, 1)).diff().abs().item() for image in changed]
    assert min(contrast) > 60


def test_only_flip_mirrors():
    torch.manual_seed(0)
    assert rises(augmenter("light", 24)(pictures())).all()
    mirrored = (~rises(augmenter("flip", 24)(pictures()))).sum()
    assert 8 <= mirrored <= 32


def test_augmentation_is_drawn_from_torchs_seed_and_leaves_its_input_alone():
    change, given = augmenter("flip", 24), pictures()
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(change(given))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(given, pictures())
