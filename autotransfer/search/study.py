"""The study: ask, train, report, tell; the truth is in Optuna's storage."""

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from autotransfer.datasets import Dataset
from autotransfer.disk_cache import process_alive
from autotransfer.errors import StudyError
from autotransfer.search.space import Space

FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@dataclass(frozen=True)
class StudyHandle:
    """An open study and where it lies."""

    study: optuna.Study
    storage: str
    resumed: bool


def storage_url(storage: str | None, name: str, studies_dir: Path) -> str:
    """The storage that is used: the given one, or a journal file of the study's own."""
    return storage or f"journal:{(studies_dir / f'{name}.journal').resolve()}"


def open_storage(url: str) -> optuna.storages.BaseStorage | str:
    """`journal:PATH` as a journal file, anything else as Optuna's own URL."""
    if not url.startswith("journal:"):
        return url
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = Path(url.removeprefix("journal:"))
    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path)))


def study_name(dataset: Dataset, space: Space, seed: int) -> str:
    """The name a study gets where the user gives none: the same job, the same name."""
    return f"{dataset.name}-{space.name}-{dataset.fingerprint[:6]}{space.identity()[:4]}-{seed}"


def open_study(name: str, url: str, *, identity: dict[str, str], greater_is_better: bool, resume: bool) -> StudyHandle:
    """Create a study, or open it again.

    Args:
        name: name of the study.
        url: from `storage_url`.
        identity: what must be the same for trials to be comparable (dataset, space, sources, seed).
        greater_is_better: direction of the objective.
        resume: continue the study of this name.

    Raises:
        StudyError: it exists and `resume` is not given, or it is about something else.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = open_storage(url)
    existing = _names(storage)
    if name in existing and not resume:
        raise StudyError(
            f"study '{name}' exists already. Continue it with --resume, or give another name with --study."
        )
    if resume and name not in existing:
        raise StudyError(f"there is no study '{name}' to resume in {url}. Leave --resume out to start it.")
    study = optuna.create_study(
        study_name=name,
        storage=storage,
        direction="maximize" if greater_is_better else "minimize",
        load_if_exists=True,
    )
    if name in existing:
        _check_identity(study, identity)
        _retry_interrupted(study)
    else:
        for key, value in identity.items():
            study.set_user_attr(key, value)
    return StudyHandle(study, url, name in existing)


def study_sources(name: str, url: str) -> list[str]:
    """The sources that a study was created with; none where there is no such study."""
    storage = open_storage(url)
    if name not in _names(storage):
        return []
    study = optuna.load_study(study_name=name, storage=storage)
    return str(study.user_attrs.get("sources", "")).split(", ")


def ask(study: optuna.Study) -> optuna.Trial:
    """Ask for a trial and note who runs it."""
    trial = study.ask()
    trial.set_user_attr("worker", _worker())
    return trial


def trained_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Finished trials that cost training: complete, pruned on their curve, or failed."""
    trials = study.get_trials(deepcopy=False, states=FINISHED)
    return [trial for trial in trials if trial.user_attrs.get("trained", False)]


def complete_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Trials with a score."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _names(storage: optuna.storages.BaseStorage | str) -> set[str]:
    return set(optuna.get_all_study_names(storage))


def _check_identity(study: optuna.Study, identity: dict[str, str]) -> None:
    changed = [
        f"{key} was {study.user_attrs.get(key)} and is now {value}"
        for key, value in identity.items()
        if study.user_attrs.get(key) != value
    ]
    if changed:
        raise StudyError(
            f"study '{study.study_name}' cannot be resumed: {'; '.join(changed)}. "
            "Trials would not be comparable: start a new study (without --resume, or with another --study)."
        )


def _retry_interrupted(study: optuna.Study) -> None:
    """Close trials whose process is gone, and queue each once more."""
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if _alive(str(trial.user_attrs.get("worker", ""))):
            continue
        frozen: Any = trial
        try:
            study._storage.set_trial_user_attr(frozen._trial_id, "reason", "its process was killed")
            study.tell(trial.number, state=TrialState.FAIL)
        except (RuntimeError, ValueError):  # another process closed it first, and retries it
            continue
        # What it was queued with counts where it was killed before it had asked for all of its parameters.
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        if "retry_of" not in trial.user_attrs and params:
            kept = {k: v for k, v in trial.user_attrs.items() if k == "role"}
            origin = trial.user_attrs.get("origin", trial.number)
            study.enqueue_trial(params, user_attrs={**kept, "retry_of": trial.number, "origin": origin})


def _worker() -> str:
    return f"{socket.gethostname()}:{os.getpid()}"


def _alive(worker: str) -> bool:
    host, _, process = worker.rpartition(":")
    if host != socket.gethostname():
        return bool(host)
    return process.isdigit() and int(process) != os.getpid() and process_alive(int(process))


class Budget:
    """Wall-clock seconds and trials; either may be None.

    The clock is given, so that tests need not wait.
    """

    def __init__(self, seconds: float | None, trials: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self.trials, self._clock = seconds, trials, clock
        self._started = clock()

    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    def left(self) -> float | None:
        """Seconds left, None without a limit."""
        return None if self._seconds is None else max(0.0, self._seconds - self.elapsed())

    def fits(self, seconds: float) -> bool:
        """True where work of that length ends before the limit."""
        left = self.left()
        return left is None or seconds <= left
