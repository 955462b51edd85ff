"""One parallel pass over all files: each is read once, hashed, and decoded completely.

Complete decoding is what finds truncated files before hours of training do.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from autotransfer.datasets.image import UNDECODABLE, open_rgb, reason_undecodable
from autotransfer.datasets.parallel import map_in_order
from autotransfer.errors import DatasetError

SHOWN = 5


def verified_content_hashes(images: Sequence[str], root: Path, workers: int | None = None) -> list[str]:
    """SHA-256 (hex) of every file, in order.

    Args:
        images: Absolute paths.
        root: The folder that paths are shown relative to in errors.
        workers: Threads; as many as there are cores by default.

    Raises:
        DatasetError: If any file cannot be decoded; lists the first five with their reasons.
    """
    hashes: list[str] = []
    broken: list[str] = []
    broken_count = 0
    for image, (content_hash, reason) in zip(images, map_in_order(_verify, images, workers), strict=True):
        hashes.append(content_hash)
        if reason:
            broken_count += 1
            if len(broken) < SHOWN:
                broken.append(f"  - {os.path.relpath(image, root)}: {reason}")
    if broken_count:
        if broken_count > SHOWN:
            broken.append(f"  - ... and {broken_count - SHOWN} more")
        raise DatasetError(
            "\n".join(
                [
                    f"{broken_count} of {len(images)} images in {root} cannot be decoded:",
                    *broken,
                    "Replace or remove these files (and their rows, if a manifest names them).",
                ]
            )
        )
    return hashes


def content_hash(data: bytes) -> str:
    """What identifies an image file: the SHA-256 of its bytes, as hex."""
    return hashlib.sha256(data).hexdigest()


def _verify(path: str) -> tuple[str, str]:
    try:
        data = Path(path).read_bytes()
        open_rgb(data)
    except UNDECODABLE as error:
        return "", reason_undecodable(error)
    return content_hash(data), ""
