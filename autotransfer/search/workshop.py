"""All that a trial needs and that does not change between trials."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from autotransfer.datasets import Dataset, DecodedImages
from autotransfer.errors import StudyError
from autotransfer.probing import fit_linear_head
from autotransfer.search.candidates import Candidate, Pool
from autotransfer.search.space import Space
from autotransfer.settings import settings
from autotransfer.sources import Source
from autotransfer.transfer.activations import ActivationStore
from autotransfer.transfer.config import TransferConfig
from autotransfer.transfer.evaluation import Metric
from autotransfer.transfer.inputs import ImageInputs, Inputs, Rows
from autotransfer.transfer.norms import extract_features, recalibrate
from autotransfer.transfer.surgery import TransferModel, transfer
from autotransfer.transfer.training import Scale, predict, set_classifier


@dataclass(frozen=True)
class Workshop:
    """All that a trial needs and that does not change between trials."""

    dataset: Dataset
    space: Space
    pool: Pool
    metric: Metric
    device: torch.device
    cache_dir: Path
    checkpoints: Path
    seed: int
    max_parameters: int | None
    max_latency_ms: float | None
    latencies_ms: dict[tuple[str, int], float]
    go_on: Callable[[], bool]

    def source(self, name: str) -> Source:
        """The source of that name."""
        return next(source for source in self.pool.sources() if source.name == name)

    def build(self, config: TransferConfig) -> TransferModel:
        """The network of `config`, its classifier not solved yet."""
        torch.manual_seed(self.seed)
        return transfer(
            self.source(config.source),
            transferred_layers=config.transferred_layers,
            upper_layers=config.upper_layers,
            frozen_layers=config.frozen_layers,
            num_classes=len(self.dataset.classes),
            drop_rate=config.drop_rate,
        )

    @contextmanager
    def started(self, config: TransferConfig, rows: Rows) -> Iterator[tuple[TransferModel, Inputs]]:
        """The network of `config` as training on `rows` begins, and where its batches come from.

        Where its head is to start from the linear probe: the norms that train measure the target's statistics,
        and the head is solved on the features that follow, over those of `rows` that were probed. While the
        context is open, frozen modules whose activations are kept are out of the network.
        """
        model = self.build(config)
        with self._activations(config).inputs(model, config, self.inputs(config.source), self.go_on) as inputs:
            self._solve_head(model, config, inputs, rows)
            yield model, inputs

    def predict(self, model: TransferModel, config: TransferConfig, split: str) -> npt.NDArray[np.float32]:
        """What a network says about the images of a split."""
        return predict(model, self.inputs(config.source), self.dataset.rows(split), self.dataset.task)

    def inputs(self, source: str) -> ImageInputs:
        """The target's images as a source wants them."""
        found = self.source(source)
        return ImageInputs(self.decoded(found).array, found.data_config, self.device)

    def decoded(self, source: Source) -> DecodedImages:
        """The target's decoded images at the size that `source` is used at."""
        size = self.pool.image_sizes[source.name]
        return DecodedImages(self.dataset, size, source.data_config.interpolation, cache_dir=self.cache_dir)

    def _activations(self, config: TransferConfig) -> ActivationStore:
        splits = tuple(rows for rows in (self.dataset.rows("train"), self.dataset.rows("val")) if len(rows))
        source = self.source(config.source)
        images_id = f"{self.decoded(source).path.stem} {source.code_identity()}"
        return ActivationStore(self.cache_dir, settings().cache_limit, images_id, splits)

    def _solve_head(self, model: TransferModel, config: TransferConfig, inputs: Inputs, rows: Rows) -> None:
        data = self.dataset
        if config.head != "linear_probe" or config.from_scratch or config.upper_layers == "reinit":
            Scale.of(data.targets[rows], data.task).give(model)
            return
        made = self.pool.probes[config.source]
        strength = self.pool.get(config.source, config.transferred_layers).head.strength
        known = rows[np.isin(rows, made.rows)]
        if recalibrate(model, inputs, known, seed=self.seed):
            features = extract_features(model, inputs, known)
        else:
            features = made.at(config.transferred_layers, known)
        head = fit_linear_head(features, data.targets[known], len(data.classes), strength, data.task)
        set_classifier(model, head.weight, head.bias)


def linear_probe_config(workshop: Workshop, source: str, level: int) -> TransferConfig:
    """The configuration that means: the linear probe of that (source, level), nothing trained."""
    return with_training(
        workshop,
        TransferConfig(
            source=source,
            transferred_layers=level,
            upper_layers="drop",
            frozen_layers=level,
            learning_rate=0.0,
            epochs=0,
        ),
    )


def within_limits(workshop: Workshop) -> list[Candidate]:
    """The candidates that keep within the hard limits.

    Raises:
        StudyError: none does; says what the smallest and the fastest one would need.
    """
    candidates, classes = workshop.pool.candidates, len(workshop.dataset.classes)
    configs = (linear_probe_config(workshop, c.source.name, c.level) for c in candidates)
    found = [c for c, config in zip(candidates, configs, strict=True) if not exceeds_limits(config, workshop)]
    if found:
        return found
    levels = (candidate.source.levels[candidate.level - 1] for candidate in candidates)
    smallest = min(level.parameter_count + (level.channels + 1) * classes for level in levels)
    least = [f"the smallest has {smallest:,} parameters"]
    if workshop.latencies_ms:
        least.append(f"the fastest takes {min(workshop.latencies_ms.values()):.2f} ms an image")
    raise StudyError(
        f"no (source, level) keeps within --max-params / --max-latency: {', '.join(least)}. Loosen the limits, or "
        "add smaller sources (--source)."
    )


def with_training(workshop: Workshop, config: TransferConfig) -> TransferConfig:
    """A configuration with what the space sets for every trial."""
    training = workshop.space.training
    chosen = training.model_dump(exclude={"max_image_size"})
    return config.replace(**chosen, image_size=workshop.pool.image_sizes[config.source])


def exceeds_limits(config: TransferConfig, workshop: Workshop) -> str:
    """Which hard limit a configuration breaks, or an empty string."""
    source = workshop.source(config.source)
    cut = config.upper_layers == "drop" and config.transferred_layers
    level = source.levels[(config.transferred_layers if cut else len(source.levels)) - 1]
    count = level.parameter_count + (level.channels + 1) * len(workshop.dataset.classes)
    if workshop.max_parameters is not None and count > workshop.max_parameters:
        return f"{count:,} parameters are more than --max-params {workshop.max_parameters:,}"
    latency = workshop.latencies_ms.get((source.name, level.index))
    if workshop.max_latency_ms is not None and latency is not None and latency > workshop.max_latency_ms:
        return f"{latency:.1f} ms an image are more than --max-latency {workshop.max_latency_ms:g}"
    return ""
