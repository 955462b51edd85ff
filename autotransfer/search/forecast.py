"""How long training takes, forecast from the probe's speed and from the trials that have run."""

from dataclasses import dataclass

import numpy as np
import optuna

from autotransfer.datasets import Dataset
from autotransfer.search.candidates import Pool
from autotransfer.transfer.config import TransferConfig

# An image's forward and backward pass, its augmentation and its share of validation, in forward passes:
# used until the first trial of the study has told better.
_TRAIN_OVER_FORWARD = 4.0
_REFIT_MARGIN = 1.1


@dataclass(frozen=True)
class Forecast:
    """What is known about speed at one moment of a study.

    Attributes:
        pool: its probes say what a forward pass costs.
        images: number of training images.
        train_over_forward: seconds of training by seconds of a forward pass over the same images.
    """

    pool: Pool
    images: int
    train_over_forward: float

    @classmethod
    def of(cls, study: optuna.Study, pool: Pool, images: int) -> "Forecast":
        """The forecast from a study's complete trials."""
        known = [
            trial.user_attrs["train_over_forward"]
            for trial in study.get_trials(deepcopy=False)
            if "train_over_forward" in trial.user_attrs
        ]
        return cls(pool, images, float(np.median(known)) if known else _TRAIN_OVER_FORWARD)

    def forward_seconds(self, config: TransferConfig) -> float:
        """One forward pass of a configuration's network over the training images."""
        made = self.pool.probes[config.source]
        levels = next(source for source in self.pool.sources() if source.name == config.source).levels
        cut = config.upper_layers == "drop" and config.transferred_layers
        share = levels[config.transferred_layers - 1].flops / max(1, levels[-1].flops) if cut else 1.0
        return made.seconds / max(1, len(made.rows)) * self.images * share

    def seconds(self, config: TransferConfig) -> float:
        """The training of a configuration."""
        return self.forward_seconds(config) * self.train_over_forward * config.epochs

    def train_over_forward_of(self, config: TransferConfig, seconds: float) -> float:
        """What a trial that took `seconds` says about the ratio."""
        return seconds / max(1e-9, self.forward_seconds(config) * config.epochs)

    def most_epochs(self, config: TransferConfig, left: float | None, share: float) -> int | None:
        """How many epochs of a configuration fit `share` of the seconds left; None without a limit."""
        if left is None:
            return None
        return int(left * share / max(1e-9, self.seconds(config.replace(epochs=1))))


def refit_seconds(trial: optuna.trial.FrozenTrial, dataset: Dataset) -> float:
    """How long training a finished trial's configuration on train + validation takes."""
    growth = len(dataset.rows("train", "val")) / len(dataset.rows("train"))
    return float(trial.user_attrs.get("seconds", 0.0)) * growth * _REFIT_MARGIN
