"""The probe: one forward pass of a source over some of the target's images, features of all levels."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from autotransfer.datasets import Dataset, DecodedImages
from autotransfer.errors import SourceError
from autotransfer.probing.cache import FeatureCache
from autotransfer.sources import Source, weights_hash
from autotransfer.sources.levels import classifier_parameters
from autotransfer.transfer.inputs import normalise, to_batch
from autotransfer.transfer.memory import in_batches, is_out_of_memory
from autotransfer.transfer.surgery import pool

BATCH_SIZE = 64


@dataclass(frozen=True)
class Probe:
    """What one forward pass of a source told.

    Attributes:
        source: name of the source.
        rows: positions in `dataset.samples`, ascending: [n].
        features: pooled features by level, level k at index k - 1: [n, D_k] float32.
        probabilities: the source's own class probabilities [n, S], None without a classifier.
        image_size: side of the input in pixels.
        seconds: that the pass took (when it was made).
        cached: True where it came from the disk.
    """

    source: str
    rows: npt.NDArray[np.int64]
    features: tuple[npt.NDArray[np.float32], ...]
    probabilities: npt.NDArray[np.float32] | None
    image_size: int
    seconds: float
    cached: bool

    def at(self, level: int, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Features of level 1..K for some of the probed rows."""
        return self.features[level - 1][np.searchsorted(self.rows, rows)]


def probe(
    source: Source,
    dataset: Dataset,
    rows: npt.NDArray[np.int64],
    *,
    image_size: int,
    cache_dir: Path,
    device: torch.device,
    model: nn.Module | None = None,
    known: Probe | None = None,
    go_on: Callable[[], bool] = lambda: True,
) -> Probe:
    """Probe `source` on `rows` of `dataset`, or take the result of an earlier probe from the cache.

    Args:
        source: what is probed.
        dataset: the target.
        rows: ascending positions in `dataset.samples`.
        image_size: side of the input in pixels.
        cache_dir: decoded images and features are kept below it.
        device: where the pass runs.
        model: the loaded source, to save loading it again.
        known: an earlier probe of the same source and size: what it has of `rows` is not computed again.
        go_on: asked before every batch; where it says False, `InterruptedError` is raised.

    Raises:
        SourceError: the source cannot be loaded or cut, or does not take images of that size.
    """
    network = model if model is not None else source.load()
    data = source.data_config
    cache = FeatureCache(cache_dir / "features")
    key = cache.key(
        dataset=dataset.fingerprint,
        order=_order(dataset),
        rows=rows.tolist(),
        network=source.code_identity(),
        weights=weights_hash(network),
        preprocessing=[image_size, data.interpolation, data.mean, data.std],
        levels=[level.timm_index for level in source.levels],
    )
    arrays = cache.get(key)
    cached = arrays is not None
    if arrays is None:
        images = DecodedImages(dataset, image_size, data.interpolation, cache_dir=cache_dir).array
        started = time.perf_counter()
        new = rows if known is None else np.setdiff1d(rows, known.rows)
        arrays = _extract(network, source, images, new, device, go_on) if len(new) else {}
        if known is not None:
            arrays = _joined(known, rows, new, arrays)
        before = known.seconds if known is not None else 0.0
        arrays["seconds"] = np.array([before + time.perf_counter() - started])
        cache.put(key, arrays)
        arrays = cache.get(key) or arrays  # mapped, where it stayed there
    return Probe(
        source=source.name,
        rows=rows,
        features=tuple(arrays[f"level.{level.index}"] for level in source.levels),
        probabilities=arrays.get("probabilities"),
        image_size=image_size,
        seconds=float(arrays["seconds"][0]),
        cached=cached,
    )


def _joined(
    known: Probe, rows: npt.NDArray[np.int64], new: npt.NDArray[np.int64], arrays: dict[str, npt.NDArray[Any]]
) -> dict[str, npt.NDArray[Any]]:
    """What is known of some of `rows` together with `arrays`, which are of the `new` ones."""
    old = {f"level.{k}": features for k, features in enumerate(known.features, start=1)}
    if known.probabilities is not None:
        old["probabilities"] = known.probabilities
    among = np.isin(known.rows, rows)
    order = np.argsort(np.concatenate([known.rows[among], new]))
    return {
        name: np.concatenate([values[among], *([arrays[name]] if len(new) else [])])[order]
        for name, values in old.items()
    }


def _order(dataset: Dataset) -> list[str]:
    return [str(value)[:16] for value in dataset.samples["content_hash"]]


@torch.inference_mode()
def _extract(
    model: nn.Module,
    source: Source,
    images: npt.NDArray[np.uint8],
    rows: npt.NDArray[np.int64],
    device: torch.device,
    go_on: Callable[[], bool],
) -> dict[str, npt.NDArray[Any]]:
    network: Any = model.to(device).to(memory_format=torch.channels_last).eval()
    lower = [level.timm_index for level in source.levels[:-1]]
    classify = source.has_classifier and bool(classifier_parameters(model))
    linear: bool | None = None

    def run(chosen: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.float32]]:
        nonlocal linear
        if not go_on():
            raise InterruptedError("stopped while probing")
        batch = normalise(to_batch(images[chosen], device), source.data_config.mean, source.data_config.std)
        try:
            final, outputs = network.forward_intermediates(batch) if lower else (network.forward_features(batch), [])
        except (RuntimeError, AssertionError, ValueError) as error:  # halonet, say, divides images into blocks
            if is_out_of_memory(error):
                raise
            raise SourceError(f"source '{source.name}' fails at {batch.shape[-1]} px: {error}") from error
        found = {f"level.{i + 1}": pool(outputs[timm_index]) for i, timm_index in enumerate(lower)}
        pooled = network.forward_head(final, pre_logits=True)
        found[f"level.{len(source.levels)}"] = pooled.flatten(1)
        if classify and linear is None:
            logits = network.forward_head(final)
            linear = _is_all_of_the_head(network.get_classifier(), pooled, logits)
        elif classify:  # the head's other layers need not run twice
            logits = network.get_classifier()(pooled) if linear else network.forward_head(final)
        if classify:
            found["probabilities"] = logits.softmax(dim=1)
        return {name: value.float().cpu().numpy() for name, value in found.items()}

    parts = list(in_batches(rows, BATCH_SIZE, run))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _is_all_of_the_head(classifier: Any, pooled: Tensor, logits: Tensor) -> bool:
    """True where one linear layer on the pooled features gives the logits."""
    if not isinstance(classifier, nn.Linear) or pooled.shape[-1] != classifier.in_features:
        return False
    return torch.allclose(classifier(pooled), logits, rtol=1e-4, atol=1e-5)
