"""How a study chooses and prunes: Optuna's own samplers and pruners by name, or those that the proxies steer."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import optuna
from optuna.trial import TrialState

from autotransfer.search.expectation import Surrogate
from autotransfer.search.forecast import Forecast, nominal_seconds
from autotransfer.search.prior import Array, Ints, Landscape, Points, shipped_prior
from autotransfer.search.sampler import CurvePruner, ProxySampler
from autotransfer.search.study import complete_trials
from autotransfer.search.surrogate import Past
from autotransfer.search.workshop import Workshop

SamplerName = Literal["proxy", "tpe", "gp", "random"]
SAMPLER_NAMES: tuple[str, ...] = get_args(SamplerName)
_SEED_STEP = 1_000_003
_STARTUP_TRIALS = 6
_LEAST_GAIN = 0.05


@dataclass(frozen=True)
class Strategy:
    """How one study chooses.

    Attributes:
        name: `proxy`, or one of Optuna's samplers.
        workshop: the study's.
        past: what earlier studies say.
    """

    name: str
    workshop: Workshop
    past: tuple[Past, ...] = ()

    @property
    def by_proxy(self) -> bool:
        """True where the proxies steer the choice; otherwise they say which trials are not worth training."""
        return self.name == "proxy"

    @cached_property
    def landscape(self) -> Landscape:
        """What is known before training."""
        pool, dataset = self.workshop.pool, self.workshop.dataset
        sources = sorted(pool.sources(), key=lambda source: source.name)
        deepest = max(len(source.levels) for source in sources)

        def empty() -> Array:
            return np.full((len(sources), deepest), np.nan)

        probe, percentile, parameters, flops = empty(), empty(), empty(), empty()
        for row, source in enumerate(sources):
            for level in source.levels:
                candidate, at = pool.get(source.name, level.index), (row, level.index - 1)
                probe[at], percentile[at] = candidate.linear_probe, candidate.expected
                parameters[at], flops[at] = level.parameter_count, level.flops
        return Landscape(
            sources=[source.name for source in sources],
            architectures=[source.architecture for source in sources],
            depths=np.array([len(source.levels) for source in sources], np.int64),
            linear_probe=probe,
            percentile=percentile,
            parameters=parameters,
            flops=flops,
            metric=self.workshop.metric,
            train_images=len(dataset.rows("train")),
            val_images=max(1, len(dataset.rows("val"))),
            classes=len(dataset.classes),
        )

    def prepare(self, study: optuna.Study, forecast: Forecast, seconds: float | None) -> None:
        """Give the study its sampler and its pruner for the next trial.

        Nothing is remembered between trials: seeds come from the number of trials, what was learnt from the
        storage, so that a resumed study goes on alike.

        Args:
            study: it is changed.
            forecast: says what configurations cost.
            seconds: that the next trial may take; None without a limit.
        """
        space, seed = self.workshop.space, self.workshop.seed
        if self.by_proxy:
            surrogate = Surrogate(
                self.landscape,
                shipped_prior(),
                lambda points: self._cost(forecast, points, seconds),
                past=self.past,
            )
            rates = space.parameters.learning_rate
            study.sampler = ProxySampler(
                surrogate,
                seed=seed,
                upper_layers=space.parameters.upper_layers,
                learning_rate=(max(rates.min, 1e-12), rates.max),
                admissible=lambda points: self._admissible(forecast, points, seconds),
                continues=True,
            )
            study.pruner = CurvePruner(surrogate, warmup_epochs=space.pruning.warmup_epochs)
            return
        number = (seed * _SEED_STEP + len(study.get_trials(deepcopy=False))) % 2**32
        if self.name == "tpe":
            study.sampler = optuna.samplers.TPESampler(seed=number, n_startup_trials=_STARTUP_TRIALS)
        elif self.name == "gp":
            study.sampler = optuna.samplers.GPSampler(seed=number, n_startup_trials=_STARTUP_TRIALS)
        else:
            study.sampler = optuna.samplers.RandomSampler(seed=number)
        study.pruner = optuna.pruners.MedianPruner(
            n_startup_trials=space.pruning.startup_trials,
            n_warmup_steps=space.pruning.warmup_epochs + 1,  # Optuna counts steps from 0, epochs count from 1
        )

    def nothing_to_gain(self, study: optuna.Study) -> str:
        """Why no further trial is worth it, or an empty string: for a study that `prepare` has just seen to."""
        metric, sampler = self.workshop.metric, study.sampler
        if not isinstance(sampler, ProxySampler) or study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            return ""
        values = [trial.value for trial in complete_trials(study) if trial.value is not None]
        perfect = 1.0 if metric.greater_is_better else 0.0
        if perfect in values:
            return f"the validation {metric.name} is {perfect:g} and cannot be better"
        gain, image = sampler.most_to_gain(study), 1 / self.landscape.val_images
        if values and gain < _LEAST_GAIN * image:
            return (
                f"no configuration is expected to improve {metric.name} by more than {gain:.2g}, less than "
                f"{_LEAST_GAIN:g} of what one of {self.landscape.val_images} validation images makes"
            )
        return ""

    def _cost(self, forecast: Forecast, points: Points, seconds: float | None) -> Array:
        """Seconds of trainings of as many epochs as they get.

        Without a limit of time the clock has no say, so that the same seed and number of trials choose the same.
        """
        epochs = self._epochs(forecast, points, seconds)
        if seconds is None:
            return nominal_seconds(points, self.landscape, epochs, forecast.cached_views)
        return forecast.seconds_of(points, self.landscape, epochs)

    def _epochs(self, forecast: Forecast, points: Points, seconds: float | None) -> Ints:
        epochs = self.workshop.space.parameters.epochs
        if seconds is None:
            return np.full(len(points), epochs.largest(), np.int64)
        one = forecast.seconds_of(points, self.landscape, np.ones(len(points), np.int64))
        more = forecast.seconds_of(points, self.landscape, np.full(len(points), 2, np.int64)) - one
        fitting = np.floor(1 + (seconds - one) / np.maximum(more, 1e-9)).clip(0, epochs.max).astype(np.int64)
        return np.maximum(fitting, epochs.min)

    def _admissible(self, forecast: Forecast, points: Points, seconds: float | None) -> Array:
        """Within the hard limits, and with time for the fewest epochs."""
        landscape, workshop = self.landscape, self.workshop
        top = landscape.depths[points.source] - 1
        kept = np.where(points.drop & (points.transferred > 0), points.transferred - 1, top)
        allowed = np.ones(len(points), bool)
        if workshop.max_parameters is not None:
            allowed &= self._sizes[points.source, kept] <= workshop.max_parameters
        if workshop.max_latency_ms is not None:
            allowed &= ~(self._latencies[points.source, kept] > workshop.max_latency_ms)
        if seconds is not None:
            fewest = np.full(len(points), workshop.space.parameters.epochs.min, np.int64)
            allowed &= forecast.seconds_of(points, landscape, fewest) <= seconds
        return allowed

    @cached_property
    def _sizes(self) -> Array:
        """Parameters with the classifier, [S, K]."""
        channels = np.full_like(self.landscape.parameters, np.nan)
        for row, name in enumerate(self.landscape.sources):
            for level in self.workshop.source(name).levels:
                channels[row, level.index - 1] = level.channels
        return self.landscape.parameters + (channels + 1) * self.landscape.classes

    @cached_property
    def _latencies(self) -> Array:
        """Milliseconds an image, [S, K], NaN where they were not measured."""
        found = np.full_like(self.landscape.parameters, np.nan)
        for (name, level), latency in self.workshop.latencies_ms.items():
            found[list(self.landscape.sources).index(name), level - 1] = latency
        return found
