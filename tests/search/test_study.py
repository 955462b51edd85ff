"""What a study promises: its storage holds the truth, and going on is the same as never having stopped."""

import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.trial import TrialState
from small_study import new_study, small_space

from autotransfer.datasets import load_dataset
from autotransfer.errors import StudyError
from autotransfer.search.space import Space
from autotransfer.search.strategy import Strategy
from autotransfer.search.study import (
    ask,
    complete_trials,
    open_storage,
    open_study,
    storage_url,
    study_name,
    study_sources,
    trained_trials,
)
from autotransfer.search.workers import Watch, retry_lost_trials, worker_name

HERE = worker_name().rpartition(":")[0]
IDENTITY = {"dataset": "d1", "space": "s1", "seed": "0", "sources": "a, b"}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return storage_url(None, "job", tmp_path / "studies")


def opened(url: str, *, resume: bool = False, **changes: Any) -> Any:
    """The handle of the study `job`."""
    arguments: dict[str, Any] = {"identity": IDENTITY, "greater_is_better": True}
    return open_study("job", url, resume=resume, **{**arguments, **changes})


def suggest(trial: optuna.Trial) -> dict[str, Any]:
    trial.suggest_float("x", 0, 1)
    trial.suggest_categorical("source", ["a", "b"])
    return trial.params


def next_trial(study: optuna.Study, seed: int = 0, space: Space | None = None) -> optuna.Trial:
    """Ask as a study does."""
    workshop: Any = SimpleNamespace(space=space or small_space(), seed=seed)
    nothing: Any = None
    Strategy("tpe", workshop).prepare(study, nothing, None)
    return ask(study)


def run(study: optuna.Study, count: int) -> list[dict[str, Any]]:
    """Run trials whose score is x; returns what was suggested."""
    suggested = []
    for _ in range(count):
        trial = next_trial(study)
        suggested.append(suggest(trial))
        study.tell(trial, trial.params["x"])
    return suggested


@pytest.fixture
def living_worker() -> Any:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield f"{HERE}:{process.pid}"
        process.kill()


@pytest.fixture
def dead_worker() -> str:
    with subprocess.Popen(["true"]) as process:
        return f"{HERE}:{process.pid}"


# Opening


def test_a_new_study_is_made_with_its_identity_and_direction(url):
    handle = opened(url)
    assert (handle.resumed, handle.storage) == (False, url)
    assert handle.study.user_attrs == IDENTITY
    assert handle.study.direction == optuna.study.StudyDirection.MAXIMIZE
    assert Path(url.removeprefix("journal:")).is_file()


def test_a_metric_where_less_is_better_is_minimised(url):
    assert opened(url, greater_is_better=False).study.direction == optuna.study.StudyDirection.MINIMIZE


def test_an_existing_study_is_not_continued_unasked(url):
    run(opened(url).study, 2)
    with pytest.raises(StudyError, match=r"'job' exists already.*--resume.*--study"):
        opened(url)
    assert len(opened(url, resume=True).study.get_trials()) == 2


def test_a_missing_study_cannot_be_resumed_and_is_not_made(url):
    with pytest.raises(StudyError, match=r"no study 'job' to resume in journal:.*Leave --resume out"):
        opened(url, resume=True)
    assert not opened(url).resumed


def test_resuming_keeps_every_finished_trial(url):
    study = opened(url).study
    run(study, 3)
    study.tell(next_trial(study), state=TrialState.PRUNED)
    handle = opened(url, resume=True)
    assert handle.resumed
    assert handle.study.get_trials() == study.get_trials()


@pytest.mark.parametrize("key", IDENTITY)
def test_a_study_about_something_else_is_refused_with_what_changed(url, key):
    opened(url)
    with pytest.raises(StudyError) as caught:
        opened(url, resume=True, identity={**IDENTITY, key: "new"})
    assert f"{key} was {IDENTITY[key]} and is now new" in str(caught.value)
    assert not [other for other in set(IDENTITY) - {key} if f"{other} was" in str(caught.value)]


def test_a_study_says_which_sources_it_has(url):
    assert study_sources("job", url) == []
    opened(url)
    assert study_sources("job", url) == ["a", "b"]


def test_any_optuna_storage_can_hold_the_study(tmp_path):
    url = f"sqlite:///{tmp_path / 'optuna.db'}"
    suggested = run(opened(url).study, 1)
    assert [trial.params for trial in opened(url, resume=True).study.get_trials()] == suggested


