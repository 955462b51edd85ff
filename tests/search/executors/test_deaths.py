"""What holds however workers die: no trial is lost, none is doubled, and the search ends."""

import os
import random
import signal
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from small_search import study_of
from small_study import Told

from autotransfer.errors import StudyError
from autotransfer.search.events import Notice, TrialFinished, TrialStarted
from autotransfer.search.executors import make_executor
from autotransfer.search.study import trained_trials
from autotransfer.search.workers import KILLED, Watch, retry_lost_trials

WORKERS, TRIALS, KILLS = 8, 20, 10


class Killer(threading.Thread):
    """Kills workers that are at a trial, at random moments."""

    def __init__(self, study: optuna.Study, kills: int, seed: int) -> None:
        super().__init__(daemon=True)
        self._study, self._kills, self._random = study, kills, random.Random(seed)
        self.killed: list[int] = []

    def run(self) -> None:
        while len(self.killed) < self._kills:
            time.sleep(self._random.uniform(0.1, 1.5))
            running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            workers = {int(t.user_attrs["worker"].split(":")[1]) for t in running if "worker" in t.user_attrs}
            if left := sorted(workers - set(self.killed)):
                victim = self._random.choice(left)
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
                    self.killed.append(victim)


@pytest.fixture(scope="module")
def chaos(make_job, tmp_path_factory) -> tuple[optuna.Study, Told, Killer]:
    job, told = make_job(tmp_path_factory.mktemp("chaos"), trials=TRIALS, jobs=WORKERS), Told()
    killer = Killer(study_of(job), KILLS, seed=0)
    with make_executor(jobs=WORKERS) as executor:
        killer.start()
        executor.search(job, lambda: True, told)
    return study_of(job), told, killer


def killed_trials(study: optuna.Study) -> list[Any]:
    return [trial for trial in study.get_trials() if trial.user_attrs.get("reason") == KILLED]


@pytest.mark.slow
def test_the_search_ends_with_exactly_the_wanted_trials_however_often_its_workers_are_killed(chaos):
    study, _, killer = chaos
    assert len(killer.killed) >= KILLS // 2
    assert len(killed_trials(study)) >= KILLS // 2
    assert len(trained_trials(study)) == TRIALS
    assert all(trial.state.is_finished() or trial.state == TrialState.WAITING for trial in study.get_trials())


@pytest.mark.slow
def test_every_killed_trial_is_retried_once_and_no_retry_is_retried(chaos):
    study, _, _ = chaos
    retry_lost_trials(study, Watch())  # as resuming it would: one that closed a trial may have died before it queued it
    queued = [trial for trial in study.get_trials() if "retry_of" in trial.user_attrs]
    killed = killed_trials(study)
    first_time = {t.number for t in killed if "retry_of" not in t.user_attrs and "config" in t.user_attrs}
    assert {trial.user_attrs["retry_of"] for trial in queued} >= first_time
    assert {t.user_attrs["retry_of"] for t in queued} <= {t.number for t in killed if "retry_of" not in t.user_attrs}
    # Two may queue the same at the same moment: one of them runs.
    run = Counter(trial.user_attrs["retry_of"] for trial in queued if "config" in trial.user_attrs)
    assert set(run.values()) <= {1}


@pytest.mark.slow
def test_no_configuration_is_scored_twice_and_every_end_is_told_once(chaos):
    study, told, _ = chaos
    complete = [trial for trial in study.get_trials() if trial.state == TrialState.COMPLETE]
    configs = Counter(str(trial.user_attrs["config"]) for trial in complete)
    assert set(configs.values()) == {1}
    ends = Counter(event.number for event in told.of(TrialFinished))
    assert ends == {t.number: 1 for t in study.get_trials() if t.state.is_finished() and t.number in ends}
    assert {trial.number for trial in complete} <= set(ends)
    assert {event.number for event in told.of(TrialStarted)} >= {trial.number for trial in complete}


@pytest.mark.slow
def test_the_storage_of_such_a_search_is_whole(chaos):
    study, _, _ = chaos
    numbers = [trial.number for trial in study.get_trials()]
    assert numbers == list(range(len(numbers)))
    study.enqueue_trial({"source": "x"})  # it can still be written
    assert len(study.get_trials()) == len(numbers) + 1


@pytest.mark.slow
def test_a_worker_that_dies_is_told_and_started_again(make_job, tmp_path):
    job, told = make_job(tmp_path / "one", trials=2, jobs=2), Told()
    killer = Killer(study_of(job), 1, seed=1)
    with make_executor(jobs=2) as executor:
        killer.start()
        executor.search(job, lambda: True, told)
    assert len(trained_trials(study_of(job))) == 2
    if killer.killed:
        assert any("was killed by SIGKILL" in notice.message for notice in told.of(Notice))
        (lost,) = killed_trials(study_of(job))
        (end,) = [event for event in told.of(TrialFinished) if event.number == lost.number]
        assert (end.state, end.reason) == ("failed", KILLED)


def test_workers_that_all_die_at_once_end_the_search_with_an_error(make_job, tmp_path, monkeypatch):
    monkeypatch.setattr("autotransfer.search.executors.crew._MOST_DEATHS_IN_A_ROW", 0)
    job = make_job(tmp_path / "none", trials=2, jobs=2)
    with make_executor(jobs=2) as executor:
        for worker in executor._workers:
            worker.kill()
        with pytest.raises(StudyError, match="no worker could work: process was killed by SIGKILL"):
            executor.search(job, lambda: True, Told())
