"""What trials promise about time: baselines on equal terms, room for the final training, an end when asked."""

from dataclasses import replace

import optuna
import pytest
import torch
from optuna.trial import TrialState
from small_study import (
    CONVNEXT,
    MOBILENET,
    Stopwatch,
    Told,
    config_of,
    new_study,
    queue_trial,
    reasons,
    small_space,
    small_workshop,
    states,
    stop_after,
    unlimited,
)

from autotransfer.search import trials as trials_module
from autotransfer.search.budget import Budget
from autotransfer.search.checkpoints import best_trial
from autotransfer.search.events import EpochFinished, TrialFinished, TrialStarted
from autotransfer.search.first_trials import queue_first_trials
from autotransfer.search.forecast import Forecast, refit_seconds
from autotransfer.search.strategy import Strategy
from autotransfer.search.trials import run_trials
from autotransfer.search.workshop import Workshop
from autotransfer.transfer.config import TransferConfig
from autotransfer.transfer.evaluation import get_metric


@pytest.fixture
def watch(monkeypatch) -> Stopwatch:
    """Stands in for the clock of trials; a budget made with `lambda: watch.now` sees the same time."""
    stopwatch = Stopwatch()
    monkeypatch.setattr(trials_module, "perf_counter", stopwatch)
    return stopwatch


def timed(workshop: Workshop, epoch_seconds: dict[str, float] | float) -> Workshop:
    """The workshop, its probes told to have taken so long that an epoch of a whole source is forecast so."""
    images = len(workshop.dataset.rows("train"))
    forecast = Forecast(workshop.pool, images, {})
    probes = {}
    for source in workshop.pool.sources():
        wanted = epoch_seconds if isinstance(epoch_seconds, float | int) else epoch_seconds[source.name]
        forecast_now = forecast.seconds(config_of(source.name, len(source.levels), epochs=1))
        made = workshop.pool.probes[source.name]
        probes[source.name] = replace(made, seconds=made.seconds * wanted / forecast_now)
    return replace(workshop, pool=replace(workshop.pool, probes=probes))


def taking(workshop: Workshop, watch: Stopwatch, epoch_seconds: float, told: Told) -> Workshop:
    """The workshop, an epoch of a whole source taking that long by the stopwatch, less work its share.

    The stopwatch moves while an epoch is scored; what is trained is known from what the listener was told.
    """
    accuracy, forecast = get_metric("accuracy"), Forecast(workshop.pool, 1, {})

    def one_epoch(config: TransferConfig) -> float:
        return forecast.seconds(config.replace(epochs=2)) - forecast.seconds(config.replace(epochs=1))

    def compute(probabilities: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        config = told.of(TrialStarted)[-1].config
        whole = config.replace(transferred_layers=0, frozen_layers=0, cached_views=0)
        watch.now += epoch_seconds * one_epoch(config) / one_epoch(whole)
        return accuracy.compute(probabilities, codes)

    return replace(workshop, metric=replace(accuracy, compute=compute))


def search_of_100_seconds(study, workshop, watch, epoch_seconds, trials: int | None = None) -> tuple[Budget, Told]:
    """Run the queued trials and more, by the stopwatch."""
    budget, told = Budget(100, trials, lambda: watch.now), Told()
    queue_first_trials(study, Strategy("tpe", workshop))
    run_trials(study, Strategy("tpe", taking(workshop, watch, epoch_seconds, told)), budget, told)
    return budget, told


@pytest.fixture(scope="module")
def search(digits, pool, cache_dir, tmp_path_factory) -> tuple[optuna.Study, Workshop, Budget, Told]:
    """A search of 100 seconds with up to 50 epochs a trial, which take 9 seconds for a whole source, as is forecast."""
    space = small_space(parameters={"epochs": {"min": 1, "max": 50}})
    workshop = small_workshop(digits, pool, cache_dir, tmp_path_factory.mktemp("checkpoints"), space=space)
    study, workshop, watch = new_study(), timed(workshop, 9), Stopwatch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials_module, "perf_counter", watch)
        return study, workshop, *search_of_100_seconds(study, workshop, watch, 9)


def test_both_trials_that_always_run_get_the_same_fifth_of_the_budget(search):
    _, _, _, told = search
    starts, ends = told.of(TrialStarted)[:2], told.of(TrialFinished)[:2]
    assert [start.role for start in starts] == ["best by proxies", "from scratch"]
    assert [start.config.epochs for start in starts] == [2, 2]
    assert [end.seconds for end in ends] == pytest.approx([18, 18])


