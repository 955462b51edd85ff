"""What this machine offers: versions, device, hub, caches, tracking store, embedded sources.

Made to be pasted into an issue, so passwords in addresses are hidden.
"""

import os
import platform
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from autotransfer.quantities import format_bytes

Findings = Mapping[str, Mapping[str, str]]

_PACKAGES = ("torch", "torchvision", "timm", "optuna", "mlflow", "scikit-learn", "pandas", "numpy", "pydantic")
_PASSWORD = re.compile(r"(://[^:/@\s]*):[^@/\s]*@")


def examine(timeout_seconds: float = 3.0) -> Findings:
    """Look at everything once; section -> name -> finding. Nothing is written or downloaded."""
    return {
        "versions": _versions(),
        "device": _device(),
        "hub": _hub(timeout_seconds),
        "caches": _caches(),
        "tracking": _tracking(),
        "embedded sources": _embedded(),
    }


def folder_size(folder: Path) -> int:
    """Bytes in the files under `folder`, links not followed; 0 where there is no such folder."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += (Path(root) / name).lstat().st_size
            except FileNotFoundError:  # another process may be cleaning up
                continue
    return total


def hide_password(address: str) -> str:
    """An address without the password in it.

    Example:
        >>> hide_password("postgresql://ann:secret@db/studies")
        'postgresql://ann:***@db/studies'
    """
    return _PASSWORD.sub(r"\1:***@", address)


def _versions() -> dict[str, str]:
    found = {"autotransfer": _version("autotransfer"), "python": platform.python_version()}
    return found | {name: _version(name) for name in _PACKAGES} | {"system": platform.platform()}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _device() -> dict[str, str]:
    import torch

    found = {"cpu": f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"}
    if not torch.cuda.is_available():
        return found | {"cuda": "none: --device auto means cpu"}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = f"{properties.name}, {format_bytes(properties.total_memory)}"
    return found


def _hub(timeout_seconds: float) -> dict[str, str]:
    from huggingface_hub import constants

    from autotransfer.sources.hub import hub_state

    if constants.HF_HUB_OFFLINE:
        return {hide_password(constants.ENDPOINT): "not asked: HF_HUB_OFFLINE is set"}
    return {hide_password(constants.ENDPOINT): hub_state(constants.ENDPOINT, timeout_seconds)}


def _caches() -> dict[str, str]:
    from huggingface_hub import constants

    from autotransfer.disk_cache import usage
    from autotransfer.settings import settings

    cache, limit = settings().cache_dir, settings().cache_limit
    kinds = ", ".join(f"{kind.kind} {format_bytes(kind.size)}" for kind in usage(cache))
    total = sum(kind.size for kind in usage(cache))
    folders = {"studies": settings().home, "hub downloads": Path(constants.HF_HUB_CACHE)}
    return {
        "cache": f"{cache} ({format_bytes(total)} of {format_bytes(limit)}: {kinds})",
        **{
            name: f"{folder} ({format_bytes(folder_size(folder)) if folder.is_dir() else 'not there yet'})"
            for name, folder in folders.items()
        },
    }


def _tracking() -> dict[str, str]:
    from autotransfer.settings import settings

    uri = settings().default_tracking_uri()
    if not uri.startswith("sqlite:///"):
        return {"store": hide_password(uri)}
    file = Path(uri.removeprefix("sqlite:///"))
    return {"store": f"{uri} ({format_bytes(file.stat().st_size) if file.is_file() else 'made by the first study'})"}


def _embedded() -> dict[str, str]:
    from autotransfer.sources.embedded import embedded_folder, embedded_names

    return {f"embedded:{name}": format_bytes(folder_size(embedded_folder(name))) for name in embedded_names()}
