"""The trained model: predicts from image files, and travels as a folder in timm's hub layout."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from autotransfer.datasets import decode_image
from autotransfer.errors import ModelDirectoryError, SourceError
from autotransfer.sources import DataConfig, Source, load_plugins, plugin_file, plugin_name
from autotransfer.task import TASKS, Task
from autotransfer.transfer.config import TransferConfig
from autotransfer.transfer.inputs import ImageInputs
from autotransfer.transfer.surgery import TransferModel, build_network
from autotransfer.transfer.training import predict

FORMAT_VERSION = 1
DESCRIPTION = "autotransfer.json"
_PLUGINS = "plugins"
_PREDICT_AT_ONCE = 256


@dataclass(frozen=True)
class TrainedModel:
    """A trained network with all that prediction needs.

    Attributes:
        network: the trained network.
        classes: names of its outputs, in order: classes, labels or numbers.
        config: the transfer configuration that it was trained with.
        source: the source that it was transferred from (its architecture is what is saved).
        preprocessing: mean, standard deviation, interpolation; the size is `config.image_size`.
        plugins: modules that register the architecture with timm.
        task: what its outputs mean.
    """

    network: TransferModel
    classes: tuple[str, ...]
    config: TransferConfig
    source: Source
    preprocessing: DataConfig
    plugins: tuple[str, ...] = ()
    task: Task = "classification"

    def outputs(self, images: Sequence[str | PathLike[str] | bytes]) -> npt.NDArray[np.float32]:
        """Probabilities of classes or labels, or numbers, [n, outputs], of images given as paths or bytes.

        Raises:
            DatasetError: a file cannot be read as an image.
        """
        size, parts = self.config.image_size, []
        device = next(self.network.parameters()).device
        for start in range(0, len(images), _PREDICT_AT_ONCE):
            chosen = images[start : start + _PREDICT_AT_ONCE]
            pixels = np.stack([decode_image(image, size, self.preprocessing.interpolation) for image in chosen])
            inputs = ImageInputs(pixels, self.preprocessing, device)
            parts.append(predict(self.network, inputs, np.arange(len(pixels)), self.task))
        return np.concatenate(parts) if parts else np.empty((0, len(self.classes)), np.float32)

    def predict(self, images: Sequence[str | PathLike[str] | bytes]) -> pd.DataFrame:
        """One row an image: `image` (its path), and what `prediction_columns` names.

        Classes: `label`, `confidence`, and `probability.<class>` for each. Label sets: `label` (the names of
        those with a probability of at least one half, joined by "; ") and `probability.<label>` for each.
        Numbers: `value.<name>` for each.
        """
        outputs = self.outputs(images)
        columns: dict[str, Any] = {
            "image": ["<bytes>" if isinstance(image, bytes) else os.fspath(image) for image in images]
        }
        if self.task == "classification":
            best = outputs.argmax(axis=1)
            columns["label"] = [self.classes[i] for i in best]
            columns["confidence"] = outputs[np.arange(len(best)), best].astype(float)
        elif self.task == "multilabel":
            columns["label"] = ["; ".join(np.array(self.classes)[row >= 0.5]) for row in outputs]
        for (name, kind), values in zip(
            prediction_columns(self.classes, self.task)[-len(self.classes) :], outputs.T, strict=True
        ):
            columns[name] = values.astype(kind)
        return pd.DataFrame(columns)

    @property
    def opens_with_timm(self) -> bool:
        """True where the saved folder opens with `timm.create_model("local-dir:...")`: nothing was cut off."""
        return self.network.head is None

    def save(self, folder: str | PathLike[str]) -> Path:
        """Write config.json and model.safetensors (timm's hub layout) and autotransfer.json to `folder`.

        The files of plugins are copied to `plugins/` inside it; loading never runs them unasked.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self._state().items()}
        metadata = {"format": "pt"}
        write_whole(target / "model.safetensors", lambda path: save_file(weights, path, metadata=metadata))
        _write_json(target / "config.json", self._timm_config())
        plugin_files = [f"{_PLUGINS}/{plugin_file(plugin).name}" for plugin in self.plugins]
        for plugin, copy in zip(self.plugins, plugin_files, strict=True):
            (target / copy).parent.mkdir(exist_ok=True)
            (target / copy).write_bytes(plugin_file(plugin).read_bytes())
        _write_json(
            target / DESCRIPTION,
            {
                "format_version": FORMAT_VERSION,
                "task": self.task,
                "classes": list(self.classes),
                "config": self.config.to_dict(),
                "preprocessing": asdict(self.preprocessing),
                "architecture": self.source.architecture,
                "model_args": self.source.model_args,
                "opens_with_timm": self.opens_with_timm,
                "plugins": [plugin_name(plugin) for plugin in self.plugins],
                "plugin_files": plugin_files,
            },
        )
        return target

    def _state(self) -> dict[str, torch.Tensor]:
        if self.opens_with_timm:
            return dict(self.network.backbone.state_dict())
        return dict(self.network.state_dict())

    def _timm_config(self) -> dict[str, Any]:
        size = self.config.image_size
        kept = {
            key: self.source.pretrained_cfg[key]
            for key in ("classifier", "first_conv", "fixed_input_size", "pool_size", "license")
            if self.source.pretrained_cfg.get(key) is not None
        }
        return {
            "architecture": self.source.architecture,
            "num_classes": len(self.classes),
            "label_names": list(self.classes),
            "model_args": self.source.model_args,
            "pretrained_cfg": {
                **kept,
                "num_classes": len(self.classes),
                "input_size": [3, size, size],
                "mean": list(self.preprocessing.mean),
                "std": list(self.preprocessing.std),
                "interpolation": self.preprocessing.interpolation,
                "crop_pct": 1.0,
                "crop_mode": "squash",
            },
        }


