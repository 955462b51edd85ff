"""How long training takes, forecast from the probe's speed and from the trials that have run."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import optuna

from autotransfer.datasets import Dataset
from autotransfer.search.candidates import Pool
from autotransfer.sources import Level
from autotransfer.transfer.config import TransferConfig

# An image's forward and backward pass, its augmentation and its share of validation, in forward passes:
# used until the first trial of the study has told better.
_TRAIN_OVER_FORWARD = 6.0
_REFIT_MARGIN = 1.1
_LEAST_WORK = 0.02  # a batch costs something even where all of it is replayed


@dataclass(frozen=True)
class Forecast:
    """What is known about speed at one moment of a study.

    Attributes:
        pool: its probes say what a forward pass costs.
        images: number of training images.
        ratios: what trials have shown: seconds of training by seconds of a forward pass over the same images,
            one a trial, by source.
    """

    pool: Pool
    images: int
    ratios: Mapping[str, list[float]]

    @classmethod
    def of(cls, study: optuna.Study, pool: Pool, images: int) -> "Forecast":
        """The forecast from what a study's trials have shown."""
        ratios: dict[str, list[float]] = {}
        for trial in study.get_trials(deepcopy=False):
            if "train_over_forward" in trial.user_attrs:
                source = trial.user_attrs["config"]["source"]
                ratios.setdefault(source, []).append(trial.user_attrs["train_over_forward"])
        return cls(pool, images, ratios)

    def forward_seconds(self, config: TransferConfig) -> float:
        """One forward pass of a configuration's network over the training images."""
        made = self.pool.probes[config.source]
        levels = self._levels(config)
        share = levels[self._depth(config) - 1].flops / max(1, levels[-1].flops)
        return made.seconds / max(1, len(made.rows)) * self.images * share

    def seconds(self, config: TransferConfig) -> float:
        """The training of a configuration: by its own source's trials, else by all trials."""
        return self._preparation_seconds(config) + config.epochs * self._epoch_seconds(config)

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
        known = self.ratios.get(config.source) or [ratio for ratios in self.ratios.values() for ratio in ratios]
        ratio = float(np.median(known)) if known else _TRAIN_OVER_FORWARD
        return self.forward_seconds(config) * self._work(config) * ratio

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
    return float(trial.user_attrs.get("seconds", 0.0)) * growth * _REFIT_MARGIN
