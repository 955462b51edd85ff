"""Probe features on disk: content-addressed, whole or absent, shared by all processes of the machine."""

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from autotransfer import disk_cache
from autotransfer.settings import settings

logger = logging.getLogger(__name__)

FORMAT_VERSION = 2  # raise it when the features of the same images and weights change
_CHECKSUM = "checksum"
_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "I64": np.int64, "U8": np.uint8}

Arrays = dict[str, npt.NDArray[Any]]


class FeatureCache:
    """Arrays by key in one folder. A damaged entry counts as absent and is written again."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, made on first write."""
        self._folder = folder

    def key(self, **parts: object) -> str:
        """A key from whatever determines the arrays; parts must be JSON-able."""
        text = json.dumps({"version": FORMAT_VERSION, **parts}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:40]

    def get(self, key: str) -> Arrays | None:
        """The arrays of `key`, or None."""
        path = self._path(key)
        try:
            arrays = _mapped(path)
            kept = str(arrays.pop(_CHECKSUM, np.empty(0)).tolist())
            if kept != str(_checksum(arrays).tolist()):
                raise ValueError("its checksum does not fit")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is damaged (%s) and is computed again", path, error)
            return None
        disk_cache.used(path)
        return arrays

    def put(self, key: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Keep `arrays` under `key`; readers see all of them or none."""
        whole = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        size = sum(array.nbytes for array in whole.values())
        disk_cache.make_room(self._folder.parent, size, settings().cache_limit)
        with disk_cache.replacing(self._path(key)) as temporary:
            save_file({**whole, _CHECKSUM: _checksum(whole)}, temporary)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"


def _mapped(path: Path) -> Arrays:
    """The arrays of a safetensors file, memory-mapped: those of hundreds of sources need not fit into memory."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length < path.stat().st_size:
            raise ValueError("its header does not fit")
        header = json.loads(file.read(length))
    whole = np.memmap(path, np.uint8, mode="r", offset=8 + length)
    disk_cache.lock_while_mapped(path, whole)
    arrays = {}
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            arrays[name] = whole[start:end].view(_TYPES[entry["dtype"]]).reshape(entry["shape"])
    return arrays


def _checksum(arrays: Arrays) -> npt.NDArray[np.uint8]:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).data)
    return np.frombuffer(digest.digest(), np.uint8)
