"""One image file -> RGB pixels, the same for probing, training and prediction.

The pixels are those that timm's evaluation transform makes (`crop_mode="squash"`, `crop_pct=1.0`) from an
ordinary RGB file. What timm leaves to `Image.convert("RGB")` is made explicit here, so that no file comes
out black, rotated or with invented colours: EXIF orientation is applied, transparency is composited on
white, 16-bit and floating-point values are scaled to 8 bits.
"""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from autotransfer.errors import DatasetError

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)

# Pillow's decoders meet arbitrary bytes and raise more than OSError for broken ones.
UNDECODABLE = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, EOFError, MemoryError),
    *(AttributeError, NotImplementedError, struct.error, zlib.error, Image.DecompressionBombError),
)

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}
_ORIENTATION_TAG = 0x0112
_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode_image(
    source: str | os.PathLike[str] | bytes, size: int, interpolation: str = "bilinear"
) -> npt.NDArray[np.uint8]:
    """Decode one image and resize it to a square, aspect ratio not kept ("squash").

    Args:
        source: Path of an image file, or its bytes. Of an animation, the first frame counts.
        size: Side of the result in pixels.
        interpolation: Pillow's resampling filter: nearest, bilinear, bicubic, box, hamming or lanczos.

    Returns:
        RGB pixels, uint8 [size, size, 3].

    Raises:
        DatasetError: If the file cannot be read or decoded.
        ValueError: If `size` or `interpolation` is not valid.
    """
    if size < 1:
        raise ValueError(f"size must be at least 1 but got {size}.")
    if interpolation not in _RESAMPLING:
        raise ValueError(f"interpolation must be one of {', '.join(_RESAMPLING)} but got {interpolation!r}.")
    try:
        image = open_rgb(source)
        return np.array(image.resize((size, size), _RESAMPLING[interpolation]))
    except UNDECODABLE as error:
        name = "The image given as bytes" if isinstance(source, bytes) else f"Image {os.fspath(source)!r}"
        raise DatasetError(
            f"{name} cannot be decoded: {reason_undecodable(error)}. Replace it, or leave it out."
        ) from error


def open_rgb(source: str | os.PathLike[str] | bytes) -> Image.Image:
    """The image, fully decoded, upright, as 8-bit RGB; raises one of `UNDECODABLE` if it is broken."""
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    if not data:
        raise ValueError("the file is empty")
    with Image.open(io.BytesIO(data)) as opened:
        opened.load()
        upright = _upright(opened)
    return _to_rgb(upright)


def reason_undecodable(error: BaseException) -> str:
    """Why an image cannot be decoded, in words without memory addresses or file objects."""
    if isinstance(error, UnidentifiedImageError):
        return "it is not an image in a format that Pillow reads"
    if isinstance(error, FileNotFoundError):
        return "the file does not exist"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip().rstrip(".") or type(error).__name__


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except UNDECODABLE:
        return image  # a broken EXIF block: the pixels are fine, and so is the usual orientation
    transpose = _ORIENTATION.get(orientation) if isinstance(orientation, int) else None
    return image if transpose is None else image.transpose(transpose)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Grey values of 16 bits or floating point, scaled to 0..255.

    Integers are read as 0..65535 (Pillow opens 16-bit PNG and TIFF as I or I;16), floating point as 0..1 if
    no value is above 1, else as 0..255. The scale depends on the format, not on one image's extremes, so that
    brightness stays comparable between images.
    """
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    if image.mode != "F":
        values /= 257
    elif values.max(initial=0) <= 1:
        values *= 255
    return Image.fromarray(np.clip(np.round(values), 0, 255).astype(np.uint8))
