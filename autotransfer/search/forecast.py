"""How long training takes, forecast from the probe's speed and from the trials that have run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import optuna

from autotransfer.datasets import Dataset
from autotransfer.search.candidates import Pool
from autotransfer.search.prior import Array, Ints, Landscape, Points
from autotransfer.search.workshop import Workshop
from autotransfer.sources import Level
from autotransfer.transfer.config import TransferConfig

# An image's forward and backward pass, its augmentation and its share of validation, in forward passes:
# used until the first trial of the study has told better.
_TRAIN_OVER_FORWARD = 6.0
_REFIT_MARGIN = 1.1
_OVERHEAD_SECONDS = 1.0  # of a trial beside its epochs: until the first one has told
_USUAL_SPEED = 2e10  # FLOPs a second, where no clock is to have a say
_LEAST_WORK = 0.02  # a batch costs something even where all of it is replayed


@dataclass(frozen=True)
class Forecast:
    """What is known about speed at one moment of a study.

    Attributes:
        pool: its probes say what a forward pass costs.
        images: number of training images.
        ratios: what trials have shown: seconds of training by seconds of a forward pass over the same images,
            one a trial, by source.
        cached_views: that the space keeps of images whose lower levels are frozen.
        overheads: seconds of the trials so far beside their epochs: building, solving the head, keeping the weights.
    """

    pool: Pool
    images: int
    ratios: Mapping[str, list[float]]
    cached_views: int = 0
    overheads: tuple[float, ...] = ()

    @classmethod
    def of(cls, study: optuna.Study, workshop: Workshop) -> "Forecast":
        """The forecast from what a study's trials have shown."""
        ratios: dict[str, list[float]] = {}
        trials = study.get_trials(deepcopy=False)
        for trial in trials:
            if "train_over_forward" in trial.user_attrs:
                source = trial.user_attrs["config"]["source"]
                ratios.setdefault(source, []).append(trial.user_attrs["train_over_forward"])
        training = workshop.space.training
        views = 0 if training.mixup or training.cutmix else training.cached_views
        overheads = [t.user_attrs["overhead_seconds"] for t in trials if "overhead_seconds" in t.user_attrs]
        return cls(workshop.pool, len(workshop.dataset.rows("train")), ratios, views, tuple(overheads))

    def forward_seconds(self, config: TransferConfig) -> float:
        """One forward pass of a configuration's network over the training images."""
        made = self.pool.probes[config.source]
        levels = self._levels(config)
        share = levels[self._depth(config) - 1].flops / max(1, levels[-1].flops)
        return made.seconds / max(1, len(made.rows)) * self.images * share

    def seconds(self, config: TransferConfig) -> float:
        """The training of a configuration: by its own source's trials, else by all trials."""
        return self._preparation_seconds(config) + config.epochs * self._epoch_seconds(config)

    def seconds_of(self, points: Points, landscape: Landscape, epochs: Ints) -> Array:
        """`seconds` of many configurations at once, as the space trains them, with what a trial adds: [m]."""
        probes = [self.pool.probes[name] for name in landscape.sources]
        forward = np.array([made.seconds / max(1, len(made.rows)) for made in probes]) * self.images
        ratio = np.array([ratio_of(name, self.ratios) for name in landscape.sources])
        return overhead_seconds(self.overheads) + training_seconds(
            points, landscape, epochs, forward, ratio, self.cached_views
        )

    def ratio(self, config: TransferConfig, epochs: int, seconds: float) -> float | None:
        """What a trial that took `seconds` for `epochs` epochs says about the ratio.

        None for those that replay activations: what they took depends on what was there already.
        """
        if config.cached_views:
            return None
        return seconds / max(1e-9, self.forward_seconds(config) * self._work(config) * epochs)

    def most_epochs(self, config: TransferConfig, seconds: float) -> int:
        """How many epochs of a configuration fit."""
        left = max(0.0, seconds - self._preparation_seconds(config))
        return int(left / max(1e-9, self._epoch_seconds(config)))

    def _epoch_seconds(self, config: TransferConfig) -> float:
        return self.forward_seconds(config) * self._work(config) * ratio_of(config.source, self.ratios)

    def _preparation_seconds(self, config: TransferConfig) -> float:
        """The passes of the frozen part whose activations are kept, if none of them are there yet."""
        return self.forward_seconds(config) * self._frozen_share(config) * config.cached_views

    def _work(self, config: TransferConfig) -> float:
        """Work of an epoch by that of training everything: frozen levels run forward only, or not at all."""
        frozen = self._frozen_share(config)
        return max(_LEAST_WORK, 1 - frozen) if config.cached_views else 1 - frozen * 2 / 3

    def _frozen_share(self, config: TransferConfig) -> float:
        if not config.frozen_layers:
            return 0.0
        levels = self._levels(config)
        return levels[config.frozen_layers - 1].flops / max(1, levels[self._depth(config) - 1].flops)

    def _levels(self, config: TransferConfig) -> tuple[Level, ...]:
        return next(source for source in self.pool.sources() if source.name == config.source).levels

    def _depth(self, config: TransferConfig) -> int:
        cut = config.upper_layers == "drop" and config.transferred_layers
        return config.transferred_layers if cut else len(self._levels(config))


