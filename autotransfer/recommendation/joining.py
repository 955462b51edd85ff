"""Several machines on one study: one recommends, the others join it and run trials.

What a study is about is written beside it in its storage, so that a machine that joins needs to be told only
where the study lies, and where its own copy of the images is.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Any

import optuna

from autotransfer.datasets import load_dataset
from autotransfer.device import choose_device
from autotransfer.errors import StudyError
from autotransfer.recommendation.interrupt import interruptible
from autotransfer.search.candidates import build_pool
from autotransfer.search.events import Event, Listener, PhaseStarted, StudyStarted, TrialFinished
from autotransfer.search.executors import SearchJob, make_executor
from autotransfer.search.space import Space
from autotransfer.search.study import open_storage, storage_url
from autotransfer.search.workshop import Workshop
from autotransfer.settings import settings
from autotransfer.sources import find_sources, load_plugins
from autotransfer.task import Task
from autotransfer.tracking import MlflowTracker
from autotransfer.transfer.evaluation import get_metric

_INVITATION = "invitation"
_POLL_SECONDS = 2.0


def checkpoints_of(name: str, url: str) -> Path:
    """Where the trials of a study leave weights on this machine."""
    return settings().home / "checkpoints" / f"{name}-{sha256(url.encode()).hexdigest()[:8]}"


def withdraw_invitation(study: optuna.Study) -> None:
    """Whoever joins a study that is resumed waits for its search."""
    study.set_user_attr(_INVITATION, None)


@contextmanager
def invitation(study: optuna.Study, job: SearchJob, label_column: str | Sequence[str], task: Task) -> Iterator[None]:
    """While the search goes on, its storage says what it is about, for those that join."""
    workshop = job.workshop
    content: dict[str, Any] = {
        "space": workshop.space.model_dump(mode="json"),
        "sources": sorted(source.name for source in workshop.pool.sources()),
        "label_column": label_column if isinstance(label_column, str) else list(label_column),
        "task": task,
        "seed": workshop.seed,
        "sampler": job.sampler,
        "plugins": list(job.plugins),
        "max_parameters": workshop.max_parameters,
        "max_latency_ms": workshop.max_latency_ms,
        "latencies_ms": [[*key, value] for key, value in workshop.latencies_ms.items()],
        "trials": job.trials,
        "ends": job.ends,
        "for_search": job.for_search,
        "gpu_seconds": job.gpu_seconds,
        "gpu_spent": job.gpu_spent,
    }
    study.set_user_attr(_INVITATION, json.dumps({**content, "over": False}))
    try:
        yield
    finally:
        study.set_user_attr(_INVITATION, json.dumps({**content, "over": True}))


def join(
    data: str | PathLike[str],
    *,
    study: str,
    storage: str | None = None,
    jobs: int | None = None,
    executor: str = "local",
    address: str | None = None,
    device: str = "auto",
    tracking_uri: str | None = None,
    listeners: Sequence[Listener] = (),
) -> int:
    """Run trials of a study that another process or machine recommends from, until its search ends.

    Args:
        data: this machine's copy of the images: the same ones, wherever they lie.
        study: its name.
        storage: the study's Optuna storage: a database, or a journal file that both see; the journal file that
            `recommend` makes on this machine where None.
        jobs: trials that run at once here.
        executor: `local` or `ray`.
        address: of the Ray cluster.
        device: `auto`, `cpu` or `cuda`.
        tracking_uri: the study's MLflow store, where this machine reaches it; a local one where None.
        listeners: told of every event of the trials that run here.

    Returns:
        How many trials ended here.

    Raises:
        StudyError: there is no such study, it is over, or it is about other images.
    """
    url = storage_url(storage or settings().storage, study, settings().studies_dir)
    handle = _load(url, study)
    tracker = MlflowTracker(tracking_uri or settings().default_tracking_uri(), settings().experiment)
    ended: list[int] = []

    def tell(event: Event) -> None:
        if isinstance(event, TrialFinished):
            ended.append(event.number)
        for listener in (tracker, *listeners):
            listener(event)

    with make_executor(executor, jobs=jobs, address=address) as workers, interruptible(tell) as go_on:
        invited = _wait_for_invitation(handle, go_on)
        load_plugins(invited["plugins"])
        where, space = choose_device(device), Space.model_validate(invited["space"])
        label_column = invited["label_column"]
        dataset = load_dataset(data, seed=invited["seed"], label_column=label_column, task=invited["task"])
        if dataset.fingerprint != handle.user_attrs.get("dataset"):
            raise StudyError(f"{data} does not hold the images of study '{study}'; give this machine's copy of them.")
        metric = get_metric(space.metric, dataset.task)
        tell(StudyStarted(study, True, metric.name, joined=True))
        tell(PhaseStarted("data", detail=f"{len(dataset)} images, {len(dataset.classes)} classes"))
        # The race, if there was one, was run where the study began.
        sources, probing = find_sources(invited["sources"]), space.probing.model_copy(update={"race_above": 10**6})
        pool = build_pool(
            sources,
            dataset,
            space.model_copy(update={"probing": probing}),
            metric,
            seed=invited["seed"],
            device=where,
            cache_dir=settings().cache_dir,
            listener=tell,
            go_on=go_on,
        )
        if missing := set(invited["sources"]) - {source.name for source in pool.sources()}:
            reasons = "; ".join(f"{name}: {pool.skipped.get(name, 'not probed')}" for name in sorted(missing))
            raise StudyError(f"this machine cannot use all sources of study '{study}': {reasons}")
        workshop = Workshop(
            dataset=dataset,
            space=space,
            pool=pool,
            metric=metric,
            device=where,
            cache_dir=settings().cache_dir,
            checkpoints=checkpoints_of(study, url),
            seed=invited["seed"],
            max_parameters=invited["max_parameters"],
            max_latency_ms=invited["max_latency_ms"],
            latencies_ms={(name, level): ms for name, level, ms in invited["latencies_ms"]},
            go_on=go_on,
        )
        job = SearchJob(
            storage=url,
            study=study,
            workshop=workshop,
            sampler=invited["sampler"],
            plugins=tuple(invited["plugins"]),
            trials=invited["trials"],
            ends=invited["ends"],
            for_search=invited["for_search"],
            gpu_seconds=invited["gpu_seconds"],
            gpu_spent=invited["gpu_spent"],
            jobs=workers.jobs,
        )
        tell(PhaseStarted("search", detail="as a guest"))
        workers.search(job, _until_over(handle, go_on), tell)
    return len(ended)


def _load(storage: str, name: str) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    missing = storage.startswith("journal:") and not Path(storage.removeprefix("journal:")).exists()
    try:
        if missing:
            raise KeyError(name)
        return optuna.load_study(study_name=name, storage=open_storage(storage))
    except KeyError as error:
        raise StudyError(f"there is no study '{name}' in {storage}. Start it with `autotransfer recommend`.") from error


def _invited(study: optuna.Study) -> dict[str, Any] | None:
    found = study.user_attrs.get(_INVITATION)
    content: dict[str, Any] | None = json.loads(found) if found is not None else None
    return content


def _wait_for_invitation(study: optuna.Study, go_on: Callable[[], bool]) -> dict[str, Any]:
    """What the study is about: it says so once its own machine has probed the sources."""
    while (invited := _invited(study)) is None:
        if not go_on():
            raise StudyError(f"stopped before the search of study '{study.study_name}' began.")
        time.sleep(_POLL_SECONDS)
    if invited["over"]:
        raise StudyError(f"the search of study '{study.study_name}' is over; there is nothing to join.")
    return invited


def _until_over(study: optuna.Study, go_on: Callable[[], bool]) -> Callable[[], bool]:
    """True until the search has ended where it began; looks at the storage now and then."""
    looked, over = time.monotonic(), False

    def still() -> bool:
        nonlocal looked, over
        if not over and time.monotonic() - looked > _POLL_SECONDS:
            looked, over = time.monotonic(), (_invited(study) or {"over": True})["over"]
        return go_on() and not over

    return still
