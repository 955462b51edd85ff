"""The sampler and the pruner: what promises most for its cost is tried next, from the storage alone."""

import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from scipy.stats import norm

from autotransfer.search.expectation import Surrogate
from autotransfer.search.prior import KINDS, Landscape, Points, describe, log_error, shipped_prior
from autotransfer.search.sampler import CurvePruner, ProxySampler
from autotransfer.search.study import open_storage
from autotransfer.search.surrogate import (
    KERNEL,
    Posterior,
    condition,
    covariance,
    expected_improvement,
)
from autotransfer.transfer.evaluation import get_metric

EPOCHS = 5


def landscape(sources: int = 4, depth: int = 4, seed: int = 0) -> Landscape:
    """Sources of which the first is the best by linear probe, and each level better than the one below."""
    generator = np.random.default_rng(seed)
    best = 0.8 - 0.1 * np.arange(sources)[:, None]
    probes = np.clip(best - 0.05 * np.arange(depth)[::-1] + generator.normal(0, 0.005, (sources, depth)), 0.05, 0.95)
    sizes = np.tile(np.cumsum(np.geomspace(1e4, 4e5, depth)), (sources, 1))
    return Landscape(
        sources=[f"source {i}" for i in range(sources)],
        architectures=["a" if i % 2 else "b" for i in range(sources)],
        depths=np.full(sources, depth),
        linear_probe=probes,
        percentile=probes.argsort(axis=None).argsort().reshape(probes.shape) / probes.size,
        parameters=sizes,
        flops=sizes * 100,
        metric=get_metric("accuracy"),
        train_images=200,
        val_images=200,
        classes=10,
    )


def same_cost(points: Points) -> np.ndarray:
    return np.ones(len(points))


def surrogate(cost: Callable[[Points], np.ndarray] = same_cost, **options: Any) -> Surrogate:
    return Surrogate(landscape(), shipped_prior(), cost, **options)


def new_study(pruner: optuna.pruners.BasePruner | None = None, **options: Any) -> optuna.Study:
    sampler = ProxySampler(options.pop("surrogate", None) or surrogate(), seed=options.pop("seed", 0), **options)
    return optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner or optuna.pruners.NopPruner())


def suggest(trial: optuna.Trial, sources: int = 4, depth: int = 4) -> dict[str, Any]:
    """Ask for parameters as a study does."""
    trial.suggest_categorical("source", sorted(f"source {i}" for i in range(sources)))
    k = trial.suggest_int("transferred_layers", 0, depth)
    trial.suggest_categorical("upper_layers", ["drop", "reinit"])
    trial.suggest_int("frozen_layers", 0, k)
    trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
    trial.suggest_float("weight_decay", 1e-4, 1e-1, log=True)
    trial.suggest_int("epochs", 2, EPOCHS)
    return dict(trial.params)


def told(study: optuna.Study, score: Callable[[dict[str, Any]], float], count: int) -> list[dict[str, Any]]:
    """Run trials whose score is a function of their parameters."""
    found = []
    for _ in range(count):
        trial = study.ask()
        found.append(suggest(trial))
        study.tell(trial, score(found[-1]))
    return found


# The arithmetic


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 6))
def test_the_posterior_is_that_of_the_joint_gaussian(seed, observed, asked):
    """Against conditioning by the textbook, with explicit inverses."""
    generator, known = np.random.default_rng(seed), landscape()
    points = Points.of(
        [
            (int(generator.integers(4)), k := int(generator.integers(5)), bool(generator.integers(2)),
             int(generator.integers(k + 1)), float(generator.uniform(-4, -2)))
            for _ in range(observed + asked)
        ]
    )  # fmt: skip
    seen, new = points[np.arange(observed)], points[np.arange(observed, observed + asked)]
    values, noise = generator.normal(size=observed), generator.uniform(0.01, 0.2, observed)
    mean = generator.normal(size=asked)
    found = condition(KERNEL, known, seen, values, noise, new, mean)
    whole = covariance(KERNEL, known, points, points)
    own = whole[:observed, :observed] + np.diag(noise + KERNEL["noise"] + 1e-6)
    cross, inverse = whole[observed:, :observed], np.linalg.inv(own)
    np.testing.assert_allclose(found.mean, mean + cross @ inverse @ values, atol=1e-6)
    left = np.diag(whole[observed:, observed:] - cross @ inverse @ cross.T)
    np.testing.assert_allclose(found.deviation**2, np.maximum(left, 1e-9), atol=1e-6)
    assert np.linalg.eigvalsh(whole).min() > -1e-9