def training_seconds(
    points: Points, landscape: Landscape, epochs: Ints, forward: Array, ratio: Array, cached_views: int
) -> Array:
    """Seconds of the epochs of trainings: [m].

    Args:
        points: the configurations.
        landscape: says how much of a source's work lies below each level.
        epochs: of each, [m].
        forward: seconds of a forward pass of each whole source over the training images, [S].
        ratio: seconds of an epoch of training by those of a forward pass, [S].
        cached_views: kept of images whose lower levels are frozen; 0 where these run in every epoch.
    """
    source, k = points.source, points.transferred
    top = landscape.depths[source] - 1
    whole = landscape.flops[source, top]
    depth = landscape.flops[source, np.where(points.drop & (k > 0), k - 1, top)]
    frozen = np.where(points.frozen > 0, landscape.flops[source, np.maximum(points.frozen, 1) - 1], 0.0) / depth
    one_pass = forward[source] * depth / np.maximum(whole, 1)
    views = np.where(points.frozen > 0, cached_views, 0)
    work = np.where(views > 0, np.maximum(_LEAST_WORK, 1 - frozen), 1 - frozen * 2 / 3)
    total: Array = one_pass * frozen * views + epochs * one_pass * work * ratio[source]
    return total


def nominal_seconds(points: Points, landscape: Landscape, epochs: Ints, cached_views: int) -> Array:
    """`Forecast.seconds_of` by FLOPs alone, the same on every machine and in every run: [m]."""
    sources = np.arange(len(landscape.depths))
    forward = landscape.flops[sources, landscape.depths - 1] * landscape.train_images / _USUAL_SPEED
    ratio = np.full(len(sources), _TRAIN_OVER_FORWARD)
    return _OVERHEAD_SECONDS + training_seconds(points, landscape, epochs, forward, ratio, cached_views)


def ratio_of(source: str, ratios: Mapping[str, Sequence[float]]) -> float:
    """Training by a forward pass, as a source's own trials have shown it, else all trials, else as is usual."""
    known = ratios.get(source) or [ratio for of_one in ratios.values() for ratio in of_one]
    return float(np.median(known)) if known else _TRAIN_OVER_FORWARD


def overhead_seconds(overheads: Sequence[float]) -> float:
    """What a trial takes beside its epochs, as trials have shown it."""
    return float(np.median(overheads)) if overheads else _OVERHEAD_SECONDS


def refit_seconds(trial: optuna.trial.FrozenTrial, dataset: Dataset) -> float:
    """How long training a finished trial's configuration on train + validation takes."""
    growth = len(dataset.rows("train", "val")) / len(dataset.rows("train"))
    return train_seconds(trial) * growth


def train_seconds(trial: optuna.trial.FrozenTrial) -> float:
    """How long training a finished trial's configuration again takes, all of its epochs."""
    seconds = trial.user_attrs.get("whole_seconds", trial.user_attrs.get("seconds", 0.0))
    return float(seconds) * _REFIT_MARGIN
