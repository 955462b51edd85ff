"""From decoded images to batches: as timm does it."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from autotransfer.datasets import decode_image
from autotransfer.transfer.inputs import normalise, to_batch

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
