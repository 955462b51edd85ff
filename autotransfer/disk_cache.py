"""Files that can be made again: written whole or not at all, kept under a limit, the least recently used go first.

Below one folder lie `decoded` (images at one size), `features` (probes) and `activations` (of frozen layers).
Every process on the machine reads and writes the same folder. A file appears under its name only when it is
complete; what a process has mapped is locked (where the system has `flock`) and is not taken away to make room.
"""

import contextlib
import logging
import os
import shutil
import socket
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from autotransfer.errors import CacheError

if sys.platform != "win32":  # which does not remove files that are open
    import fcntl

logger = logging.getLogger(__name__)

KINDS = ("decoded", "features", "activations")
_ABANDONED_AFTER_SECONDS = 24 * 3600
_MOST_ATTEMPTS = 3  # to open what was just written: another process may clear the cache in between


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
    prefix = f"{path.stem}.{socket.gethostname()}.{os.getpid()}."
    handle, name = tempfile.mkstemp(prefix=prefix, suffix=".tmp", dir=path.parent)
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


def kept_array(path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike, build: Callable[[], None]) -> np.memmap:
    """A `.npy` file as a read-only memory-mapped array, written by `build` where it is not there.

    Raises:
        CacheError: it does not stay there.
    """
    for attempt in range(_MOST_ATTEMPTS + 1):
        array = open_array(path, shape, dtype)
        if array is not None:
            return array
        if attempt < _MOST_ATTEMPTS:
            build()
    raise CacheError(
        f"{path} was damaged or taken away right after it was written, {_MOST_ATTEMPTS} times. Does something else "
        "empty that folder? Set AUTOTRANSFER_CACHE_DIR to another one."
    )


def open_array(path: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.memmap | None:
    """A `.npy` file as a read-only memory-mapped array; None if it is not there or not what it should be."""
    try:
        array: np.memmap = np.lib.format.open_memmap(path, mode="r")
        lock_while_mapped(path, array)
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

    Files that are in use stay, also where the limit is exceeded by them: a warning says so.

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
        with contextlib.suppress(OSError):  # in use, or gone already
            _unlink_unused(path)
            total -= status.st_size
    if total + needed > limit:
        logger.warning(
            "%s holds %.1f GB that are in use, more than its limit of %.1f GB (AUTOTRANSFER_CACHE_LIMIT)",
            cache_dir, (total + needed) / 1e9, limit / 1e9,
        )  # fmt: skip


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
    """Take all files away but those that are being written; what was there."""
    before = usage(cache_dir)
    for kind in KINDS:
        _remove_abandoned(cache_dir / kind)
        for path in _existing(cache_dir / kind, "*"):
            if path.suffix != ".tmp":
                path.unlink(missing_ok=True)
    return before


def lock_while_mapped(path: Path, array: np.memmap) -> None:
    """Hold a shared lock on the file for as long as any part of the array is in use."""
    if sys.platform == "win32":
        return
    with contextlib.suppress(OSError):  # a file system without locks
        handle = os.open(path, os.O_RDONLY)
        weakref.finalize(array._mmap, os.close, handle)  # type: ignore[attr-defined]
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _unlink_unused(path: Path) -> None:
    """Remove a file.

    Raises:
        OSError: some process has it locked, or it is gone.
    """
    if sys.platform == "win32":
        path.unlink()
        return
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()


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
    """Temporary files of processes that are gone, or (on other machines) from long ago."""
    for temporary in _existing(folder, "*.tmp"):
        host, _, process = temporary.name.removesuffix(".tmp").rpartition(".")[0].rpartition(".")
        gone = host.endswith(f".{socket.gethostname()}") and process.isdigit() and not process_alive(int(process))
        with contextlib.suppress(OSError):
            if gone or time.time() - temporary.stat().st_mtime > _ABANDONED_AFTER_SECONDS:
                temporary.unlink()


def process_alive(number: int) -> bool:
    """True where this machine has a process of that number that has not ended."""
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    try:
        status = Path(f"/proc/{number}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # no such folder on this system, or it has just ended
        return True
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")  # ended, and not collected by its parent
