"""The study: ask, train, report, tell; the truth is in Optuna's storage."""

import re
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from autotransfer.datasets import Dataset
from autotransfer.errors import StudyError
from autotransfer.search.journal import open_journal
from autotransfer.search.space import Space
from autotransfer.search.workers import KILLED, STOPPED, Watch, retry_lost_trials, worker_name

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


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """`journal:PATH` as a journal file, anything else as Optuna's own URL.

    Raises:
        StudyError: what it needs is not installed, or it cannot be reached.
    """
    if url.startswith("journal:"):
        return open_journal(Path(url.removeprefix("journal:")))
    from sqlalchemy.exc import SQLAlchemyError

    shown = re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", url)
    try:
        return optuna.storages.get_storage(url)
    except ImportError as error:
        raise StudyError(
            f"the storage {shown} needs a driver that is not installed: for PostgreSQL, "
            "pip install 'autotransfer[postgres]' and write postgresql+psycopg://USER@HOST/DATABASE."
        ) from error
    except (SQLAlchemyError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].replace(url, shown)
        raise StudyError(
            f"the storage {shown} cannot be opened: {reason} Check its address and that it runs."
        ) from error


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
    if name in existing and not study.user_attrs:  # killed right after it was made
        _write_identity(study, identity)
    if name in existing:
        _check_identity(study, identity)
        retry_lost_trials(study, Watch(), stopped=True)
    else:
        _write_identity(study, identity)
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
    trial.set_user_attr("worker", worker_name())
    return trial


def trained_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Finished trials that cost training: complete, pruned on their curve, or failed, but not interrupted."""
    trials = study.get_trials(deepcopy=False, states=FINISHED)
    return [trial for trial in trials if trial.user_attrs.get("trained", False) and not _was_interrupted(trial)]


def complete_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Trials with a score."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _names(storage: optuna.storages.BaseStorage) -> set[str]:
    return set(optuna.get_all_study_names(storage))


def _was_interrupted(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL and trial.user_attrs.get("reason") in (KILLED, STOPPED)


def _write_identity(study: optuna.Study, identity: dict[str, str]) -> None:
    for key, value in identity.items():
        study.set_user_attr(key, value)


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