def test_a_search_leaves_the_time_that_its_final_training_takes(search):
    study, workshop, budget, told = search
    best = best_trial(study, workshop.metric, from_scratch=False)
    assert len(told.of(EpochFinished)) > 5
    assert budget.fits(refit_seconds(best, workshop.dataset))
    left = [end.time_left for end in told.of(TrialFinished)]
    assert left == sorted(left, reverse=True)


def test_another_trial_is_no_longer_than_itself_and_its_final_training_may_take(search):
    _, _, _, told = search
    left, growth = 100.0, 120 / 90  # a final training is on train and validation images
    for start, end in zip(told.of(TrialStarted), told.of(TrialFinished), strict=True):
        if end.trained and start.role not in ("best by proxies", "from scratch"):
            assert end.seconds * (1 + growth) <= left
        left = end.time_left


def test_a_baseline_that_is_slower_than_forecast_keeps_what_it_has_learnt(study, workshop, watch):
    search_of_100_seconds(study, workshop, watch, 35, trials=2)  # its share is 30 seconds, for two epochs
    first, second = study.get_trials()[:2]
    assert first.user_attrs["reason"] == "stopped in epoch 2 of 2: its share of the budget was used"
    for trial in (first, second):
        assert (trial.state, list(trial.intermediate_values)) == (TrialState.COMPLETE, [1])
        assert trial.value == trial.intermediate_values[1]
        assert (workshop.checkpoints / f"trial-{trial.number}.safetensors").exists()


def test_another_trial_that_runs_out_of_time_fails(study, workshop, watch):
    queue_trial(study, CONVNEXT, 4, epochs=2)
    told = Told()
    run_trials(study, Strategy("tpe", taking(workshop, watch, 15, told)), Budget(10, 1, lambda: watch.now), told)
    assert states(study) == [TrialState.FAIL]
    assert reasons(study) == ["the budget ran out"]


def test_what_does_not_fit_is_not_started_and_the_search_ends(study, workshop):
    slow = timed(workshop, 1e5)
    told = Told()
    run_trials(study, Strategy("tpe", slow), Budget(60, None, lambda: 0.0), told)
    assert told.of(EpochFinished) == []
    assert 1 <= len(states(study)) <= 50
    assert any("over budget" in reason for reason in reasons(study))


def test_a_baseline_is_trained_an_epoch_even_where_the_forecast_says_no(study, workshop):
    slow = timed(workshop, 1e5)
    queue_first_trials(study, Strategy("tpe", slow))
    told = Told()
    run_trials(study, Strategy("tpe", slow), Budget(60, 1, lambda: 0.0), told)
    assert [(event.number, event.epoch) for event in told.of(EpochFinished)] == [(0, 1)]


def test_a_spent_budget_starts_nothing(study, workshop):
    clock = Stopwatch()
    budget = Budget(10, None, clock)
    clock.now += 9.5
    queue_first_trials(study, Strategy("tpe", workshop))
    run_trials(study, Strategy("tpe", workshop), budget, Told())
    assert set(states(study)) == {TrialState.WAITING}


def test_where_time_is_short_a_source_that_trains_properly_comes_first(study, workshop):
    assert workshop.pool.candidates[0].source.name == CONVNEXT
    hurried = timed(workshop, {CONVNEXT: 1000, MOBILENET: 1})
    queue_first_trials(study, Strategy("tpe", hurried), 100)
    queued = [trial.system_attrs["fixed_params"]["source"] for trial in study.get_trials()]
    assert queued == [MOBILENET, MOBILENET, CONVNEXT, MOBILENET]


@pytest.mark.parametrize("seconds", [None, 1e6])
def test_where_time_is_enough_for_all_the_best_by_proxies_comes_first(study, workshop, seconds):
    queue_first_trials(study, Strategy("tpe", timed(workshop, {CONVNEXT: 1000, MOBILENET: 100})), seconds)
    queued = [trial.system_attrs["fixed_params"]["source"] for trial in study.get_trials()]
    assert queued == [CONVNEXT, CONVNEXT, MOBILENET, CONVNEXT]


# Stopping


def test_a_stop_request_starts_nothing_new(study, make_workshop):
    workshop = make_workshop(go_on=lambda: False)
    queue_first_trials(study, Strategy("tpe", workshop))
    run_trials(study, Strategy("tpe", workshop), unlimited(5), Told())
    assert set(states(study)) == {TrialState.WAITING}


def test_a_stop_request_ends_the_trial_within_a_batch_and_the_search(study, make_workshop):
    workshop = make_workshop(go_on=stop_after(3))
    queue_first_trials(study, Strategy("tpe", workshop))
    told = Told()
    run_trials(study, Strategy("tpe", workshop), unlimited(5), told)
    assert states(study) == [TrialState.FAIL] + [TrialState.WAITING] * 3
    assert reasons(study)[0] == "the user stopped the search"
    assert told.of(EpochFinished) == []
