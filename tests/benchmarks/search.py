"""Which search finds a good transfer configuration soonest? Strategies replayed on the transfer table.

    python tests/benchmarks/search.py                       # all strategies, 30 seeds
    python tests/benchmarks/search.py --strategies ours tpe --seeds 5 --out results/

A strategy chooses configurations as in a study; a trial costs, epoch by epoch, what the run of the table cost, so
one that is pruned costs what it had cost until then, and one whose frozen activations are there already costs
less. Strategies that look at probes pay for probing first (all proxies of the package, the slow ones too); they
have an answer then, the best linear probe. After each trial the answer is the best complete trial
on the validation images (in one variant of ours: the one the surrogate expects most of); its regret is how many
points its test score (mean over the table's seeds) lies below the best of the table. A trial sees the curve of
one of the table's seeds. Cost is a fraction of what all runs of the table cost, each once. Whatever is learned
(prior, meta knowledge) is learned on the other datasets.
"""

import argparse
import functools
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))
from prior import TABLE, Target, fit, landscape_of, points_of

from autotransfer.search.expectation import Surrogate
from autotransfer.search.forecast import overhead_seconds, ratio_of, training_seconds
from autotransfer.search.history import past_of
from autotransfer.search.prior import Points, Prior
from autotransfer.search.sampler import CurvePruner, ProxySampler
from autotransfer.search.surrogate import Past

RATES = (3e-5, 3e-4, 3e-3, 3e-2)
CONFIG = ["source", "transferred_layers", "upper_layers", "frozen_layers", "learning_rate"]
FRACTIONS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3)
_MOST_TRIALS = 400
_FEWEST_SHAPES, _FEWEST_SOURCES = 8, 5
_REPEATS_UNTIL_STOP = 60
_CACHED_VIEWS = 4  # of the table's runs
_IMAGENET_TOP_1 = {  # as their publishers state it (TensorFlow's model garden); the other sources have no such figure
    "local-dir:mobilenetv2_100_224.in1k": 71.8,
    "local-dir:mobilenetv2_035_224.in1k": 60.3,
    "local-dir:mobilenetv1_050_160.in1k": 59.1,
    "local-dir:mobilenetv1_025_128.in1k": 41.5,
}


@dataclass(frozen=True)
class Run:
    """One configuration of the table with all its seeds."""

    curves: list[list[float]]
    epoch_costs: list[float]
    first_extra: float
    start: float
    test: float
    cache: tuple[str, int, int]

    @property
    def cost(self) -> float:
        """Seconds of a whole training, its activations already there."""
        return self.start + sum(self.epoch_costs)


@dataclass
class Replay:
    """One dataset in one regime: what a study on it would see."""

    name: str
    target: Target
    runs: dict[tuple[Any, ...], Run]
    levels: pd.DataFrame
    probing: float
    chance: float
    forward: dict[str, float]
    grids: dict[str, list[tuple[int, str, int]]] = field(default_factory=dict)

    @functools.cached_property
    def exhaustive(self) -> float:
        """Seconds of all configurations, each once."""
        return sum(run.cost for run in self.runs.values())

    @functools.cached_property
    def best(self) -> float:
        """The best test score."""
        return max(run.test for run in self.runs.values())

    def nearest(self, source: str, k: int, upper: str, f: int, rate: float) -> tuple[Any, ...]:
        """The configuration of the table that is most like one of the whole space."""
        depth = self.depth(source)
        upper = "drop" if k == depth else "reinit" if k == 0 else upper
        architecture = self.architecture(source)
        if k == 0:
            source = next((s for s, *_ in self.grids["scratch"] if self.architecture(s) == architecture), source)
        shapes = [s for s in self.grids[source] if (s[0] == 0) == (k == 0)] or self.grids[source]
        shape = min(shapes, key=lambda s: (s[1] != upper, abs(s[0] - k), abs(s[2] - f), s[0]))
        return (source, *shape, min(RATES, key=lambda r: abs(math.log(r / rate))))

    def depth(self, source: str) -> int:
        """K."""
        return self._known[source][0]

    def architecture(self, source: str) -> str:
        """The architecture's name."""
        return self._known[source][1]

    @functools.cached_property
    def _known(self) -> dict[str, tuple[int, str]]:
        first = self.levels.drop_duplicates("source")
        columns = (first["source"], first["levels"], first["architecture"])
        return {name: (int(k), str(a)) for name, k, a in zip(*columns, strict=True)}

    @functools.cached_property
    def linear_probe(self) -> float:
        """Test score of the best linear probe by validation, where the table has it.

        That is a head on frozen features that was hardly trained on: it was solved on the training images alone,
        as all runs were.
        """
        heads = [key for key in self.runs if key[1] == key[3] and key[2] == "drop" and key[4] == RATES[0]]
        scores = self.levels.set_index(["source", "level"])["linear_probe"]
        return self.runs[max(heads, key=lambda key: scores[key[0], key[1]])].test


