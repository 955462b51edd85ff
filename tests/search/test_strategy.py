"""How a study chooses: what the proxies know reaches the sampler, hard limits hold, pruned trials go on."""

from dataclasses import replace

import numpy as np
import optuna
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from small_study import CONVNEXT, MOBILENET, Told, config_of, new_study, queue_trial, small_space, unlimited

from autotransfer.search.budget import Budget
from autotransfer.search.events import EpochFinished, TrialStarted
from autotransfer.search.first_trials import queue_first_trials
from autotransfer.search.forecast import Forecast
from autotransfer.search.prior import Points
from autotransfer.search.sampler import CurvePruner, ProxySampler
from autotransfer.search.strategy import SAMPLER_NAMES, Strategy
from autotransfer.search.trials import run_trials
from autotransfer.search.workshop import with_training
from autotransfer.transfer.config import canonical
from autotransfer.transfer.evaluation import Metric


def test_the_landscape_holds_what_the_pool_knows(workshop):
    known = Strategy("proxy", workshop).landscape
    assert list(known.sources) == sorted([CONVNEXT, MOBILENET])
    for row, name in enumerate(known.sources):
        levels = workshop.source(name).levels
        assert known.depths[row] == len(levels)
        for level in levels:
            candidate = workshop.pool.get(name, level.index)
            assert known.linear_probe[row, level.index - 1] == candidate.linear_probe
            assert known.percentile[row, level.index - 1] == candidate.expected
            assert known.flops[row, level.index - 1] == level.flops
        assert np.isnan(known.linear_probe[row, len(levels) :]).all()
    assert known.train_images == len(workshop.dataset.rows("train"))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_many_forecasts_at_once_are_those_of_each(workshop, data):
    """Beside the seconds that starting takes."""
    strategy = Strategy("proxy", workshop)
    known = strategy.landscape
    row = data.draw(st.integers(0, 1))
    depth = int(known.depths[row])
    k = data.draw(st.integers(0, depth))
    f, drop = data.draw(st.integers(0, k)), data.draw(st.booleans()) or k == depth
    epochs = data.draw(st.integers(1, 9))
    ratios = {CONVNEXT: [3.0, 5.0]} if data.draw(st.booleans()) else {}
    forecast = Forecast(workshop.pool, 70, ratios, workshop.space.training.cached_views, overheads=(2.0, 4.0))
    config = config_of(known.sources[row], k, upper_layers="drop" if drop else "reinit", frozen_layers=f, epochs=epochs)
    config = canonical(with_training(workshop, config), depth)
    point = Points.of([(row, k, bool(drop and k), f, -3.0)])
    expected = forecast.seconds(config) + 3.0
    assert forecast.seconds_of(point, known, np.array([epochs]))[0] == pytest.approx(expected)


@pytest.mark.parametrize("name", SAMPLER_NAMES)
def test_every_sampler_searches(name, make_workshop):
    study, strategy = new_study(), Strategy(name, make_workshop())
    queue_first_trials(study, strategy)
    run_trials(study, strategy, unlimited(4), Told())
    trained = [trial for trial in study.get_trials() if trial.user_attrs.get("trained")]
    assert len(trained) == 4
    assert trained[0].user_attrs["role"] == "best by proxies" and trained[1].user_attrs["role"] == "from scratch"
    kinds = {"proxy": "ProxySampler", "tpe": "TPESampler", "gp": "GPSampler", "random": "RandomSampler"}
    assert type(study.sampler).__name__ == kinds[name]
    assert isinstance(study.pruner, CurvePruner) == (name == "proxy")


def test_with_the_proxies_nothing_is_asked_for_in_vain(make_workshop):
    """Hard limits are known before a configuration is chosen."""
    workshop = make_workshop(max_parameters=400_000)
    study, strategy = new_study(), Strategy("proxy", workshop)
    run_trials(study, strategy, unlimited(5), Told())
    trials = study.get_trials()
    assert len(trials) == 5
    assert all(trial.user_attrs["trained"] for trial in trials)
    sampler = study.sampler
    assert isinstance(sampler, ProxySampler)


def test_a_limit_of_latency_is_known_before_too(make_workshop, workshop):
    slow = {(CONVNEXT, level.index): 50.0 for level in workshop.source(CONVNEXT).levels}
    fast = {(MOBILENET, level.index): 1.0 for level in workshop.source(MOBILENET).levels}
    study = new_study()
    run_trials(
        study, Strategy("proxy", make_workshop(max_latency_ms=10.0, latencies_ms=slow | fast)), unlimited(4), Told()
    )
    assert {trial.params["source"] for trial in study.get_trials()} == {MOBILENET}


