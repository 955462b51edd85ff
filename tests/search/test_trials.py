"""What trials promise: first the sensible ones, what is hopeless is not trained, and one failure is one trial's."""

from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from optuna.trial import TrialState
from safetensors.torch import load_file
from small_study import (
    CONVNEXT,
    MOBILENET,
    Told,
    config_of,
    new_study,
    queue_trial,
    reasons,
    small_space,
    small_workshop,
    states,
    unlimited,
)

from autotransfer.recommendation import final
from autotransfer.search import trials as trials_module
from autotransfer.search.checkpoints import best_trial
from autotransfer.search.events import EpochFinished, TrialFinished, TrialStarted
from autotransfer.search.first_trials import queue_first_trials
from autotransfer.search.forecast import Forecast
from autotransfer.search.strategy import Strategy
from autotransfer.search.study import open_storage
from autotransfer.search.trials import run_trials
from autotransfer.transfer import training
from autotransfer.transfer.config import TransferConfig, canonical
from autotransfer.transfer.evaluation import Metric, get_metric
from autotransfer.transfer.training import predict

# What is tried first


def test_first_come_the_best_by_proxies_and_from_scratch_then_other_sources_and_half_frozen(study, workshop):
    queue_first_trials(study, Strategy("tpe", workshop))
    best = workshop.pool.candidates[0]
    other = workshop.pool.sources()[1]
    told = [(trial.user_attrs["role"], trial.system_attrs["fixed_params"]) for trial in study.get_trials()]
    assert [(role, p["source"], p["transferred_layers"], p["frozen_layers"]) for role, p in told] == [
        ("best by proxies", best.source.name, best.level, 0),
        ("from scratch", best.source.name, 0, 0),
        ("best of its source", other.name, workshop.pool.best_of(other.name).level, 0),
        ("half frozen", best.source.name, best.level, best.level // 2),
    ]
    rates = {params["source"]: params["learning_rate"] for _, params in told}
    assert rates[MOBILENET] > rates[CONVNEXT]  # batch norms bear more


def test_queued_trials_stay_within_the_space(study, make_workshop):
    rates = {"min": 0.01, "max": 0.1}
    workshop = make_workshop(space=small_space(parameters={"upper_layers": ["reinit"], "learning_rate": rates}))
    queue_first_trials(study, Strategy("tpe", workshop))
    for trial in study.get_trials():
        params = trial.system_attrs["fixed_params"]
        assert (params["upper_layers"], params["learning_rate"]) == ("reinit", 0.01)


def test_a_study_that_goes_on_queues_what_must_run_and_has_not(study, workshop):
    strategy = Strategy("proxy", workshop)
    queue_first_trials(study, strategy)
    study.tell(study.ask(), state=TrialState.FAIL)  # the best by proxies failed; from scratch still waits
    queue_first_trials(study, strategy)
    waiting = [t.user_attrs["role"] for t in study.get_trials() if t.state == TrialState.WAITING]
    assert waiting == ["from scratch", "best by proxies"]
    queue_first_trials(study, strategy)
    assert len(study.get_trials()) == 3


# A search from beginning to end


@pytest.fixture(scope="module")
def search(digits, pool, cache_dir, tmp_path_factory) -> Any:
    """A finished search of seven trained trials: study, workshop and what the listener was told."""
    workshop = small_workshop(digits, pool, cache_dir, tmp_path_factory.mktemp("checkpoints"))
    study, told = new_study(), Told()
    queue_first_trials(study, Strategy("tpe", workshop))
    run_trials(study, Strategy("tpe", workshop), unlimited(7), told)
    return study, workshop, told


def test_the_search_ends_after_the_wanted_number_of_trained_trials(search):
    study, _, _ = search
    assert sum(trial.user_attrs.get("trained", False) for trial in study.get_trials()) == 7
    roles = [trial.user_attrs.get("role", "") for trial in study.get_trials()]
    assert roles[:4] == ["best by proxies", "from scratch", "best of its source", "half frozen"]
    assert len(roles) >= 7


def test_every_configuration_is_in_the_space_and_written_in_its_one_way(search):
    study, workshop, _ = search
    parameters = workshop.space.parameters
    for trial in study.get_trials():
        config = TransferConfig.from_dict(trial.user_attrs["config"])
        levels = len(workshop.source(config.source).levels)
        assert config == canonical(config, levels)
        assert 0 <= config.frozen_layers <= config.transferred_layers <= levels
        assert parameters.learning_rate.min <= config.learning_rate <= parameters.learning_rate.max
        assert parameters.weight_decay.min <= config.weight_decay <= parameters.weight_decay.max
        assert config.epochs in (1, 2)
        assert config.image_size == workshop.pool.image_sizes[config.source]


def test_every_trial_is_told_from_start_to_end(search):
    study, _, told = search
    best = None
    for trial in study.get_trials():
        own = [event for event in told if event.number == trial.number]
        start, *epochs, end = own
        assert (type(start), type(end)) == (TrialStarted, TrialFinished)
        assert start.config.to_dict() == trial.user_attrs["config"]
        assert [epoch.epoch for epoch in epochs] == list(range(1, len(epochs) + 1))
        assert [epoch.metrics["val.accuracy"] for epoch in epochs] == list(trial.intermediate_values.values())
        assert all(np.isfinite([epoch.metrics["train.loss"], epoch.metrics["val.loss"]]).all() for epoch in epochs)
        assert end.value == (trial.value if trial.state == TrialState.COMPLETE else None)
        assert end.trained == bool(epochs)
        if end.value is not None:
            best = max(end.value, best if best is not None else 0.0)
            assert end.value == epochs[-1].metrics["val.accuracy"]
        assert end.best_value == best
        assert end.time_left is None


def test_the_start_of_a_trial_tells_its_proxies_and_from_scratch_has_none(search):
    _, workshop, told = search
    for event in told.of(TrialStarted):
        config = event.config
        if config.from_scratch:
            assert event.proxies == {}
        else:
            proxies = workshop.pool.get(config.source, config.transferred_layers).proxies
            assert event.proxies == {name: proxy.value for name, proxy in proxies.items()}


def test_the_best_trials_keep_weights_that_have_the_score_they_were_told(search):
    study, workshop, _ = search
    val = workshop.dataset.rows("val")
    complete = [trial for trial in study.get_trials() if trial.state == TrialState.COMPLETE]
    assert len(complete) >= 4
    best = [best_trial(study, workshop.metric, from_scratch=scratch) for scratch in (True, False)]
    kept = sorted(path.name for path in workshop.checkpoints.glob("trial-*"))
    assert kept == sorted(f"trial-{trial.number}.safetensors" for trial in best)
    for trial in best:
        config = TransferConfig.from_dict(trial.user_attrs["config"])
        source = workshop.source(config.source)
        model = workshop.build(config)
        model.load_state_dict(load_file(workshop.checkpoints / f"trial-{trial.number}.safetensors"))
        answers = predict(model, workshop.inputs(source.name), val)
        assert (answers.argmax(axis=1) == workshop.dataset.codes[val]).mean() == pytest.approx(trial.value)


def test_the_same_seed_gives_the_same_trials(search, make_workshop, study):
    queue_first_trials(study, Strategy("tpe", make_workshop()))
    run_trials(study, Strategy("tpe", make_workshop()), unlimited(2), Told())
    for again, first in zip(study.get_trials()[:2], search[0].get_trials()[:2], strict=True):
        assert (again.params, again.value) == (first.params, first.value)
        assert again.intermediate_values == first.intermediate_values


def test_a_trials_time_teaches_the_forecast_unless_it_replayed_activations(search):
    study, workshop, told = search
    ratios = Forecast.of(study, workshop).ratios
    trained = {event.number for event in told.of(EpochFinished)}
    replayed = {event.number for event in told.of(TrialStarted) if event.config.cached_views}
    assert trained & replayed and trained - replayed
    assert sum(len(known) for known in ratios.values()) == len(trained - replayed)
    assert all(ratio > 0 for known in ratios.values() for ratio in known)


@pytest.mark.parametrize("name", ["proxy", "random", "tpe", "gp"])
def test_workers_that_choose_one_after_the_other_choose_differently(workshop, tmp_path, name):
    """Each has its own handle on the study, as processes have; the trials of the others still run."""
    url = f"journal:{tmp_path / 'study.journal'}"
    optuna.create_study(study_name="s", storage=open_storage(url), direction="maximize")
    chosen = []
    for _ in range(3):
        own, strategy = optuna.load_study(study_name="s", storage=open_storage(url)), Strategy(name, workshop)
        forecast = Forecast.of(own, workshop)
        strategy.prepare(own, forecast, None)
        _, config, _ = trials_module._choose(own, strategy, forecast, unlimited(5))
        chosen.append(config)
    assert len(set(chosen)) == 3


# What is never trained


def test_only_the_better_half_by_proxies_is_trained(study, workshop):
    candidates = workshop.pool.candidates
    for candidate in reversed(candidates):
        queue_trial(study, candidate.source.name, candidate.level)
    told = Told()
    run_trials(study, Strategy("tpe", workshop), unlimited(4), told)
    ends = told.of(TrialFinished)
    assert [end.state for end in ends] == ["pruned"] * 5 + ["complete"] * 4
    assert {event.number for event in told.of(EpochFinished)} == {5, 6, 7, 8}
    worst = candidates[-1]
    assert ends[0].reason == f"proxies rank level {worst.level} of this source outside the best 4 of 9"
    assert not any(end.trained for end in ends[:5])


def test_where_the_upper_layers_are_kept_the_sources_best_level_counts(study, make_workshop):
    workshop = make_workshop(space=small_space(pruning={"proxy_keep": 0.1}))  # the best of nine
    best = workshop.pool.candidates[0].source.name
    other = next(source.name for source in workshop.pool.sources() if source.name != best)
    queue_trial(study, best, 1, "drop")
    queue_trial(study, other, 1, "reinit")
    queue_trial(study, best, 1, "reinit")
    queue_trial(study, other, 0, "reinit")  # from scratch, proxies say nothing
    run_trials(study, Strategy("tpe", workshop), unlimited(2), Told())
    assert states(study) == [TrialState.PRUNED, TrialState.PRUNED, TrialState.COMPLETE, TrialState.COMPLETE]


def test_hard_limits_hold_for_every_trial(study, make_workshop):
    workshop = make_workshop(max_parameters=100_000)
    queue_first_trials(study, Strategy("tpe", workshop))
    queue_trial(study, CONVNEXT, 4)
    run_trials(study, Strategy("tpe", workshop), unlimited(4), Told())
    trials = study.get_trials()
    for trial, reason in zip(trials, reasons(study), strict=True):
        over = "more than --max-params 100,000" in reason
        assert not (trial.state == TrialState.COMPLETE and over)
        assert trial.user_attrs["config"]["transferred_layers"] > 0 or over  # no whole network is that small
    assert trials[0].state == TrialState.COMPLETE
    assert trials[1].state == TrialState.PRUNED  # roles do not excuse


def test_the_first_trials_are_chosen_within_the_hard_limits(study, make_workshop):
    queue_first_trials(study, Strategy("tpe", make_workshop(max_parameters=400_000)))
    queued = [trial.system_attrs["fixed_params"] for trial in study.get_trials()]
    roles = [trial.user_attrs["role"] for trial in study.get_trials()]
    assert queued[roles.index("from scratch")]["source"] == CONVNEXT  # the other's whole network is larger
    assert (MOBILENET, 5) not in {(params["source"], params["transferred_layers"]) for params in queued}


# Failures


def test_a_diverging_trial_fails_alone(study, make_workshop):
    rates = {"min": 1e-4, "max": 1e30, "log": True}
    workshop = make_workshop(space=small_space(parameters={"learning_rate": rates, "epochs": {"min": 1, "max": 2}}))
    queue_trial(study, CONVNEXT, 4, learning_rate=1e30, epochs=2)
    queue_trial(study, CONVNEXT, 4)
    told = Told()
    run_trials(study, Strategy("tpe", workshop), unlimited(2), told)
    assert states(study) == [TrialState.FAIL, TrialState.COMPLETE]
    assert "diverged in epoch" in reasons(study)[0]
    assert [end.state for end in told.of(TrialFinished)] == ["failed", "complete"]


def failing_once(error: BaseException) -> Metric:
    """Accuracy, but the first time that it is computed something breaks."""
    accuracy, errors = get_metric("accuracy"), [error]

    def compute(probabilities: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        if errors:
            raise errors.pop()
        return accuracy.compute(probabilities, codes)

    return Metric("accuracy", True, compute)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory: CUDA out of memory"),
        (RuntimeError("cuDNN error"), "RuntimeError: cuDNN error"),
        (OSError("No space left on device"), "OSError: No space left on device"),
    ],
)
def test_a_trial_that_breaks_fails_alone_with_its_reason(study, make_workshop, error, reason):
    workshop = make_workshop(metric=failing_once(error))
    queue_trial(study, CONVNEXT, 4)
    queue_trial(study, CONVNEXT, 4)
    run_trials(study, Strategy("tpe", workshop), unlimited(2), Told())
    assert states(study) == [TrialState.FAIL, TrialState.COMPLETE]
    assert reasons(study) == [reason, ""]


