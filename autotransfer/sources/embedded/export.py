"""Writing a trained source as a folder in timm's hub layout, in float16, with its model card."""

import json
import tempfile
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import timm
import torch
from torch import nn

from autotransfer.errors import SourceError
from autotransfer.sources.embedded.tasks import Task
from autotransfer.sources.embedded.training import MEAN, STD
from autotransfer.sources.embedded.zoo import ZooEntry

MAX_BYTES = 2_500_000
_LICENSE = "apache-2.0"


def write_weights_and_config(folder: Path, entry: ZooEntry, task: Task, model: nn.Module) -> None:
    """Write `model.safetensors` (float16) and `config.json` into an existing folder.

    Raises:
        SourceError: the weights do not fit into `MAX_BYTES`, or do not survive float16.
    """
    weights = folder / "model.safetensors"
    # Not save_file, which makes files that only their owner may read: wrong for an installed package.
    weights.write_bytes(safetensors.torch.save(_to_half(model, entry.name), metadata={"format": "pt"}))
    if weights.stat().st_size > MAX_BYTES:
        raise SourceError(
            f"{entry.name}: the weights take {weights.stat().st_size} bytes in float16, at most {MAX_BYTES} "
            "are allowed. Narrow the architecture with model_args in zoo.py."
        )
    config = json.dumps(_hub_config(entry, task, model), indent=2) + "\n"
    (folder / "config.json").write_text(config, encoding="utf-8")


def open_exported(folder: Path) -> nn.Module:
    """Open an exported folder with timm alone, as any user would."""
    return cast(nn.Module, timm.create_model(f"local-dir:{folder}", pretrained=True)).eval()


def staging_folder(destination: Path) -> tempfile.TemporaryDirectory[str]:
    """Return a temporary folder inside the destination, so that moving files out of it is atomic."""
    destination.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=".building-", dir=destination)


def publish(staging: Path, destination: Path) -> None:
    """Move every file of a staging folder over the destination's, each atomically, `config.json` last.

    A folder without `config.json` is no source yet, so a first build never shows a half-written one.
    """
    for file in sorted(staging.iterdir(), key=lambda path: path.name == "config.json"):
        file.replace(destination / file.name)


def _to_half(model: nn.Module, name: str) -> dict[str, torch.Tensor]:
    """Return the state dict with every floating tensor in float16, counters as they are."""
    state = {}
    for key, tensor in model.state_dict().items():
        half = tensor.half() if tensor.is_floating_point() else tensor
        if not torch.isfinite(half).all():
            raise SourceError(f"{name}: {key} does not fit into float16 (largest {tensor.abs().max():.3g}).")
        state[key] = half.contiguous()
    return state


def _hub_config(entry: ZooEntry, task: Task, model: nn.Module) -> dict[str, Any]:
    """Return the content of `config.json`, with the keys that timm reads."""
    default = cast(dict[str, Any], model.pretrained_cfg)
    with torch.inference_mode():
        features = cast(Any, model).forward_features(torch.zeros(1, 3, entry.image_size, entry.image_size))
    pool_size = list(features.shape[-2:]) if features.ndim == 4 else None
    return {
        "architecture": entry.architecture,
        "num_classes": len(task.class_names),
        "num_features": cast(int, model.num_features),
        "label_names": list(task.class_names),
        "pretrained_cfg": {
            "tag": entry.task,
            "custom_load": False,
            "input_size": [3, entry.image_size, entry.image_size],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(MEAN),
            "std": list(STD),
            "num_classes": len(task.class_names),
            "pool_size": pool_size,
            "first_conv": default["first_conv"],
            "classifier": default["classifier"],
            "license": _LICENSE,
        },
        "model_args": dict(entry.model_args),
    }
