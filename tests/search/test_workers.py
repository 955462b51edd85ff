"""What is promised of trials whose worker dies: it is noticed, on any machine, and each is retried exactly once."""

import os
import subprocess
import time

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.trial import TrialState
from small_study import Stopwatch, new_study

from autotransfer.search.workers import KILLED, STOPPED, Watch, heartbeat, is_repeated, retry_lost_trials, worker_name

HERE = worker_name().rpartition(":")[0]


def running(study: optuna.Study, worker: str | None) -> optuna.Trial:
    """A trial that runs, with a parameter."""
    trial = study.ask()
    if worker is not None:
        trial.set_user_attr("worker", worker)
    trial.suggest_float("x", 0, 1)
    return trial


@pytest.fixture
def dead() -> str:
    with subprocess.Popen(["true"]) as process:
        return f"{HERE}:{process.pid}"


@pytest.mark.parametrize(("parent", "lost"), [(True, False), (False, True)])
def test_a_process_of_this_machine_is_lost_when_it_is_gone(study, parent, lost, dead):
    worker = f"{HERE}:{os.getppid()}" if parent else dead
    running(study, worker)
    assert Watch().lost(study.get_trials()[0]) == lost


@pytest.mark.parametrize("worker", ["another-machine:1", None])
def test_of_another_machine_it_is_lost_when_nothing_is_heard_for_a_while(study, worker):
    clock = Stopwatch()
    watch, trial = Watch(60, clock), running(study, worker)

    def lost() -> bool:
        return watch.lost(study.get_trials()[0])

    assert not lost()
    clock.now += 59
    assert not lost()
    trial.set_user_attr("heartbeat", 1.0)
    clock.now += 30
    assert not lost()
    clock.now += 59
    assert not lost()
    clock.now += 2
    assert lost()


def test_a_trial_that_reports_epochs_is_heard_of(study):
    clock = Stopwatch()
    watch, trial = Watch(60, clock), running(study, "another-machine:1")
    for epoch in range(5):
        trial.report(0.5, epoch)
        assert not watch.lost(study.get_trials()[0])
        clock.now += 50


def test_a_heart_beats_while_a_trial_runs_and_not_after(study):
    trial = running(study, worker_name())

    def heard() -> float:
        return study.get_trials()[0].user_attrs.get("heartbeat", 0.0)

    with heartbeat(trial, every=0.01):
        while (first := heard()) == 0:
            pass
        while heard() == first:
            trial.should_prune()  # what a training does meanwhile
    last = heard()
    time.sleep(0.05)
    assert heard() == last > first


def test_a_heart_that_cannot_beat_ends_no_trial(study):
    trial = running(study, worker_name())
    study.tell(trial, state=TrialState.FAIL)  # another worker took it for lost
    with heartbeat(trial, every=0.001):
        pass
    assert study.get_trials()[0].state == TrialState.FAIL


def test_a_lost_trial_is_closed_and_queued_with_what_it_was(study, dead):
    study.enqueue_trial({"x": 0.25}, user_attrs={"role": "from scratch"})
    running(study, dead)
    (closed,) = retry_lost_trials(study, Watch())
    lost, retry = study.get_trials()
    assert (closed.number, lost.state, lost.user_attrs["reason"]) == (0, TrialState.FAIL, KILLED)
    assert retry.user_attrs == {"role": "from scratch", "retry_of": 0, "origin": 0}
    assert retry.system_attrs["fixed_params"] == {"x": 0.25}


def test_a_trial_that_was_closed_by_one_that_died_before_queueing_it_is_queued_by_the_next(study, dead):
    trial = running(study, dead)
    trial.set_user_attr("reason", KILLED)
    study.tell(trial, state=TrialState.FAIL)
    assert retry_lost_trials(study, Watch()) == []
    assert [t.state for t in study.get_trials()] == [TrialState.FAIL, TrialState.WAITING]
    retry_lost_trials(study, Watch())
    assert len(study.get_trials()) == 2


def test_of_two_retries_of_one_trial_the_first_runs(study, dead):
    running(study, dead)
    retry_lost_trials(study, Watch())
    study.enqueue_trial({"x": 0.5}, user_attrs={"retry_of": 0})  # another process queued it at the same moment
    first, second = study.ask(), study.ask()
    assert is_repeated(study, first) == ""
    assert is_repeated(study, second) == "trial 1 retries trial 0 already"


@given(states=st.lists(st.sampled_from(["runs", "pruned"]), min_size=1, max_size=4))
def test_of_those_that_go_on_with_one_trial_at_once_the_first_runs(states):
    study = new_study()
    paused = running(study, None)
    study.tell(paused, state=TrialState.PRUNED)
    trials = []
    for state in states:
        trial = running(study, None)
        trial.set_user_attr("continues", 0)
        trials.append((trial, any(other == "runs" for other in states[: len(trials)])))
        if state == "pruned":
            study.tell(trial, state=TrialState.PRUNED)
    for trial, repeated in trials:
        assert bool(is_repeated(study, trial)) == repeated


def test_the_retry_of_one_that_went_on_is_no_repetition_of_it(study, dead):
    study.tell(running(study, None), state=TrialState.PRUNED)
    running(study, dead).set_user_attr("continues", 0)
    retry_lost_trials(study, Watch())
    retry = study.ask()
    assert retry.user_attrs["continues"] == 0
    assert is_repeated(study, retry) == ""


def test_a_machine_that_is_only_called_the_same_is_another_one(study):
    name, _, mark = HERE.rpartition("-")
    running(study, f"{name}-{'0' * len(mark)}:{os.getpid()}")
    assert not Watch().lost(study.get_trials()[0])


def test_what_the_user_stopped_is_queued_again_when_the_study_is_resumed_and_only_then(study):
    trial = running(study, worker_name())
    trial.set_user_attr("reason", STOPPED)
    study.tell(trial, state=TrialState.FAIL)
    retry_lost_trials(study, Watch())
    assert len(study.get_trials()) == 1
    retry_lost_trials(study, Watch(), stopped=True)
    assert [t.state for t in study.get_trials()] == [TrialState.FAIL, TrialState.WAITING]