@functools.cache
def read_replays() -> list[Replay]:
    """The table by target."""
    runs = pd.read_parquet(TABLE / "runs.parquet")
    candidates = pd.read_parquet(TABLE / "candidates.parquet")
    found = []
    for (dataset, regime), rows in runs.groupby(["dataset", "regime"], sort=False):
        levels = candidates[(candidates["dataset"] == dataset) & (candidates["regime"] == regime)]
        rows, levels = whole_grids(rows, levels)
        if levels["source"].nunique() < _FEWEST_SOURCES:
            continue
        landscape = landscape_of(levels)
        good = rows[rows["reason"] == ""].reset_index(drop=True)
        target = Target(f"{dataset}, {regime}", landscape, points_of(good, landscape), good)
        table: dict[tuple[Any, ...], Run] = {}
        chance = 1 / landscape.classes
        for key, group in rows.groupby(CONFIG):
            table[key] = _run_of(group, chance)
        first = levels.groupby("source").first()
        replay = Replay(
            target.name, target, table, levels, float(first["probe_seconds"].sum()), chance,
            (first["forward_seconds"] * first["train_images"]).to_dict(),
        )  # fmt: skip
        for source, k, upper, f, _ in table:
            shapes = replay.grids.setdefault(source, [])
            if (k, upper, f) not in shapes:
                shapes.append((k, upper, f))
        replay.grids["scratch"] = [(s, "", 0) for s in dict.fromkeys(key[0] for key in table if key[1] == 0)]
        found.append(replay)
    return found


