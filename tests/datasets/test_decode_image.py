"""One image to pixels: as timm does it, and right where a plain conversion would not be."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from timm.data import create_transform

from autotransfer.datasets import decode_image
from autotransfer.errors import DatasetError

NOISE = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
WHITE, RED, GREEN = (255, 255, 255), (255, 0, 0), (0, 255, 0)


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixel(data: bytes, x: int = 0, y: int = 0, size: int = 4) -> tuple[int, ...]:
    return tuple(decode_image(data, size, "nearest")[y, x].tolist())


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic", "lanczos"])
@pytest.mark.parametrize("size", [1, 24, 37, 64])
@pytest.mark.parametrize(
    ("mode", "format"),
    [("RGB", "JPEG"), ("RGB", "PNG"), ("L", "PNG"), ("CMYK", "JPEG"), ("P", "GIF"), ("1", "PNG")],
)
def test_pixels_are_those_of_timms_evaluation_transform(interpolation, size, mode, format):
    data = encoded(Image.fromarray(NOISE).convert(mode), format)
    transform = create_transform(
        input_size=(3, size, size),
        crop_pct=1.0,
        crop_mode="squash",
        interpolation=interpolation,
        normalize=False,
    )
    expected = transform(Image.open(io.BytesIO(data)).convert("RGB")).permute(1, 2, 0).numpy()
    actual = decode_image(data, size, interpolation)
    assert actual.dtype == np.uint8
    np.testing.assert_array_equal(actual, expected)


def test_a_path_and_its_bytes_give_the_same_pixels(tmp_path: Path):
    path = tmp_path / "noise.png"
    path.write_bytes(encoded(Image.fromarray(NOISE)))
    expected = decode_image(path.read_bytes(), 16)
    np.testing.assert_array_equal(decode_image(path, 16), expected)
    np.testing.assert_array_equal(decode_image(str(path), 16), expected)


def test_the_suffix_does_not_matter(tmp_path: Path):
    path = tmp_path / "really_a.png"
    path.write_bytes(encoded(Image.fromarray(NOISE), "JPEG"))
    assert decode_image(path, 8).shape == (8, 8, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(NOISE), exif=exif.tobytes())
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).resize((20, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(decode_image(data, 20), np.asarray(expected))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_a_broken_exif_block_does_not_matter():
    data = encoded(Image.fromarray(NOISE), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff\x01\x00")
    assert decode_image(data, 8).shape == (8, 8, 3)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_composited_on_white(mode):
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0)).convert(mode)
    assert pixel(encoded(clear)) == WHITE
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128)).convert(mode)
    assert pixel(encoded(half)) == (127, 127, 127)


def test_a_transparent_palette_entry_is_white():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([*RED, *GREEN])
    image.putpixel((0, 0), 1)
    data = encoded(image, transparency=0)
    assert pixel(data) == GREEN
    assert pixel(data, x=3, y=3) == WHITE


def test_a_transparent_colour_of_an_rgb_file_is_white():
    image = Image.new("RGB", (4, 4), RED)
    image.putpixel((0, 0), GREEN)
    data = encoded(image, transparency=RED)
    assert pixel(data) == GREEN
    assert pixel(data, x=3, y=3) == WHITE


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize(("value", "expected"), [(0, 0), (257, 1), (32896, 128), (65535, 255)])
def test_16_bit_values_are_scaled(format, value, expected):
    image = Image.fromarray(np.full((4, 4), value, dtype=np.uint16))
    assert pixel(encoded(image, format)) == (expected,) * 3


@pytest.mark.parametrize(("high", "expected"), [(1.0, 255), (200.0, 200), (1e9, 255), (float("nan"), 0)])
def test_floating_point_values_are_read_as_fractions_or_bytes(high, expected):
    values = np.full((4, 4), high, dtype=np.float32)
    assert pixel(encoded(Image.fromarray(values), "TIFF")) == (expected,) * 3


def test_the_first_frame_of_an_animation_counts():
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert pixel(data) == RED


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF"])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, format):
    path = tmp_path / "half.img"
    whole = encoded(Image.fromarray(NOISE), format)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=r"half\.img' cannot be decoded: ") as caught:
        decode_image(path, 8)
    assert "BytesIO" not in str(caught.value)


def test_other_faults_are_told_in_words(tmp_path: Path):
    with pytest.raises(DatasetError, match="does not exist"):
        decode_image(tmp_path / "gone.png", 8)
    with pytest.raises(DatasetError, match="given as bytes cannot be decoded: the file is empty"):
        decode_image(b"", 8)
    with pytest.raises(DatasetError, match="not an image in a format that Pillow reads"):
        decode_image(b"<html>404</html>", 8)


def test_decompression_bombs_are_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)
    with pytest.raises(DatasetError, match="decompression bomb"):
        decode_image(encoded(Image.fromarray(NOISE)), 8)


def test_options_are_checked():
    data = encoded(Image.fromarray(NOISE))
    with pytest.raises(ValueError, match="at least 1 but got 0"):
        decode_image(data, 0)
    with pytest.raises(ValueError, match=r"nearest, bilinear, .* but got 'sharp'"):
        decode_image(data, 8, "sharp")