def load_model(folder: str | PathLike[str], *, plugins: Sequence[str] = ()) -> TrainedModel:
    """Open a folder that `TrainedModel.save` wrote.

    Args:
        folder: the model folder.
        plugins: modules or files that register the architecture with timm, where it is a user's own. Those
            that the model was trained with are in `plugins/` in the folder; they are code, so they run only
            where you name them here, or where Python finds modules of their names.

    Raises:
        ModelDirectoryError: the folder is not a saved model, or incomplete.
        SourceError: a plugin that the architecture needs cannot be found.
    """
    target = Path(folder)
    description = _read_description(target)
    try:
        classes = tuple(str(name) for name in description["classes"])
        needed = tuple(str(name) for name in description.get("plugins", ()))
        opens_with_timm = bool(description["opens_with_timm"])
        config = TransferConfig.from_dict(description["config"])
        task = description.get("task", "classification")
        if task not in TASKS:
            raise KeyError(f"task {task!r}")
        data = description["preprocessing"]
        preprocessing = DataConfig(**{**data, "mean": tuple(data["mean"]), "std": tuple(data["std"])})
    except (KeyError, TypeError) as error:
        raise ModelDirectoryError(
            f"{target / DESCRIPTION} is not what this version of autotransfer writes: {error}"
        ) from error
    try:
        load_plugins(plugins or needed)
    except SourceError as error:
        files = ", ".join(str(target / file) for file in description.get("plugin_files", ()))
        raise SourceError(
            f"the model in {target} needs code that registers its architecture with timm: {', '.join(needed)}. "
            f"Name it with plugins=[...] (--plugin on the command line); the folder holds a copy: {files}."
        ) from error
    source = Source(name=config.source, timm_name=f"local-dir:{target.resolve()}", kind="local-dir")
    network = build_network(
        source,
        transferred_layers=config.transferred_layers,
        upper_layers=config.upper_layers,
        num_classes=len(classes),
        drop_rate=config.drop_rate,
    )
    try:
        weights = load_file(target / "model.safetensors")
        (network.backbone if opens_with_timm else network).load_state_dict(weights)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise ModelDirectoryError(f"{target / 'model.safetensors'} cannot be loaded: {error}") from error
    return TrainedModel(
        network=network.eval(),
        classes=classes,
        config=config,
        source=source,
        preprocessing=preprocessing,
        plugins=tuple(plugins) or needed,
        task=task,
    )


def prediction_columns(classes: Sequence[str], task: Task) -> list[tuple[str, type]]:
    """Names and types of the columns that `TrainedModel.predict` adds to `image`, in order."""
    before: dict[Task, list[tuple[str, type]]] = {
        "classification": [("label", str), ("confidence", float)],
        "multilabel": [("label", str)],
        "regression": [],
    }
    prefix = "value" if task == "regression" else "probability"
    return [*before[task], *((f"{prefix}.{name}", float) for name in classes)]


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    missing = [name for name in (DESCRIPTION, "config.json", "model.safetensors") if not (folder / name).is_file()]
    if missing:
        raise ModelDirectoryError(
            f"{folder} is not a model folder: it has no {', '.join(missing)}. "
            "Give the folder that `autotransfer recommend --out` wrote."
        )
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelDirectoryError(f"{path} is damaged: {error}") from error
    if not isinstance(description, dict):
        raise ModelDirectoryError(f"{path} is damaged: it holds no object.")
    return description


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file beside `path`, then put it in its place: there is the old file or the new one."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_json(path: Path, value: object) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