def whole_grids(runs: pd.DataFrame, levels: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Shapes that were run at every rate, of sources with (almost) all shapes: the table may still be growing."""
    shape = ["source", "transferred_layers", "upper_layers", "frozen_layers"]
    runs = runs[runs.groupby(shape)["learning_rate"].transform("nunique") == len(RATES)]
    shapes = runs.drop_duplicates(shape).groupby("source").size()
    names = set(shapes[shapes >= _FEWEST_SHAPES].index) & set(levels["source"])
    return runs[runs["source"].isin(names)], levels[levels["source"].isin(names)]


def _run_of(group: pd.DataFrame, chance: float) -> Run:
    filled = group[~group["first_of_cache"]]
    usual = filled if len(filled) else group
    epochs = np.mean([costs for costs in usual["epoch_seconds"] if len(costs)] or [[1.0]], axis=0)
    first = group[group["first_of_cache"]]
    extra = sum(first["epoch_seconds"].iloc[0]) - epochs.sum() if len(first) and len(filled) else 0.0
    row = group.iloc[0]
    return Run(
        curves=[[float(v) for v in curve] for curve in group["val"]],
        epoch_costs=[float(v) for v in epochs],
        first_extra=max(0.0, float(extra)),
        start=float(group["start_seconds"].median()),
        test=float(group["test"].astype(float).fillna(chance).mean()),
        cache=(str(row["source"]), int(row["frozen_layers"]), int(row["cached_views"])),
    )


@dataclass(frozen=True)
class Strategy:
    """How the next configuration is chosen, and which trials are cut short.

    `make` gets a replay, the prior that was learned elsewhere, a seed and what trials show of speed, and gives
    sampler and pruner.
    """

    name: str
    make: Callable[[Replay, Prior, int, "Shown"], tuple[optuna.samplers.BaseSampler, optuna.pruners.BasePruner]]
    probes: bool = False
    answers: str = "validation"
    first: Callable[[Replay], list[tuple[Any, ...]]] | None = None
    seeds: int | None = None


def strategies() -> list[Strategy]:
    """All that are compared."""
    nothing, median = optuna.pruners.NopPruner, optuna.pruners.MedianPruner
    samplers = optuna.samplers
    found = [
        Strategy("random", lambda r, p, s, _: (samplers.RandomSampler(seed=s), nothing())),
        Strategy("tpe", lambda r, p, s, _: (samplers.TPESampler(seed=s), nothing())),
        Strategy("tpe + median pruner", lambda r, p, s, _: (samplers.TPESampler(seed=s), median(n_warmup_steps=1))),
        Strategy(
            "tpe + hyperband",
            lambda r, p, s, _: (
                samplers.TPESampler(seed=s),
                optuna.pruners.HyperbandPruner(min_resource=1, max_resource=_epochs(r), reduction_factor=2),
            ),
        ),
        Strategy(
            "gp", lambda r, p, s, _: (samplers.GPSampler(seed=s, deterministic_objective=False), nothing()), seeds=5
        ),
        Strategy(
            "most parameters first",
            lambda r, p, s, _: (samplers.RandomSampler(seed=s), nothing()),
            first=lambda r: _static(r, "parameters"),
        ),
        Strategy(
            "best pretraining accuracy first",
            lambda r, p, s, _: (samplers.RandomSampler(seed=s), nothing()),
            first=lambda r: _static(r, "accuracy"),
        ),
    ]
    for proxy in ("linear_probe", "proxy.logme", "proxy.knn", "proxy.ncti"):
        found.append(
            Strategy(
                f"only {proxy.removeprefix('proxy.')}",
                lambda r, p, s, _: (samplers.RandomSampler(seed=s), nothing()),
                probes=True,
                first=lambda r, name=proxy: _static(r, name),
            )
        )
    found += [
        Strategy("quick-tune-like", _quick_tune),
        Strategy("ours", _ours(), probes=True),
        Strategy("ours with history", _ours(history=True), probes=True),
        Strategy("ours, answer by expectation", _ours(), probes=True, answers="expected"),
        Strategy("ours without pruning", _ours(prunes=False), probes=True),
        Strategy("ours without cost", _ours(by_cost=False), probes=True),
        Strategy("ours without learning", _ours(learns=False), probes=True),
        Strategy("ours without proxies", _ours(without=frozenset({"proxies"})), probes=True),
        Strategy("ours without probes", _ours(without=frozenset({"proxies", "linear_probe"}))),
        Strategy("ours without prior", _ours(without=frozenset({"prior"})), probes=True),
    ]
    return found


def _epochs(replay: Replay) -> int:
    return max(len(run.epoch_costs) for run in replay.runs.values())


def _static(replay: Replay, column: str) -> list[tuple[Any, ...]]:
    """Full fine-tuning at the usual rate, the sources in the order of their best level by a column."""
    levels = replay.levels
    if column in ("parameters", "accuracy"):
        levels = levels[levels["level"] == levels["levels"]]
        levels = levels.assign(accuracy=levels["source"].map(_IMAGENET_TOP_1))  # unknown last, the largest first
    order = levels.sort_values([column, "parameters"], ascending=False).drop_duplicates("source")
    return [(row["source"], int(row["level"]), "drop", 0, 3e-3) for _, row in order.iterrows()]


def _surrogate(
    replay: Replay, prior: Prior, shown: "Shown", without: frozenset[str] = frozenset(), **options: Any
) -> Surrogate:
    landscape = landscape_of(replay.levels, without)
    if "prior" in without:
        prior = replace(prior, weights={})
    forward = np.array([replay.forward[name] for name in landscape.sources])

    def cost(points: Points) -> np.ndarray:
        ratio = np.array([ratio_of(name, shown.ratios) for name in landscape.sources])
        epochs = np.full(len(points), _epochs(replay))
        return overhead_seconds(shown.starts) + training_seconds(
            points, landscape, epochs, forward, ratio, _CACHED_VIEWS
        )

    return Surrogate(landscape, prior, cost, **options)


@dataclass
class Shown:
    """What the trials of one replay have shown of speed, as in a study."""

    ratios: dict[str, list[float]] = field(default_factory=dict)
    starts: list[float] = field(default_factory=list)

    def take(self, replay: Replay, key: tuple[Any, ...], run: Run) -> None:
        """A trial has ended."""
        self.starts.append(run.start)
        source, k, upper, f, _ = key
        if f or not run.epoch_costs:
            return
        flops = replay.levels[replay.levels["source"] == source].sort_values("level")["flops"].to_numpy(float)
        share = flops[k - 1] / flops[-1] if upper == "drop" else 1.0
        ratio = float(np.mean(run.epoch_costs)) / (replay.forward[source] * share)
        self.ratios.setdefault(source, []).append(ratio)


def _ours(prunes: bool = True, without: frozenset[str] = frozenset(), history: bool = False, **options: Any) -> Any:
    def make(replay: Replay, prior: Prior, seed: int, shown: Shown):
        surrogate = _surrogate(replay, prior, shown, without, **options)
        if history:
            surrogate = replace(surrogate, past=_past(replay.name, prior, seed))

        def on_grid(points: Points) -> np.ndarray:
            rows = zip(points.source, points.transferred, points.drop, points.frozen, points.rate, strict=True)
            names = landscape.sources
            keep = []
            for s, k, drop, f, _ in rows:
                key = replay.nearest(names[s], int(k), "drop" if drop else "reinit", int(f), 1e-3)
                keep.append(key[1:4] == (k, "drop" if drop and k else "reinit", f))
            return np.array(keep, bool)

        landscape = surrogate.landscape
        sampler = ProxySampler(
            surrogate, seed=seed, learning_rate=(RATES[0], RATES[-1]), rates=RATES, admissible=_remembered(on_grid),
            continues=prunes,
        )  # fmt: skip
        return sampler, CurvePruner(surrogate) if prunes else optuna.pruners.NopPruner()

    return make


@functools.cache
def _others(name: str) -> list[Replay]:
    return [other for other in read_replays() if other.name.split(",")[0] != name.split(",")[0]]


def _past(name: str, prior: Prior, seed: int) -> tuple[Past, ...]:
    """Earlier studies of the same user: forty random runs on each of the other datasets."""
    (here,) = [replay for replay in read_replays() if replay.name == name]
    found = []
    for other in _others(name):
        target, draw = other.target, np.random.default_rng(seed).permutation(len(other.target.points))[:40]
        values, points = target.log_errors[draw], target.points[draw]
        made = past_of(other.name, here.target.landscape, target.landscape, prior, points, values, target.noise[draw])
        found += [made] if made is not None else []
    return tuple(sorted(found, key=lambda past: -past.similarity)[:3])


def _remembered(function: Callable[[Points], np.ndarray]) -> Callable[[Points], np.ndarray]:
    """The grid does not change: it is looked up once."""
    kept: dict[int, np.ndarray] = {}

    def look(points: Points) -> np.ndarray:
        if len(points) not in kept:
            kept[len(points)] = function(points)
        return kept[len(points)]

    return look


def _quick_tune(replay: Replay, prior: Prior, seed: int, shown: Shown):
    """Gray-box in the manner of Quick-Tune (Arango et al., 2024), as competent as the table allows.

    A Gaussian process over configurations and their partial curves, its mean and kernel meta-learned on the other
    datasets, chooses by expected improvement per cost which configuration to start or to go on with, one epoch at
    a time. It does not look at the target's images before training: no probes, no proxies.
    """
    surrogate = _surrogate(replay, prior, shown, frozenset({"proxies", "linear_probe"}))
    sampler, _ = _ours(without=frozenset({"proxies", "linear_probe"}))(replay, prior, seed, shown)
    return sampler, CurvePruner(surrogate, warmup_epochs=0, patience=1.0)


def replayed(strategy: Strategy, replay: Replay, prior: Prior, seed: int, until: float) -> Iterator[dict[str, float]]:
    """The answer after each trial: cost so far and test score."""
    shown = Shown()
    sampler, pruner = strategy.make(replay, prior, seed, shown)
    study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
    draw, spent = np.random.default_rng(seed), replay.probing if strategy.probes else 0.0
    done: dict[tuple[Any, ...], float] = {}
    caches: set[tuple[str, int, int]] = set()
    progress: dict[tuple[Any, ...], int] = {}
    first, repeats = list(strategy.first(replay)) if strategy.first else [], 0
    yield {"cost": 0.0, "test": replay.chance}
    if strategy.probes:
        yield {"cost": spent, "test": replay.linear_probe}
    for _ in range(_MOST_TRIALS):
        trial = study.ask()
        key = replay.nearest(*first.pop(0)) if first else _suggested(trial, replay)
        run = replay.runs[key]
        curve = run.curves[int(draw.integers(len(run.curves)))]
        if key in done:  # another name of the same configuration: known
            repeats += 1
            study.tell(trial, done[key])
            if repeats > _REPEATS_UNTIL_STOP:
                return
            continue
        repeats = 0
        begun = progress.get(key, 0)
        if not begun:
            spent += run.start + (run.first_extra if run.cache not in caches else 0.0)
            caches.add(run.cache)
        trial.suggest_int("epochs", len(run.epoch_costs), len(run.epoch_costs))
        pruned = False
        for epoch, score in enumerate(curve, start=1):
            if epoch > begun:
                spent += run.epoch_costs[min(epoch, len(run.epoch_costs)) - 1]
            trial.report(score, epoch)
            if epoch > begun and epoch < len(curve) and trial.should_prune():
                pruned = True
                progress[key] = epoch
                break
        shown.take(replay, key, run)
        if pruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        elif not curve or len(curve) < len(run.epoch_costs):
            trial.set_user_attr("reason", "diverged")
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            done[key] = 0.0
        else:
            trial.set_user_attr("key", list(key))
            study.tell(trial, curve[-1])
            done[key] = curve[-1]
        if done:
            yield {"cost": spent, "test": replay.runs[_answer(strategy, study, sampler, done, replay)].test}
        if spent > until:
            return


def _suggested(trial: optuna.Trial, replay: Replay) -> tuple[Any, ...]:
    source = trial.suggest_categorical("source", sorted(name for name in replay.grids if name != "scratch"))
    k = trial.suggest_int("transferred_layers", 0, replay.depth(source))
    upper = trial.suggest_categorical("upper_layers", ["drop", "reinit"])
    f = trial.suggest_int("frozen_layers", 0, k)
    return replay.nearest(source, k, upper, f, trial.suggest_float("learning_rate", RATES[0], RATES[-1], log=True))


def _answer(
    strategy: Strategy, study: optuna.Study, sampler: Any, done: dict[tuple[Any, ...], float], replay: Replay
) -> tuple[Any, ...]:
    if strategy.answers == "expected":
        surrogate = sampler._surrogate
        seen = surrogate.observe(study)
        whole = np.flatnonzero(seen.complete)
        if len(whole):
            number = seen.numbers[int(whole[np.argmax(surrogate.posterior(seen, seen.points[whole]).mean)])]
            key = study.get_trials(deepcopy=False)[number].user_attrs.get("key")
            if key:
                return tuple(key)
    return max(done, key=lambda key: done[key])


def main() -> None:
    """Replay and print; write the figure and the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--strategies", nargs="*")
    parser.add_argument("--targets", nargs="*", help="parts of target names")
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--until", type=float, default=0.3, help="fraction of the exhaustive cost")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    chosen = [s for s in strategies() if not options.strategies or s.name in options.strategies]
    jobs = [(s.name, tuple(options.targets or ("",)), options.seeds, options.until) for s in chosen]
    parts = []
    with ProcessPoolExecutor(options.jobs) as pool:
        for part in pool.map(replayed_rows, *zip(*jobs, strict=True)):
            print(summary(part).to_string(header=not parts), flush=True)
            parts.append(part)
    table = pd.concat(parts)
    replays = [r for r in read_replays() if r.name in set(table["target"])]
    noise = {replay.name: by_validation(replay) for replay in replays}
    print("\nregret in points of running everything and answering with the best validation score:")
    print("  " + ", ".join(f"{name}: {regret:.2f}" for name, regret in noise.items()))
    print(f"  mean {np.mean(list(noise.values())):.2f}")
    print("\nmean regret in points (worst target's mean) at fractions of the exhaustive cost")
    print(summary(table).to_string())
    print(costs(table).to_string())
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        table.to_parquet(options.out / "search.parquet", compression="zstd", index=False)
        figure(table).write_html(options.out / "search.html", include_plotlyjs=True)


def replayed_rows(name: str, targets: tuple[str, ...], seeds: int, until: float) -> pd.DataFrame:
    """All replays of one strategy: cost fraction and regret after each trial."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    (strategy,) = [s for s in strategies() if s.name == name]
    rows = []
    for replay in read_replays():
        if not any(part in replay.name for part in targets):
            continue
        prior = prior_without(replay.name.split(",")[0])
        for seed in range(min(seeds, strategy.seeds or seeds)):
            rows += [
                {
                    "strategy": name,
                    "target": replay.name,
                    "seed": seed,
                    "fraction": step["cost"] / replay.exhaustive,
                    "regret": 100 * (replay.best - step["test"]),
                }
                for step in replayed(strategy, replay, prior, seed, until * replay.exhaustive)
            ]
    return pd.DataFrame(rows)


@functools.cache
def prior_without(dataset: str) -> Prior:
    """What the other datasets say."""
    return fit([replay.target for replay in read_replays() if replay.name.split(",")[0] != dataset])


def by_validation(replay: Replay) -> float:
    """Regret of running everything and answering with the best final validation score, over the table's seeds."""
    seeds = max(len(run.curves) for run in replay.runs.values())
    regrets = []
    for seed in range(seeds):
        finals = {key: run.curves[seed % len(run.curves)][-1] for key, run in replay.runs.items() if all(run.curves)}
        best = max(finals.values())
        ties = [replay.runs[key].test for key, final in finals.items() if final == best]
        regrets.append(100 * (replay.best - float(np.mean(ties))))
    return float(np.mean(regrets))


def at(table: pd.DataFrame, fractions: tuple[float, ...]) -> pd.DataFrame:
    """Regret of each (strategy, target, seed) at cost fractions: the last answer that was there by then."""
    lines = []
    for (strategy, target, seed), steps in table.groupby(["strategy", "target", "seed"], sort=False):
        costs, regrets = steps["fraction"].to_numpy(), steps["regret"].to_numpy()
        for fraction in fractions:
            there = np.searchsorted(costs, fraction, side="right") - 1
            lines.append((strategy, target, seed, fraction, regrets[max(there, 0)]))
    return pd.DataFrame(lines, columns=["strategy", "target", "seed", "fraction", "regret"])


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean regret and that of the worst target by strategy and cost."""
    means = at(table, FRACTIONS).groupby(["strategy", "target", "fraction"], sort=False)["regret"].mean().reset_index()
    groups = means.groupby(["strategy", "fraction"], sort=False)["regret"]
    text = groups.mean().map("{:.2f}".format) + " (" + groups.max().map("{:.1f}".format) + ")"
    return text.unstack("fraction")


def costs(table: pd.DataFrame) -> pd.DataFrame:
    """The fraction of the exhaustive cost after which the mean regret stays at or below some values."""
    grid = tuple(np.geomspace(0.005, 0.3, 60))
    means = at(table, grid).groupby(["strategy", "fraction"], sort=False)["regret"].mean()
    found = {}
    for strategy, curve in means.groupby(level=0, sort=False):
        curve = curve.droplevel(0)
        worst_from_here = curve[::-1].cummax()[::-1]
        found[strategy] = {
            f"<= {w}": next((f for f, r in worst_from_here.items() if r <= w), np.nan) for w in (2, 1, 0.5)
        }
    return pd.DataFrame(found).T.round(3)


def figure(table: pd.DataFrame):
    """Mean regret against cost."""
    import plotly.graph_objects as go

    grid = tuple(np.geomspace(0.005, 0.3, 40))
    means = at(table, grid).groupby(["strategy", "fraction"], sort=False)["regret"].mean()
    made = go.Figure()
    for strategy, curve in means.groupby(level=0, sort=False):
        made.add_trace(go.Scatter(x=[100 * f for f in grid], y=curve.to_numpy(), name=strategy, mode="lines"))
    made.update_xaxes(title="cost, % of the exhaustive search", type="log")
    made.update_yaxes(title="mean regret, points of test accuracy", type="log")
    return made


if __name__ == "__main__":
    main()
