"""How long training takes, forecast from the probe's speed and from the trials that have run."""

from collections.abc import Mapping
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
_START_SECONDS = 1.0  # loading, solving the head: until the first trial has told
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
        starts: seconds from the choice of a configuration to its first epoch, of the trials so far.
    """

    pool: Pool
    images: int
    ratios: Mapping[str, list[float]]
    cached_views: int = 0
    starts: tuple[float, ...] = ()

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
        starts = [t.user_attrs["start_seconds"] for t in trials if "start_seconds" in t.user_attrs]
        return cls(workshop.pool, len(workshop.dataset.rows("train")), ratios, views, tuple(starts))

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
        """`seconds` of many configurations at once, as the space trains them, with what starting takes: [m]."""
        source, k = points.source, points.transferred
        probes = [self.pool.probes[name] for name in landscape.sources]
        image = np.array([made.seconds / max(1, len(made.rows)) for made in probes])
        ratio = np.array([self._ratio(name) for name in landscape.sources])
        top = landscape.depths[source] - 1
        whole = landscape.flops[source, top]
        depth = landscape.flops[source, np.where(points.drop & (k > 0), k - 1, top)]
        frozen = np.where(points.frozen > 0, landscape.flops[source, np.maximum(points.frozen, 1) - 1], 0.0) / depth
        forward = image[source] * self.images * depth / np.maximum(whole, 1)
        views = np.where(points.frozen > 0, self.cached_views, 0)
        work = np.where(views > 0, np.maximum(_LEAST_WORK, 1 - frozen), 1 - frozen * 2 / 3)
        start = float(np.median(self.starts)) if self.starts else _START_SECONDS
        total: Array = start + forward * frozen * views + epochs * forward * work * ratio[source]
        return total

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
        return self.forward_seconds(config) * self._work(config) * self._ratio(config.source)

    def _ratio(self, source: str) -> float:
        known = self.ratios.get(source) or [ratio for ratios in self.ratios.values() for ratio in ratios]
        return float(np.median(known)) if known else _TRAIN_OVER_FORWARD

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


def refit_seconds(trial: optuna.trial.FrozenTrial, dataset: Dataset) -> float:
    """How long training a finished trial's configuration on train + validation takes."""
    growth = len(dataset.rows("train", "val")) / len(dataset.rows("train"))
    return train_seconds(trial) * growth


def train_seconds(trial: optuna.trial.FrozenTrial) -> float:
    """How long training a finished trial's configuration again takes, all of its epochs."""
    seconds = trial.user_attrs.get("whole_seconds", trial.user_attrs.get("seconds", 0.0))
    return float(seconds) * _REFIT_MARGIN
