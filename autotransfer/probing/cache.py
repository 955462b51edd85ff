"""Probe features on disk: content-addressed, whole or absent, shared by all processes of the machine."""

import contextlib
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1  # raise it when the features of the same images and weights change

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
            arrays: Arrays = load_file(path)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError, ValueError) as error:
            logger.warning("%s is damaged (%s) and is computed again", path, error)
            return None
        with contextlib.suppress(OSError):  # taken away, or another user's, meanwhile: what is read is read
            os.utime(path)
        return arrays

    def put(self, key: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Keep `arrays` under `key`; readers see all of them or none."""
        self._folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self._folder, suffix=".tmp")
        os.close(handle)
        try:
            save_file({n: np.ascontiguousarray(a) for n, a in arrays.items()}, name)
            Path(name).replace(self._path(key))
        finally:
            Path(name).unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.safetensors"
