"""The sampler and the pruner of the search: the next configuration is the one that promises most for its cost.

`ProxySampler` chooses source, depth, what happens above it, frozen levels and learning rate together, by the
expected improvement per predicted second under the prior (proxies, linear probes, sizes) and all observations:
finished trials, and the learning curves of pruned and running ones. `CurvePruner` ends a trial when what it may
still gain is worth less a second than what the sampler would try instead. Both are Optuna's own kinds of
object and keep no state: everything is derived from the study's storage.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from autotransfer.search.expectation import Observations, Surrogate, row_of, validation_noise
from autotransfer.search.prior import Array, Ints, Points
from autotransfer.search.surrogate import Posterior, expected_improvement

_EXPECTED = "autotransfer:expected"  # what the sampler thought of a trial when it chose it
_MOST_ASKED = 600
_DRAWS_OF_RATE = 3
_SHARE_OF_WARMUP = 0.25
_SEED_STEP = 1_000_003


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
        posterior, best = surrogate.outlook(seen, asked)
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
        posterior, best = surrogate.outlook(seen, asked)
        gain = float(expected_improvement(posterior, best).max())
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

    def __init__(self, surrogate: Surrogate, *, warmup_epochs: int = 1, patience: float = 0.25) -> None:
        """Make a pruner.

        Args:
            surrogate: the sampler's.
            warmup_epochs: no curve is judged in these first epochs, nor in the first quarter of all.
            patience: a trial ends where its promise is below this part of the alternative's.
        """
        self._surrogate, self._warmup, self._patience = surrogate, warmup_epochs, patience

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        """Whether to end the trial after its latest epoch."""
        expected = trial.system_attrs.get(_EXPECTED)
        row = row_of(trial, self._surrogate.landscape)
        if expected is None or row is None or not trial.intermediate_values:
            return False
        step = max(trial.intermediate_values)
        epochs = int(trial.params.get("epochs", step))
        if step <= max(self._warmup, epochs * _SHARE_OF_WARMUP) or step >= epochs:
            return False
        landscape, prior, point = self._surrogate.landscape, self._surrogate.prior, Points.of([row])
        score = trial.intermediate_values[step]
        gain, uncertainty = prior.final(point.kinds(landscape), point.rate, np.array([step / epochs]))
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


def _rows_of(points: Points) -> list[tuple[int, int, bool, int, float]]:
    columns = (points.source, points.transferred, points.drop, points.frozen, points.rate)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _identity(row: tuple[int, int, bool, int, float]) -> tuple[int, int, bool, int, float]:
    return (*row[:4], round(row[4], 3))
