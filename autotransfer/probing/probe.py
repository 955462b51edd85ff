"""The probe: one forward pass of a source over some of the target's images, features of all levels."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
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

    def joined(self, other: "Probe") -> "Probe":
        """Two probes of the same source on different rows as one."""
        rows = np.concatenate([self.rows, other.rows])
        order = np.argsort(rows)
        probabilities = None
        if self.probabilities is not None and other.probabilities is not None:
            probabilities = np.concatenate([self.probabilities, other.probabilities])[order]
        return replace(
            self,
            rows=rows[order],
            features=tuple(np.concatenate(pair)[order] for pair in zip(self.features, other.features, strict=True)),
            probabilities=probabilities,
            seconds=self.seconds + other.seconds,
            cached=self.cached and other.cached,
        )


def probe(
    source: Source,
    dataset: Dataset,
    rows: npt.NDArray[np.int64],
    *,
    image_size: int,
    cache_dir: Path,
    device: torch.device,
    model: nn.Module | None = None,
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
        weights=weights_hash(network),
        preprocessing=[image_size, data.interpolation, data.mean, data.std],
        levels=[level.timm_index for level in source.levels],
    )
    arrays = cache.get(key)
    cached = arrays is not None
    if arrays is None:
        images = DecodedImages(dataset, image_size, data.interpolation, cache_dir=cache_dir).array
        started = time.perf_counter()
        arrays = _extract(network, source, images, rows, device, go_on)
        arrays["seconds"] = np.array([time.perf_counter() - started])
        cache.put(key, arrays)
    return Probe(
        source=source.name,
        rows=rows,
        features=tuple(arrays[f"level.{level.index}"] for level in source.levels),
        probabilities=arrays.get("probabilities"),
        image_size=image_size,
        seconds=float(arrays["seconds"][0]),
        cached=cached,
    )


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
    parts: dict[str, list[npt.NDArray[np.float32]]] = {}
    for start in range(0, len(rows), BATCH_SIZE):
        if not go_on():
            raise InterruptedError("stopped while probing")
        chosen = rows[start : start + BATCH_SIZE]
        batch = normalise(to_batch(images[chosen], device), source.data_config.mean, source.data_config.std)
        try:
            final, outputs = network.forward_intermediates(batch) if lower else (network.forward_features(batch), [])
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, AssertionError, ValueError) as error:  # halonet, say, divides images into blocks
            raise SourceError(f"source '{source.name}' fails at {batch.shape[-1]} px: {error}") from error
        found = {f"level.{i + 1}": pool(outputs[timm_index]) for i, timm_index in enumerate(lower)}
        pooled = network.forward_head(final, pre_logits=True)
        found[f"level.{len(source.levels)}"] = pooled.flatten(1)
        if classify and start == 0:
            logits = network.forward_head(final)
            linear = _is_all_of_the_head(network.get_classifier(), pooled, logits)
        elif classify:  # the head's other layers need not run twice
            logits = network.get_classifier()(pooled) if linear else network.forward_head(final)
        if classify:
            found["probabilities"] = logits.softmax(dim=1)
        for name, value in found.items():
            parts.setdefault(name, []).append(value.float().cpu().numpy())
    return {name: np.concatenate(values) for name, values in parts.items()}


def _is_all_of_the_head(classifier: Any, pooled: Tensor, logits: Tensor) -> bool:
    """True where one linear layer on the pooled features gives the logits."""
    if not isinstance(classifier, nn.Linear) or pooled.shape[-1] != classifier.in_features:
        return False
    return torch.allclose(classifier(pooled), logits, rtol=1e-4, atol=1e-5)