@settings(max_examples=50, deadline=None)
@given(st.floats(-2, 2), st.floats(0.01, 2), st.floats(-2, 2))
def test_expected_improvement_is_the_integral_that_it_stands_for(mean, deviation, best):
    grid = np.linspace(best, max(best, mean) + 12 * deviation, 20001)
    expected = np.trapezoid((grid - best) * norm.pdf(grid, mean, deviation), grid)
    found = expected_improvement(Posterior(np.array([mean]), np.array([deviation])), best)[0]
    assert found == pytest.approx(expected, abs=1e-4)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9), st.integers(1, 1000))
def test_the_log_error_keeps_the_order_whatever_the_metric(scores, images):
    ordered = np.sort(scores)
    assert (np.diff(log_error(get_metric("accuracy"), ordered, images)) >= 0).all()
    assert (np.diff(log_error(get_metric("log_loss"), ordered, images)) <= 0).all()
    assert np.isfinite(log_error(get_metric("accuracy"), ordered, images)).all()


def test_every_configuration_is_of_one_kind_and_described_without_gaps():
    known = landscape()
    shapes = [(0, False, 0), (4, True, 0), (4, True, 2), (4, True, 4), (2, True, 2), (2, False, 1), (1, False, 0)]
    points = Points.of([(1, *shape, -3.0) for shape in shapes])
    names = [KINDS[kind] for kind in points.kinds(known)]
    assert names == ["scratch", "full", "part", "head", "head", "reinit", "reinit"]
    described = describe(known, points)
    assert set(shipped_prior().weights) == set(described)
    assert all(np.isfinite(values).all() and len(values) == len(shapes) for values in described.values())
    from_scratch = {name: float(values[0]) for name, values in described.items() if values[0]}
    assert set(from_scratch) <= {"trained_share", *(name for name in described if name.startswith("scratch"))}


def test_the_shipped_prior_expects_more_of_better_linear_probes():
    known = landscape()
    points = Points.of([(source, 4, True, 0, -3.0) for source in range(4)])
    assert (np.diff(shipped_prior().mean(known, points)) < 0).all()


# What is chosen


def test_parameters_are_within_what_is_asked_for():
    for params in told(new_study(), lambda params: 0.5, 25):
        assert 0 <= params["frozen_layers"] <= params["transferred_layers"] <= 4
        assert 1e-4 <= params["learning_rate"] <= 1e-2
        assert params["epochs"] == EPOCHS


def test_before_any_trial_the_best_linear_probe_leads():
    (first,) = told(new_study(), lambda params: 0.5, 1)
    assert first["source"] == "source 0"


def test_what_turns_out_well_is_sought_and_what_does_not_is_left():
    """The proxies are wrong here: the third source is by far the best."""

    def score(params: dict[str, Any]) -> float:
        good = params["source"] == "source 2" and params["transferred_layers"] > 0
        return (0.93 if good else 0.6) - 0.02 * abs(math.log10(params["learning_rate"]) + 3)

    chosen = [params["source"] for params in told(new_study(), score, 40)]
    assert "source 2" in chosen
    assert chosen[20:].count("source 2") >= 12


def test_what_costs_less_comes_first():
    def dear(points: Points) -> np.ndarray:
        return np.where(points.source == 1, 1.0, 1e6)

    assert {params["source"] for params in told(new_study(surrogate=surrogate(dear)), lambda params: 0.5, 5)} == {
        "source 1"
    }
    free = told(new_study(surrogate=surrogate(dear, by_cost=False)), lambda params: 0.5, 1)
    assert free[0]["source"] == "source 0"


def test_only_what_is_admissible_is_chosen():
    study = new_study(admissible=lambda points: (points.source == 3) & (points.transferred <= 2))
    for params in told(study, lambda params: 0.9, 12):
        assert params["source"] == "source 3" and params["transferred_layers"] <= 2


def test_running_trials_count_so_that_workers_do_not_repeat_each_other():
    study = new_study()
    asked = [suggest(study.ask()) for _ in range(12)]
    assert len({tuple(sorted(params.items())) for params in asked}) == 12
    assert len({(p["source"], p["transferred_layers"], p["frozen_layers"], p["upper_layers"]) for p in asked}) >= 5


def test_what_diverged_is_not_tried_again():
    study = new_study(learning_rate=(9e-3, 1e-2))
    for _ in range(6):
        trial = study.ask()
        suggest(trial)
        trial.set_user_attr("reason", "diverged in epoch 1: the loss is nan")
        study.tell(trial, state=TrialState.FAIL)
    found = [trial.params for trial in study.get_trials()]
    assert len({(p["source"], p["transferred_layers"], p["frozen_layers"]) for p in found}) >= 4


def test_a_trial_that_ran_out_of_time_counts_as_far_as_it_came():
    known = surrogate()
    study = new_study(surrogate=known)
    for scores, reason in (([0.7, 0.8], "the budget ran out"), ([], "OSError: disk full")):
        trial = study.ask()
        suggest(trial)
        for epoch, score in enumerate(scores, start=1):
            trial.report(score, epoch)
        trial.set_user_attr("reason", reason)
        study.tell(trial, state=TrialState.FAIL)
    seen = known.observe(study)
    assert seen.numbers == (0,)
    assert 0 < seen.done[0] < 1 and seen.values[0] > float(known.landscape.log_error(0.7)) - known.landscape.anchor


