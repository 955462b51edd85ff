"""Files that can be made again: written whole or not at all, kept under a limit, the least recently used go first.

Below one folder lie `decoded` (images at one size), `features` (probes) and `activations` (of frozen layers).
Every process on the machine reads and writes the same folder. A file appears under its name only when it is
complete; one that is taken away stays readable for whoever has opened it.
"""

import contextlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from autotransfer.errors import CacheError

logger = logging.getLogger(__name__)

KINDS = ("decoded", "features", "activations")
_ABANDONED_AFTER_SECONDS = 24 * 3600


@dataclass(frozen=True)
class Usage:
    """What one kind of files takes: `size` in bytes."""

    kind: str
    files: int
    size: int


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place if the block succeeds, and vanishes if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path.parent)
    handle, name = tempfile.mkstemp(prefix=f"{path.stem}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def used(path: Path) -> None:
    """Note that a file is in use: it goes last."""
    with contextlib.suppress(OSError):  # taken away, or another user's, meanwhile: what is opened stays open
        os.utime(path)


def open_array(path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.memmap | None:
    """A `.npy` file as a read-only memory-mapped array; None if it is not there or not what it should be."""
    try:
        array: np.memmap = np.lib.format.open_memmap(path, mode="r")
        whole = array.shape == shape and array.dtype == dtype and path.stat().st_size == array.offset + array.nbytes
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError, SyntaxError):
        whole = False
    if not whole:
        logger.warning("The cache file %s is damaged and is built again.", path)
        return None
    used(path)
    return array


def make_room(cache_dir: Path, needed: int, limit: int) -> None:
    """Take away the least recently used files until `needed` more bytes stay under `limit` and fit on the disk.

    Raises:
        CacheError: `needed` is more than the disk has, whatever is taken away.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    files = sorted(_files(cache_dir), key=lambda found: found[1].st_mtime)
    total = sum(status.st_size for _, status in files)
    free = shutil.disk_usage(cache_dir).free
    if needed > free + total:
        raise CacheError(
            f"{needed / 1e9:.1f} GB are needed in {cache_dir} but {(free + total) / 1e9:.1f} GB are free. Free some "
            "space, or set AUTOTRANSFER_CACHE_DIR to a folder on a larger disk."
        )
    for path, status in files:
        if total + needed <= limit and needed <= shutil.disk_usage(cache_dir).free:
            break
        with contextlib.suppress(OSError):  # in use where open files cannot be removed, or gone already
            path.unlink()
            total -= status.st_size


def usage(cache_dir: Path) -> list[Usage]:
    """How much each kind of files takes."""
    found = _files(cache_dir)
    return [
        Usage(
            kind,
            sum(path.parent.name == kind for path, _ in found),
            sum(status.st_size for path, status in found if path.parent.name == kind),
        )
        for kind in KINDS
    ]


def clear(cache_dir: Path) -> list[Usage]:
    """Take all files away, half-written ones too; what was there."""
    before = usage(cache_dir)
    for kind in KINDS:
        for path in _existing(cache_dir / kind, "*"):
            path.unlink(missing_ok=True)
    return before


def _files(cache_dir: Path) -> list[tuple[Path, os.stat_result]]:
    found = []
    for kind in KINDS:
        for path in _existing(cache_dir / kind, "*"):
            with contextlib.suppress(OSError):  # taken away meanwhile
                if path.suffix != ".tmp":
                    found.append((path, path.stat()))
    return found


def _existing(folder: Path, pattern: str) -> list[Path]:
    return [path for path in folder.glob(pattern) if path.is_file()] if folder.is_dir() else []


def _remove_abandoned(folder: Path) -> None:
    """Temporary files of processes that were killed long ago."""
    for temporary in _existing(folder, "*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - temporary.stat().st_mtime > _ABANDONED_AFTER_SECONDS:
                temporary.unlink()
