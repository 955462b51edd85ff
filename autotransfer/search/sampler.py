"""The sampler and the pruner of the search: the next configuration is the one that promises most for its cost.

`ProxySampler` chooses source, depth, what happens above it, frozen levels and learning rate together, by the
expected improvement per predicted second under the prior (proxies, linear probes, sizes) and all observations:
finished trials, and the learning curves of pruned and running ones. `CurvePruner` ends a trial when what it may
still gain is worth less a second than what the sampler would try instead. Both are Optuna's own kinds of
object and keep no state: everything is derived from the study's storage.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autotransfer.search.prior import Array, Ints, Landscape, Points, Prior
from autotransfer.search.surrogate import Past, Posterior, condition, expected_improvement

_EXPECTED = "autotransfer:expected"  # what the sampler thought of a trial when it chose it
_MOST_OBSERVATIONS = 256
_MOST_ASKED = 600
_DRAWS_OF_RATE = 3
_FAILURE = 1.0  # how far below its expectation a configuration is taken to be that cannot be trained
_HOPELESS = ("diverged", "out of memory")  # other failures (time, a crash) say nothing about the configuration
_SEED_STEP = 1_000_003
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
            row = _row(trial, landscape)
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
            gain, uncertainty = self.prior.final(points.kinds(landscape), share)
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

    def best(self, seen: Observations) -> float:
        """The log error over the anchor that is to be beaten: of the best trial as it is now expected, or the probe."""
        whole = seen.complete
        if not whole.any():
            return 0.0
        return max(0.0, float(self.posterior(seen, seen.points[whole]).mean.max()))

    def best_first(self, seen: Observations, chosen: Ints) -> Ints:
        """Positions of complete observations, the one first that should be answered with.

        Those that the validation images cannot tell from the best (within one standard error of the difference) by
        what is expected of them once all observations are taken together; the others by their own score.
        """
        values, noise = seen.values[chosen], seen.noise[chosen]
        best = int(np.argmax(values))
        alike = values[best] - values <= np.sqrt(noise + noise[best])
        means = self.posterior(seen, seen.points[chosen]).mean
        order: Ints = chosen[np.lexsort((np.where(alike, -means, -values), ~alike))]
        return order

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


class ProxySampler(BaseSampler):
    """Chooses the configuration with the highest expected improvement per predicted second."""

    def __init__(
        self,
        surrogate: Surrogate,
        *,
        seed: int,
        upper_layers: Sequence[str] = ("drop", "reinit"),
        learning_rate: tuple[float, float] = (1e-4, 1e-2),
        rates: Sequence[float] | None = None,
        admissible: Callable[[Points], Array] | None = None,
        continues: bool = False,
    ) -> None:
        """Make a sampler.

        Args:
            surrogate: what is expected of configurations.
            seed: the choice for trial n depends on the seed, n and the storage alone.
            upper_layers: what may happen above the transferred levels.
            learning_rate: its range.
            rates: the learning rates to choose from, where they are few; any of the range otherwise.
            admissible: which configurations may be chosen (hard limits), [m] bool.
            continues: pruned trials may be gone on with: they are chosen by their own parameters.
        """
        self._surrogate, self._seed = surrogate, seed
        self._upper_layers, self._range, self._rates = tuple(upper_layers), learning_rate, rates
        self._admissible, self._continues = admissible, continues

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """All that is chosen together."""
        landscape = self._surrogate.landscape
        deepest = int(landscape.depths.max())
        return {
            "source": CategoricalDistribution(sorted(landscape.sources)),
            "transferred_layers": IntDistribution(0, deepest),
            "upper_layers": CategoricalDistribution(self._upper_layers),
            "frozen_layers": IntDistribution(0, deepest),
            "learning_rate": FloatDistribution(*self._range, log=True),
        }

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The most promising configuration."""
        if "fixed_params" in trial.system_attrs and {"source", "transferred_layers"} <= set(
            trial.system_attrs["fixed_params"]
        ):
            return {}
        surrogate, generator = self._surrogate, np.random.default_rng((self._seed, trial.number))
        seen = surrogate.observe(study)
        asked = self._candidates(seen, generator)
        paused = self._paused(study, seen)
        cost = surrogate.cost(asked)
        if len(paused):
            asked = asked.joined(seen.points[paused])
            cost = np.concatenate([cost, surrogate.cost(seen.points[paused]) * (1 - seen.done[paused])])
        if not len(asked):
            return {}
        posterior, best = surrogate.posterior(seen, asked), surrogate.best(seen)
        rates = surrogate.rate(posterior, best, cost)
        order = np.argsort(-rates, kind="stable")
        chosen = int(order[0])
        attributes: dict[str, Any] = {
            _EXPECTED: {
                "mean": float(posterior.mean[chosen]),
                "deviation": float(posterior.deviation[chosen]),
                "cost": float(cost[chosen]),
                "alternative": float(rates[order[min(1, len(order) - 1)]]),
                "best": best,
            }
        }
        first_paused = len(asked) - len(paused)
        for key, value in attributes.items():
            study._storage.set_trial_system_attr(trial._trial_id, key, value)
            trial.system_attrs[key] = value
        if chosen >= first_paused:
            before = _go_on(study, trial, seen.numbers[paused[chosen - first_paused]])
            return {name: before.params[name] for name in search_space if name in before.params}
        return self._params(asked[chosen : chosen + 1])

    def most_to_gain(self, study: Study) -> float:
        """The largest expected improvement of the score by any one configuration, in the metric's own units."""
        surrogate = self._surrogate
        seen = surrogate.observe(study)
        asked = self._candidates(seen, np.random.default_rng((self._seed, len(study.get_trials(deepcopy=False)))))
        asked = asked.joined(seen.points[self._paused(study, seen)])
        if not len(asked):
            return 0.0
        best = surrogate.best(seen)
        gain = float(expected_improvement(surrogate.posterior(seen, asked), best).max())
        distance = math.exp(-(best + surrogate.landscape.anchor))
        return distance * (1 - math.exp(-gain))

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Epochs: as many as may be, since poor curves are cut short. The rest at random, by seed and number."""
        if "continues" in trial.user_attrs:
            before: Any = study.get_trials(deepcopy=False)[trial.user_attrs["continues"]].params.get(param_name)
            if before is not None:
                return before
        if param_name == "epochs" and isinstance(param_distribution, IntDistribution):
            return param_distribution.high
        if param_distribution.single():
            return param_distribution.to_external_repr(param_distribution._asdict().get("low", 0.0))
        seeded = RandomSampler(seed=(self._seed * _SEED_STEP + trial.number) % 2**32)
        return seeded.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        """Nothing to do: parallel workers differ by their trials' numbers."""

    def _candidates(self, seen: Observations, generator: np.random.Generator) -> Points:
        """Every source and depth, whole, half or not frozen, each at a few learning rates; the most hopeful of them."""
        surrogate, landscape = self._surrogate, self._surrogate.landscape
        shapes = _shapes(tuple(landscape.depths.tolist()), tuple(landscape.architectures), self._upper_layers)
        low, high = (math.log10(value) for value in self._range)
        if self._rates:
            drawn = np.tile(np.log10(self._rates), (len(shapes), 1))
        else:
            drawn = generator.uniform(low, high, (len(shapes), _DRAWS_OF_RATE))
        points = replace(shapes[np.repeat(np.arange(len(shapes)), drawn.shape[1])], rate=drawn.ravel())
        if self._admissible is not None:
            points = points[np.flatnonzero(self._admissible(points))]
        if self._rates:  # the same can only come again where the rates are few
            known = {_identity(row) for part in (seen.points, seen.pending) for row in _rows_of(part)}
            points = points[[i for i, row in enumerate(_rows_of(points)) if _identity(row) not in known]]
        if len(points) > _MOST_ASKED:
            cost = np.maximum(surrogate.cost(points), 1e-6)
            mean = surrogate.prior.mean(landscape, points)
            hopeful = np.argsort(-(mean + generator.gumbel(0, 0.05, len(points))), kind="stable")[: _MOST_ASKED // 2]
            cheap = np.argsort(-(np.exp(mean * 3) / cost), kind="stable")[: _MOST_ASKED // 4]
            others = generator.choice(len(points), _MOST_ASKED // 4, replace=False)
            points = points[np.unique(np.concatenate([hopeful, cheap, others]))]
        return points

    def _paused(self, study: Study, seen: Observations) -> Ints:
        """Which observations are of pruned trials that may be gone on with."""
        if not self._continues:
            return np.empty(0, np.int64)
        pruned = study.get_trials(deepcopy=False, states=(TrialState.PRUNED,))
        return np.flatnonzero(~seen.complete & np.isin(seen.numbers, [trial.number for trial in pruned]))

    def _params(self, point: Points) -> dict[str, Any]:
        landscape = self._surrogate.landscape
        drop = bool(point.drop[0]) and int(point.transferred[0]) < int(landscape.depths[point.source[0]])
        upper = "drop" if drop or "reinit" not in self._upper_layers else "reinit"
        if int(point.transferred[0]) in (0, int(landscape.depths[point.source[0]])):
            upper = self._upper_layers[0]
        low, high = self._range
        return {
            "source": landscape.sources[int(point.source[0])],
            "transferred_layers": int(point.transferred[0]),
            "upper_layers": upper,
            "frozen_layers": int(point.frozen[0]),
            "learning_rate": float(min(max(10 ** point.rate[0], low), high)),
        }


class CurvePruner(BasePruner):
    """Ends a trial when what it may still gain is worth less a second than what would be tried instead."""

    def __init__(self, surrogate: Surrogate, *, warmup_epochs: int = 1, patience: float = 0.5) -> None:
        """Make a pruner.

        Args:
            surrogate: the sampler's.
            warmup_epochs: no curve is judged in these first epochs.
            patience: a trial ends where its promise is below this part of the alternative's.
        """
        self._surrogate, self._warmup, self._patience = surrogate, warmup_epochs, patience

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether to end the trial after its latest epoch."""
        expected = trial.system_attrs.get(_EXPECTED)
        row = _row(trial, self._surrogate.landscape)
        if expected is None or row is None or not trial.intermediate_values:
            return False
        step = max(trial.intermediate_values)
        epochs = int(trial.params.get("epochs", step))
        if step <= self._warmup or step >= epochs:
            return False
        landscape, prior, point = self._surrogate.landscape, self._surrogate.prior, Points.of([row])
        score = trial.intermediate_values[step]
        gain, uncertainty = prior.final(point.kinds(landscape), np.array([step / epochs]))
        curve = float(landscape.log_error(score)) - landscape.anchor + float(gain[0])
        curve_variance = float(uncertainty[0]) ** 2 + float(validation_noise(landscape, np.array([score]))[0])
        variance = 1 / (1 / expected["deviation"] ** 2 + 1 / curve_variance)
        mean = variance * (expected["mean"] / expected["deviation"] ** 2 + curve / curve_variance)
        posterior = Posterior(np.array([mean]), np.array([math.sqrt(variance)]))
        left = float(self._surrogate.cost(point)[0]) * (1 - step / epochs)
        promise = float(self._surrogate.rate(posterior, float(expected["best"]), np.array([left]))[0])
        return promise < self._patience * float(expected["alternative"])


@lru_cache(maxsize=8)
def _shapes(depths: tuple[int, ...], architectures: tuple[str, ...], upper_layers: tuple[str, ...]) -> Points:
    """All that may be trained of some sources, but for the learning rate; from scratch each architecture once."""
    rows: list[tuple[int, int, bool, int, float]] = []
    fresh: set[str] = set()
    for source, (depth, architecture) in enumerate(zip(depths, architectures, strict=True)):
        if architecture not in fresh:
            fresh.add(architecture)
            rows.append((source, 0, False, 0, 0.0))
        for k in range(1, depth + 1):
            for drop in sorted({k == depth or upper == "drop" for upper in upper_layers}):
                rows += [(source, k, drop, f, 0.0) for f in sorted({0, -(-k // 2), k})]
    return Points.of(rows)


def _go_on(study: Study, trial: FrozenTrial, number: int) -> FrozenTrial:
    """Note on a trial that it goes on with a pruned one, and with which one that began; the pruned one."""
    before = study.get_trials(deepcopy=False)[number]
    for key, value in (("continues", number), ("origin", before.user_attrs.get("origin", number))):
        study._storage.set_trial_user_attr(trial._trial_id, key, value)
        trial.user_attrs[key] = value
    return before


def _row(trial: FrozenTrial, landscape: Landscape) -> tuple[int, int, bool, int, float] | None:
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


def _rows_of(points: Points) -> list[tuple[int, int, bool, int, float]]:
    columns = (points.source, points.transferred, points.drop, points.frozen, points.rate)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _identity(row: tuple[int, int, bool, int, float]) -> tuple[int, int, bool, int, float]:
    return (*row[:4], round(row[4], 3))
