"""What every executor promises, on every storage: the same search, whoever runs its trials and wherever they lie."""

from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from small_search import Search, run_search, study_of
from small_study import Told

from autotransfer.errors import StudyError
from autotransfer.search.checkpoints import best_trial, weights_file
from autotransfer.search.events import EpochFinished, TrialFinished, TrialStarted
from autotransfer.search.executors import SearchJob, make_executor

TRIALS = 5
slow = pytest.mark.slow
CASES = [
    pytest.param(({"name": "local"}, "journal"), id="this process, journal"),
    pytest.param(({"name": "local", "jobs": 2}, "journal"), id="two processes, journal"),
    pytest.param(({"name": "local", "jobs": 2}, "postgres"), id="two processes, PostgreSQL", marks=slow),
    pytest.param(({"name": "ray", "jobs": 2}, "journal"), id="Ray, journal", marks=slow),
]


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory) -> tuple[dict[str, Any], str, Any]:
    options, storage = request.param
    if options["name"] == "ray":
        request.getfixturevalue("ray_on_this_machine")
    url = request.getfixturevalue("postgres_url") if storage == "postgres" else ""
    return options, url, tmp_path_factory


@pytest.fixture(scope="module")
def search(case, make_job) -> Search:
    options, url, folders = case
    executor = make_executor(**options)
    return run_search(executor, make_job(folders.mktemp("search"), storage=url, trials=TRIALS, jobs=executor.jobs))


def test_exactly_the_wanted_number_of_trials_is_trained(search):
    trials = search.study.get_trials()
    assert sum(trial.user_attrs.get("trained", False) for trial in trials) == TRIALS
    assert all(trial.state.is_finished() for trial in trials)
    assert search.reason == ""


def test_every_trial_is_told_from_start_to_end_as_the_storage_has_it(search):
    for trial in search.study.get_trials():
        start, *epochs, end = [event for event in search.told if event.number == trial.number]
        assert (type(start), type(end)) == (TrialStarted, TrialFinished)
        assert start.config.to_dict() == trial.user_attrs["config"]
        told = {event.epoch: event.metrics["val.accuracy"] for event in epochs if isinstance(event, EpochFinished)}
        assert told == trial.intermediate_values
        assert (end.state, end.value) == (trial.state.name.lower(), trial.value)


def test_no_two_trials_are_of_the_same_configuration(search):
    configs = [tuple(trial.user_attrs["config"].items()) for trial in search.study.get_trials()]
    assert len(set(configs)) == len(configs)


def test_the_weights_of_the_best_are_there_for_the_answer(search):
    workshop = search.job.workshop
    for scratch in (True, False):
        best = best_trial(search.study, workshop.metric, from_scratch=scratch)
        assert best is not None and weights_file(best.number, workshop).exists()


def test_a_stop_ends_the_search_within_a_trial(case, make_job):
    options, url, folders = case
    job, told = make_job(folders.mktemp("stopped"), storage=url), Told()
    with make_executor(**options) as executor:
        assert executor.search(job, lambda: not told.of(EpochFinished), told) == ""
    states = [trial.state for trial in study_of(job).get_trials()]
    assert TrialState.RUNNING not in states
    assert states.count(TrialState.COMPLETE) <= 1


def test_a_search_that_cannot_work_says_why(case, make_job, tmp_path):
    options, url, folders = case
    job = make_job(folders.mktemp("broken"), storage=url)
    broken = SearchJob(job.storage, job.study, job.workshop, "proxy", plugins=("no_such_plugin",))
    with make_executor(**options) as executor, pytest.raises(StudyError if executor.jobs > 1 else Exception) as caught:
        executor.search(broken, lambda: True, Told())
    assert "plugin 'no_such_plugin' cannot be found" in str(caught.value)


def test_why_a_search_ended_early_is_known(case, make_job):
    options, url, folders = case
    job = make_job(folders.mktemp("perfect"), storage=url)
    perfect = optuna.trial.create_trial(value=1.0, user_attrs={"config": {"transferred_layers": 1}})
    study = study_of(job)
    for trial in study.get_trials():  # nothing queued is left
        study.ask()
        study.tell(trial.number, state=TrialState.FAIL)
    study.add_trial(perfect)
    with make_executor(**options) as executor:
        assert "cannot be better" in executor.search(job, lambda: True, Told())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "slurm"}, "there is no executor 'slurm'. Choose one of: local, ray."),
        ({"jobs": 0}, "--jobs must be 1 or more, but is 0."),
        ({"address": "auto"}, "--address is that of a Ray cluster; give --executor ray too."),
    ],
)
def test_what_there_is_not_is_refused(options, message):
    with pytest.raises(StudyError) as caught:
        make_executor(**options)
    assert str(caught.value) == message