def test_a_pruned_trial_goes_on_from_its_last_epoch(make_workshop, monkeypatch, tmp_path):
    workshop = make_workshop(space=small_space(parameters={"epochs": {"min": 4, "max": 4}}))
    expected = new_study()
    queue_trial(expected, CONVNEXT, 2, epochs=4)
    run_trials(expected, Strategy("proxy", replace(workshop, checkpoints=tmp_path / "other")), unlimited(1), Told())

    study, strategy = new_study(), Strategy("proxy", workshop)
    queue_trial(study, CONVNEXT, 2, epochs=4)
    monkeypatch.setattr(CurvePruner, "prune", lambda self, study, trial: max(trial.intermediate_values) == 2)
    run_trials(study, strategy, unlimited(1), Told())
    (trial,) = study.get_trials()
    assert trial.state == TrialState.PRUNED
    assert "worth less than trying something else" in trial.user_attrs["reason"]
    assert [path.name for path in workshop.checkpoints.glob("trial-*")] == ["trial-0.state"]

    monkeypatch.setattr(CurvePruner, "prune", lambda self, study, trial: False)
    study.enqueue_trial(trial.params, user_attrs={"continues": 0, "origin": 0})
    told = Told()
    run_trials(study, strategy, unlimited(2), told)
    again = study.get_trials()[1]
    assert again.value == expected.get_trials()[0].value
    assert again.params == trial.params
    epochs = told.of(EpochFinished)
    assert [event.epoch for event in epochs] == [1, 2, 3, 4]
    assert len(told.of(TrialStarted)) == 1
    assert not list(workshop.checkpoints.glob("*.state"))


def test_optunas_own_tools_work_on_such_a_study(make_workshop):
    study = new_study()
    run_trials(study, Strategy("proxy", make_workshop()), unlimited(5), Told())
    assert set(optuna.importance.get_param_importances(study)) <= set(study.trials[0].params)
    assert len(study.trials_dataframe()) == 5
    assert study.best_trial.value == max(t.value for t in study.trials if t.value is not None)


def test_optunas_visualisations_show_such_a_study(make_workshop):
    study = new_study()
    run_trials(study, Strategy("proxy", make_workshop()), unlimited(5), Told())
    names = ["source", "transferred_layers", "frozen_layers", "learning_rate"]
    show = optuna.visualization
    for figure in (
        show.plot_optimization_history(study),
        show.plot_intermediate_values(study),
        show.plot_parallel_coordinate(study, names),
        show.plot_slice(study, names),
        show.plot_param_importances(study),
        show.plot_timeline(study),
    ):
        assert len(figure.data) > 0


def test_a_search_that_finds_nothing_worth_training_says_so(make_workshop):
    study = new_study()
    strategy = Strategy("random", make_workshop(max_parameters=1))
    assert "not within the limits" in run_trials(study, strategy, unlimited(50), Told())


def test_where_nothing_is_to_be_gained_the_search_stops_and_says_why(make_workshop):
    """Every configuration is perfect: after the queued ones, there is nothing left to look for."""
    perfect = Metric("accuracy", True, lambda probabilities, codes: torch.tensor(1.0))
    study, strategy = new_study(), Strategy("proxy", make_workshop(metric=perfect))
    queue_first_trials(study, strategy)
    assert "cannot be better" in run_trials(study, strategy, Budget(3600, None), Told())
    assert len(study.get_trials()) == 2


def test_a_gain_that_no_image_would_show_is_none(make_workshop, monkeypatch):
    study, strategy = new_study(), Strategy("proxy", make_workshop())
    queue_first_trials(study, strategy)
    monkeypatch.setattr(ProxySampler, "most_to_gain", lambda self, study: 1e-4)
    assert "less than 0.05 of what one of" in run_trials(study, strategy, Budget(3600, None), Told())
    assert len(study.get_trials()) == 2


def test_a_wanted_number_of_trials_is_run_whatever_is_to_be_gained(make_workshop, monkeypatch):
    monkeypatch.setattr(ProxySampler, "most_to_gain", lambda self, study: 0.0)
    study = new_study()
    run_trials(study, Strategy("proxy", make_workshop()), unlimited(3), Told())
    assert len(study.get_trials()) == 3