def test_a_killed_search_leaves_its_trial_running_so_that_resuming_retries_it(study, make_workshop):
    queue_trial(study, CONVNEXT, 4)
    workshop = make_workshop(metric=failing_once(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        run_trials(study, Strategy("tpe", workshop), unlimited(1), Told())
    assert states(study) == [TrialState.RUNNING]


def test_a_curve_below_the_others_is_pruned_but_never_a_baselines(workshop, monkeypatch):
    harsh = optuna.pruners.ThresholdPruner(lower=2.0)  # no accuracy is that good
    monkeypatch.setattr(optuna.pruners, "MedianPruner", lambda **options: harsh)
    study = new_study()
    queue_first_trials(study, Strategy("tpe", workshop))
    queue_trial(study, CONVNEXT, 4, epochs=2)
    run_trials(study, Strategy("tpe", workshop), unlimited(5), Told())
    trials = study.get_trials()
    assert [len(trial.intermediate_values) for trial in (trials[0], trials[1], trials[4])] == [2, 2, 1]
    assert [trials[0].state, trials[1].state, trials[4].state] == [
        TrialState.COMPLETE,
        TrialState.COMPLETE,
        TrialState.PRUNED,
    ]
    assert reasons(study)[4] == "its learning curve is below the median, after epoch 1"


# The best


def test_the_best_is_the_best_of_its_kind_by_the_metrics_direction():
    study = optuna.create_study()
    for level, value in ((0, 0.5), (2, 0.4), (3, 0.9), (0, 0.1), (1, None)):
        attrs = {"config": config_of(MOBILENET, level).to_dict()}
        state = TrialState.COMPLETE if value is not None else TrialState.FAIL
        study.add_trial(optuna.trial.create_trial(value=value, user_attrs=attrs, state=state))
    found = {
        (name, scratch): best_trial(study, get_metric(name), from_scratch=scratch).number
        for name in ("accuracy", "log_loss")
        for scratch in (True, False)
    }
    assert found == {
        ("accuracy", True): 0,
        ("accuracy", False): 2,
        ("log_loss", True): 3,
        ("log_loss", False): 1,
    }


def test_without_a_complete_trial_there_is_no_best(study):
    assert best_trial(study, get_metric("accuracy"), from_scratch=False) is None


# After a kill


def test_the_final_training_ends_where_early_stopping_did(study, make_workshop, monkeypatch):
    scores = iter([0.5, 0.9, 0.7, 0.6])
    metric = Metric("accuracy", True, lambda probabilities, codes: torch.tensor(next(scores)))
    space = small_space(
        parameters={"epochs": {"min": 6, "max": 6}}, training={"augmentation": "none", "early_stopping": 2}
    )
    workshop = make_workshop(metric=metric, space=space)
    queue_trial(study, CONVNEXT, 4, epochs=6)
    run_trials(study, Strategy("tpe", workshop), unlimited(1), Told())
    (trial,) = study.get_trials()
    assert (trial.value, trial.user_attrs["best_epoch"]) == (pytest.approx(0.9), 2)
    told: list[int | None] = []
    monkeypatch.setattr(final, "train", lambda *args, until, **options: told.append(until))
    final.finish_trial(final.keep_trial(trial, workshop), trial, workshop, unlimited(1))
    assert told == [2]


def test_a_trial_whose_process_was_killed_goes_on_from_its_last_epoch(make_workshop, monkeypatch, tmp_path):
    class KilledError(BaseException):
        """As sudden as a signal: nothing is told to the study."""

    workshop = make_workshop(space=small_space(parameters={"epochs": {"min": 4, "max": 4}}))
    expected_study, study = new_study(), new_study()
    queue_trial(expected_study, CONVNEXT, 2, epochs=4)
    run_trials(expected_study, Strategy("tpe", replace(workshop, checkpoints=tmp_path / "other")), unlimited(1), Told())
    queue_trial(study, CONVNEXT, 2, epochs=4)

    def kill(event: object) -> None:
        if isinstance(event, EpochFinished) and event.epoch == 3:
            raise KilledError

    with pytest.raises(KilledError):
        run_trials(study, Strategy("tpe", workshop), unlimited(1), kill)
    assert [path.name for path in workshop.checkpoints.glob("trial-*")] == ["trial-0.state"]
    trial = study.get_trials()[0]
    study.tell(0, state=TrialState.FAIL)  # what --resume does with a trial whose process is gone
    study.enqueue_trial(trial.params, user_attrs={"retry_of": 0, "origin": 0})
    trained: list[int] = []
    original = training._Training.run_epoch
    monkeypatch.setattr(training._Training, "run_epoch", lambda self, go_on: trained.append(1) or original(self, go_on))
    told = Told()
    run_trials(study, Strategy("tpe", workshop), unlimited(2), told)
    assert [event.epoch for event in told.of(EpochFinished)] == [1, 2, 3, 4]
    assert len(trained) < 4
    assert study.get_trials()[1].value == expected_study.get_trials()[0].value
    assert sorted(path.suffix for path in workshop.checkpoints.glob("trial-*")) == [".safetensors"]