def test_a_median_curve_is_pruned_as_the_space_says(url):
    study, space = opened(url).study, small_space(pruning={"startup_trials": 2, "warmup_epochs": 1})
    for _ in range(2):
        trial = next_trial(study, space=space)
        for epoch in (1, 2, 3):
            trial.report(0.9, epoch)
        study.tell(trial, 0.9)
    trial = next_trial(study, space=space)
    verdicts = []
    for epoch in (1, 2):
        trial.report(0.1, epoch)
        verdicts.append(trial.should_prune())
    assert verdicts == [False, True]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("oracle://nobody@nowhere/db", "needs a driver that is not installed"),
        ("no-such-thing://x", "the storage no-such-thing://x cannot be opened"),
        ("sqlite:////no/such/folder/optuna.db", "unable to open database file"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_told_without_a_traceback(url, message):
    with pytest.raises(StudyError, match=message):
        open_storage(url)


# Interrupted trials


def interrupted(url: str, worker: str, **queued: Any) -> optuna.Trial:
    """A running trial of a process, which has asked for `x` alone."""
    study = opened(url).study
    if queued:
        study.enqueue_trial(queued, user_attrs={"role": "from scratch"})
    trial = next_trial(study)
    trial.set_user_attr("worker", worker)
    trial.suggest_float("x", 0, 1)
    return trial


def test_a_trial_of_a_killed_process_is_closed_and_retried_with_the_same_parameters(url, dead_worker):
    killed = interrupted(url, dead_worker)
    study = opened(url, resume=True).study
    closed, retry = study.get_trials()
    assert (closed.state, closed.user_attrs["reason"]) == (TrialState.FAIL, "its process was killed")
    assert (retry.state, retry.user_attrs["retry_of"]) == (TrialState.WAITING, killed.number)
    assert suggest(next_trial(study))["x"] == killed.params["x"]


def test_a_retry_keeps_role_and_queued_parameters_that_were_not_reached(url, dead_worker):
    interrupted(url, dead_worker, x=0.25, source="b")
    study = opened(url, resume=True).study
    retry = next_trial(study)
    assert retry.user_attrs["role"] == "from scratch"
    assert suggest(retry) == {"x": 0.25, "source": "b"}


def test_a_trial_killed_before_it_chose_anything_is_closed_and_nothing_is_queued(url, dead_worker):
    study = opened(url).study
    next_trial(study).set_user_attr("worker", dead_worker)
    assert [trial.state for trial in opened(url, resume=True).study.get_trials()] == [TrialState.FAIL]


def test_a_trial_is_retried_exactly_once(url, dead_worker):
    interrupted(url, dead_worker)
    opened(url, resume=True)
    study = opened(url, resume=True).study
    retry = next_trial(study)
    suggest(retry)
    retry.set_user_attr("worker", dead_worker)
    trials = opened(url, resume=True).study.get_trials()
    assert [trial.state for trial in trials] == [TrialState.FAIL, TrialState.FAIL]


def test_two_processes_that_resume_at_once_retry_it_once(url, dead_worker, monkeypatch):
    interrupted(url, dead_worker)
    slow = optuna.load_study(study_name="job", storage=open_storage(url))
    seen = slow.get_trials(states=(TrialState.RUNNING,))
    study = opened(url, resume=True).study  # closes the trial after the slow process has seen it run
    monkeypatch.setattr(slow, "get_trials", lambda **options: seen)
    retry_lost_trials(slow, Watch())
    assert [trial.state for trial in study.get_trials()] == [TrialState.FAIL, TrialState.WAITING]


def test_a_trial_whose_process_lives_goes_on(url, living_worker):
    interrupted(url, living_worker)
    (trial,) = opened(url, resume=True).study.get_trials()
    assert trial.state == TrialState.RUNNING


def test_a_trial_of_another_machine_is_left_alone(url):
    interrupted(url, "another-machine:1")
    (trial,) = opened(url, resume=True).study.get_trials()
    assert trial.state == TrialState.RUNNING


def test_trials_that_this_process_left_behind_are_retried(url):
    suggest(next_trial(opened(url).study))
    states = [trial.state for trial in opened(url, resume=True).study.get_trials()]
    assert states == [TrialState.FAIL, TrialState.WAITING]


# Asking


def test_what_is_asked_next_depends_on_the_storage_alone(url, tmp_path):
    study = opened(url).study
    run(study, 8)
    copy = storage_url(None, "copy", tmp_path)
    shutil.copy(url.removeprefix("journal:"), copy.removeprefix("journal:"))
    assert run(opened(copy, resume=True).study, 3) == run(study, 3)


def test_the_first_trials_are_all_different(url):
    assert len({params["x"] for params in run(opened(url).study, 6)}) == 6


def test_another_seed_asks_for_other_trials(url, tmp_path):
    first, second = opened(url).study, opened(storage_url(None, "second", tmp_path)).study
    assert suggest(next_trial(first)) != suggest(next_trial(second, 1))


@settings(deadline=None)
@given(seed=st.integers(0, 2**64))
def test_any_seed_is_taken(seed):
    suggest(next_trial(new_study(), seed))


def test_trials_are_told_by_what_they_cost():
    study = new_study()
    states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
    for state in states:
        for trained in (True, False):
            trial = next_trial(study)
            trial.set_user_attr("trained", trained)
            study.tell(trial, 0.5 if state == TrialState.COMPLETE else None, state=state)
    next_trial(study).set_user_attr("trained", True)  # it still runs
    assert [(trial.state, trial.number % 2) for trial in trained_trials(study)] == [(state, 0) for state in states]
    assert [trial.number for trial in complete_trials(study)] == [0, 1]


# Names


def test_the_same_job_has_the_same_name(digits, digits_folder, tmp_path):
    moved = shutil.copytree(digits_folder, tmp_path / "digits")
    space = small_space(name="small")
    name = study_name(digits, space, 3)
    assert name == study_name(load_dataset(moved, seed=0), small_space(name="small", budget="3m"), 3)
    assert name.startswith("digits-small-")
    assert name.endswith("-3")


def test_another_job_has_another_name(digits):
    jobs = [
        (digits, small_space(), 0),
        (digits, small_space(), 1),
        (digits, small_space(metric="auroc"), 0),
        (digits.subset(range(100)), small_space(), 0),
    ]
    assert len({study_name(*job) for job in jobs}) == len(jobs)


def test_the_users_storage_wins_over_the_studys_own_journal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert storage_url("sqlite:///here.db", "job", Path("studies")) == "sqlite:///here.db"
    assert storage_url(None, "job", Path("studies")) == f"journal:{tmp_path / 'studies' / 'job.journal'}"