def test_queued_parameters_are_kept():
    study = new_study()
    study.enqueue_trial({"source": "source 3", "transferred_layers": 2, "frozen_layers": 1, "learning_rate": 0.005})
    params = suggest(study.ask())
    assert (params["source"], params["transferred_layers"], params["frozen_layers"]) == ("source 3", 2, 1)


@pytest.mark.parametrize("direction", ["accuracy", "log_loss"])
def test_less_is_better_where_the_metric_says_so(direction):
    known = replace(landscape(), metric=get_metric(direction))
    if direction == "log_loss":
        known = replace(known, linear_probe=1.5 - known.linear_probe)
    study = new_study(surrogate=Surrogate(known, shipped_prior(), same_cost))
    assert told(study, lambda params: 0.7, 1)[0]["source"] == "source 0"


# From the storage alone


def journal(path: Path) -> str:
    return f"journal:{path}"


def test_what_is_chosen_next_depends_on_the_storage_alone(tmp_path):
    def opened(path: Path) -> optuna.Study:
        return optuna.create_study(
            study_name="s", storage=open_storage(journal(path)), direction="maximize", load_if_exists=True,
            sampler=ProxySampler(surrogate(), seed=3, continues=True),
        )  # fmt: skip

    first = opened(tmp_path / "a")
    told(first, lambda params: 0.6 + 0.01 * params["transferred_layers"], 6)
    shutil.copy(tmp_path / "a", tmp_path / "b")
    score = lambda params: 0.7  # noqa: E731
    assert told(opened(tmp_path / "b"), score, 4) == told(first, score, 4)


def test_another_seed_chooses_otherwise():
    runs = [told(new_study(seed=seed), lambda params: 0.5, 4) for seed in (0, 1)]
    assert runs[0] != runs[1]


# Pruning and going on


def curve_of(study: optuna.Study, scores: list[float]) -> tuple[optuna.Trial, int]:
    """A trial that reports these scores until it is pruned; the epochs that it ran."""
    trial = study.ask()
    suggest(trial)
    for epoch, score in enumerate(scores, start=1):
        trial.report(score, epoch)
        if epoch < len(scores) and trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return trial, epoch
    study.tell(trial, scores[-1])
    return trial, len(scores)


def pruned_study(**options: Any) -> optuna.Study:
    return new_study(pruner=CurvePruner(surrogate(), **options), continues=True)


def test_a_hopeless_curve_is_cut_and_a_good_one_is_not():
    study = pruned_study()
    assert curve_of(study, [0.8, 0.85, 0.88, 0.9, 0.92])[1] == EPOCHS
    assert curve_of(study, [0.1, 0.11, 0.1, 0.12, 0.11])[1] < EPOCHS
    assert curve_of(study, [0.85, 0.9, 0.93, 0.94, 0.95])[1] == EPOCHS


def test_the_first_epochs_are_not_judged():
    study = pruned_study(warmup_epochs=3)
    curve_of(study, [0.9] * EPOCHS)
    assert curve_of(study, [0.1] * EPOCHS)[1] == 4


def test_a_pruned_trial_is_gone_on_with_where_that_promises_most():
    """All that is new costs a thousand times as much as going on."""

    def dear_unless_begun(points: Points) -> np.ndarray:
        return np.where((points.source == 0), 1.0, 1e9)

    known = surrogate(dear_unless_begun)
    study = new_study(surrogate=known, continues=True, admissible=lambda points: np.zeros(len(points), bool))
    study.enqueue_trial({"source": "source 0", "transferred_layers": 4, "frozen_layers": 0, "learning_rate": 0.001})
    first = study.ask()
    before = suggest(first)
    for epoch, score in enumerate([0.6, 0.65, 0.68], start=1):
        first.report(score, epoch)
    study.tell(first, state=TrialState.PRUNED)
    second = study.ask()
    assert suggest(second) == before
    assert (second.user_attrs["continues"], second.user_attrs["origin"]) == (0, 0)
    second.report(0.6, 1)
    study.tell(second, state=TrialState.PRUNED)
    third = study.ask()
    suggest(third)
    assert (third.user_attrs["continues"], third.user_attrs["origin"]) == (1, 0)


def test_without_leave_to_no_trial_is_gone_on_with():
    study = new_study(pruner=CurvePruner(surrogate()))
    curve_of(study, [0.9] * EPOCHS)
    for _ in range(6):
        curve_of(study, [0.1] * EPOCHS)
    assert all("continues" not in trial.user_attrs for trial in study.get_trials())
