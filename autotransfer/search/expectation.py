"""What is expected of configurations: the prior, and what the trials so far have shown, read from the storage."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autotransfer.search.prior import Array, Ints, Landscape, Points, Prior
from autotransfer.search.surrogate import Past, Posterior, condition, expected_improvement

_MOST_OBSERVATIONS = 256
_FAILURE = 1.0  # how far below its expectation a configuration is taken to be that cannot be trained
_HOPELESS = ("diverged", "out of memory")  # other failures (time, a crash) say nothing about the configuration
Cost = Callable[[Points], Array]


@dataclass(frozen=True)
class Observations:
    """What a study's trials say: configurations, log errors over the anchor, variances, numbers, epochs done."""

    points: Points
    values: Array
    noise: Array
    numbers: tuple[int, ...]
    done: Array
    pending: Points

    @property
    def complete(self) -> npt.NDArray[np.bool_]:
        """Where the whole training was seen."""
        whole: npt.NDArray[np.bool_] = self.done >= 1.0
        return whole


@dataclass(frozen=True)
class Surrogate:
    """What is expected of configurations: prior, Gaussian process, predicted cost.

    Attributes:
        landscape: what is known of the target before training.
        prior: the measured coefficients.
        cost: predicted seconds of whole trainings.
        by_cost: expected improvement counts per second; False: by itself.
        learns: observations change what is expected.
        past: what earlier studies on other targets say.
    """

    landscape: Landscape
    prior: Prior
    cost: Cost
    by_cost: bool = True
    learns: bool = True
    past: tuple[Past, ...] = ()

    def observe(self, study: Study) -> Observations:
        """Read the storage."""
        landscape, anchor = self.landscape, self.landscape.anchor
        rows: list[tuple[int, int, bool, int, float]] = []
        values, numbers, done, pending = [], [], [], []
        trials = study.get_trials(deepcopy=False)
        continued = {trial.user_attrs.get("continues") for trial in trials}
        for trial in trials:
            row = row_of(trial, landscape)
            if row is None or trial.number in continued:
                continue
            if trial.state == TrialState.COMPLETE and trial.value is not None and math.isfinite(trial.value):
                value, fraction = trial.value, 1.0
            elif trial.state == TrialState.FAIL and str(trial.user_attrs.get("reason", "")).startswith(_HOPELESS):
                value, fraction = math.nan, 1.0
            elif trial.intermediate_values:
                step = max(trial.intermediate_values)
                value, fraction = trial.intermediate_values[step], step / max(step, trial.params.get("epochs", step))
                fraction = min(fraction, 0.999)
            elif trial.state == TrialState.RUNNING:
                pending.append(row)
                continue
            else:
                continue
            rows.append(row)
            values.append(value)
            numbers.append(trial.number)
            done.append(fraction)
        points = Points.of(rows)
        scores = np.array(values, float)
        found, variance = landscape.log_error(scores) - anchor, validation_noise(landscape, scores)
        share = np.array(done, float)
        if len(points):
            gain, uncertainty = self.prior.final(points.kinds(landscape), points.rate, share)
            expected = self.prior.mean(landscape, points)
            failed = np.isnan(found)
            found = np.where(failed, expected - _FAILURE, found + np.where(failed, 0.0, gain))
            variance = np.where(failed, _FAILURE**2 / 4, variance + np.where(share < 1, uncertainty**2, 0.0))
        return Observations(points, found, variance, tuple(numbers), share, Points.of(pending))

    def posterior(self, seen: Observations, asked: Points) -> Posterior:
        """What is expected of configurations now; those that are running count as if they came out as expected."""
        mean = self.prior.mean(self.landscape, asked)
        if not self.learns:
            return condition(self.prior.kernel, self.landscape, asked[:0], mean[:0], mean[:0], asked, mean)
        chosen = self._most_telling(seen)
        points, values, noise = seen.points[chosen], seen.values[chosen], seen.noise[chosen]
        surprise = values - self.prior.mean(self.landscape, points)
        if len(seen.pending):
            at = self.prior.mean(self.landscape, seen.pending)
            believed = self._conditioned(points, surprise, noise, seen.pending, at)
            points, surprise = points.joined(seen.pending), np.concatenate([surprise, believed.mean - at])
            noise = np.concatenate([noise, np.zeros(len(seen.pending))])
        return self._conditioned(points, surprise, noise, asked, mean)

    def _conditioned(self, points: Points, surprise: Array, noise: Array, asked: Points, mean: Array) -> Posterior:
        """On this target's observations and on those of the past."""
        count = len(points)
        tasks, likeness = np.zeros(count, np.int64), np.ones(count)
        for number, past in enumerate(self.past, start=1):
            points, surprise = points.joined(past.points), np.concatenate([surprise, past.surprise])
            noise = np.concatenate([noise, past.noise])
            tasks = np.concatenate([tasks, np.full(len(past.points), number)])
            likeness = np.concatenate([likeness, np.full(len(past.points), past.similarity)])
        kernel, known = self.prior.kernel, self.landscape
        return condition(kernel, known, points, surprise, noise, asked, mean, tasks, likeness)

    def outlook(self, seen: Observations, asked: Points) -> tuple[Posterior, float]:
        """What is expected of configurations, and the log error over the anchor that is to be beaten.

        That is of the best complete trial, as it is expected now, or of the best linear probe.
        """
        posterior = self.posterior(seen, asked.joined(seen.points[seen.complete]))
        count = len(asked)
        best = max(0.0, float(posterior.mean[count:].max(initial=0.0)))
        return Posterior(posterior.mean[:count], posterior.deviation[:count]), best

    def rate(self, posterior: Posterior, best: float, cost: Array) -> Array:
        """What configurations promise: expected improvement (per second)."""
        gain = expected_improvement(posterior, best)
        return gain / np.maximum(cost, 1e-6) if self.by_cost else gain

    def _most_telling(self, seen: Observations) -> Ints:
        """All observations, or half of as many as can be afforded the best ones, and half the latest."""
        count = len(seen.points)
        if count <= _MOST_OBSERVATIONS:
            return np.arange(count, dtype=np.int64)
        half = _MOST_OBSERVATIONS // 2
        latest = np.arange(count - half, count, dtype=np.int64)
        return np.union1d(latest, np.argsort(-seen.values, kind="stable")[:half].astype(np.int64))


def row_of(trial: FrozenTrial, landscape: Landscape) -> tuple[int, int, bool, int, float] | None:
    """The configuration of a trial as a point; None where it has not got that far, or is of another pool."""
    params = trial.params
    if not {"source", "transferred_layers", "frozen_layers", "learning_rate"} <= set(params):
        return None
    source = landscape.positions.get(params["source"])
    if source is None or params["learning_rate"] <= 0:
        return None
    k, depth = int(params["transferred_layers"]), int(landscape.depths[source])
    drop = k == depth or (k > 0 and params.get("upper_layers", "drop") == "drop")
    return source, k, drop, int(params["frozen_layers"]) if k else 0, math.log10(params["learning_rate"])


def validation_noise(landscape: Landscape, scores: Array) -> Array:
    """Variance of log errors by the draw of the validation images, for scores that are a share of them: [n].

    Half of it: the images are the same for all trials, so that most of their luck is shared. 0 for NaN.
    """
    error = 1 - scores if landscape.metric.greater_is_better else scores
    error = np.clip(np.nan_to_num(error, nan=1.0), 0.5 / landscape.val_images, 1.0)
    found: Array = 0.5 * (1 - error) / (error * landscape.val_images)
    return found
