"""The main job: from labelled data to a recommendation."""

import time
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import optuna

from autotransfer.datasets import load_dataset
from autotransfer.device import choose_device
from autotransfer.errors import StudyError
from autotransfer.quantities import parse_count, parse_duration
from autotransfer.recommendation.answer import answer
from autotransfer.recommendation.interrupt import interruptible
from autotransfer.recommendation.joining import checkpoints_of, invitation, withdraw_invitation
from autotransfer.recommendation.latency import level_latencies_ms
from autotransfer.recommendation.recommendation import Recommendation
from autotransfer.recommendation.record import counts, free_name, params, trials_table, versions
from autotransfer.search.budget import Budget
from autotransfer.search.candidates import build_pool, same_pool
from autotransfer.search.events import Event, Listener, Notice, PhaseStarted, StudyFailed, StudyFinished, StudyStarted
from autotransfer.search.executors import SearchJob, make_executor, trial_seconds
from autotransfer.search.first_trials import queue_first_trials
from autotransfer.search.history import find_past, keep, remember, told
from autotransfer.search.prior import shipped_prior
from autotransfer.search.shortlist import shortlist
from autotransfer.search.space import Space, load_space
from autotransfer.search.strategy import SAMPLER_NAMES, Strategy
from autotransfer.search.study import open_study, storage_url, study_sources, trained_trials
from autotransfer.search.workshop import Workshop, within_limits
from autotransfer.settings import settings
from autotransfer.sources import find_sources, load_plugins
from autotransfer.task import Task
from autotransfer.tracking import MlflowTracker
from autotransfer.transfer.evaluation import get_metric

_DEFAULT_BUDGET = "10m"
_NOTHING_TRAINED = "no configuration was trained{}: the answer is the best linear probe."
_LONGER_BUDGET = " A longer --budget fine-tunes too; sources that were probed are not probed again."


def recommend(
    data: str | PathLike[str],
    *,
    space: str = "default",
    budget: str | float | None = None,
    trials: int | None = None,
    metric: str | None = None,
    max_latency: float | None = None,
    max_params: str | int | None = None,
    sources: Sequence[str] | None = None,
    plugins: Sequence[str] = (),
    out: str | PathLike[str] | None = None,
    tracking_uri: str | None = None,
    storage: str | None = None,
    study: str | None = None,
    resume: bool = False,
    label_column: str | Sequence[str] = "label",
    task: Task | None = None,
    sampler: str | None = None,
    jobs: int | None = None,
    executor: str = "local",
    address: str | None = None,
    gpu_budget: str | float | None = None,
    history: bool = True,
    seed: int = 0,
    device: str = "auto",
    listeners: Sequence[Listener] = (),
) -> Recommendation:
    """Find the pretrained model to transfer to a target, how much of it, and train it.

    Args:
        data: a folder of class folders, or a CSV manifest.
        space: name or file of the search space.
        budget: wall-clock time (`"10m"`, `"90s"`, seconds); without budget and trials, the space's budget.
        trials: number of trials that are trained; those pruned by proxy before training are not counted.
        metric: the objective; the space's where None (`auto`: accuracy, average_precision or r2, by the task).
        max_latency: hard limit in milliseconds an image, measured on this machine's CPU.
        max_params: hard limit of parameters (`"20M"`).
        sources: patterns that replace the space's sources.
        plugins: modules that register architectures with timm, beside the space's.
        out: output folder; `./<study>` where None.
        tracking_uri: MLflow store; a local SQLite file where None.
        storage: Optuna storage; a journal file of the study's own where None.
        study: its name; made from data, space and seed where None.
        resume: continue that study.
        label_column: the manifest's column of labels, or its columns of labels or numbers.
        task: `classification`, `multilabel` or `regression`; recognised from the data where None.
        sampler: `proxy` (steered by the proxies), or Optuna's `tpe`, `gp` or `random`; the space's where None.
        jobs: trials that run at once; 1 where None (with Ray: one for each GPU, or for each four CPUs).
        executor: `local` (processes of this machine) or `ray`.
        address: of the Ray cluster; one on this machine is started where None.
        gpu_budget: limit on the seconds that GPUs work, all trials and the probing together.
        history: start from what worked in this user's past studies of similar targets.
        seed: of splits, sampler and training.
        device: `auto`, `cpu` or `cuda`.
        listeners: told of every event.

    Returns:
        The recommendation, saved to its folder.

    Raises:
        AutotransferError: something that the user can act on; nothing is left half-written.
    """
    if out is not None and Path(out).exists() and not Path(out).is_dir():
        raise StudyError(f"--out {out} is a file; give a folder for the model and the evidence.")
    if sampler is not None and sampler not in SAMPLER_NAMES:
        raise StudyError(f"there is no sampler '{sampler}'. Choose one of: {', '.join(SAMPLER_NAMES)}.")
    limit = parse_count(max_params) if max_params is not None else None
    chosen = load_space(space, sources=list(sources) if sources else None, metric=metric)
    seconds = _budget_seconds(budget, trials, gpu_budget, chosen)
    load_plugins([*chosen.plugins, *plugins])
    where = choose_device(device)
    found = find_sources(chosen.sources)
    gpu_seconds = parse_duration(gpu_budget) if gpu_budget is not None else None
    if gpu_seconds is not None and where.type != "cuda":
        raise StudyError("--gpu-budget counts seconds of GPUs, but none is used here; give --budget instead.")
    limit_of_trials = trials if trials is not None else chosen.trials if budget is None and gpu_budget is None else None
    clock = Budget(seconds, limit_of_trials, gpu_seconds=gpu_seconds)
    dataset = load_dataset(data, seed=seed, label_column=label_column, task=task)
    objective = get_metric(chosen.metric, dataset.task)
    chosen.training.check(dataset.task)

    tracker = MlflowTracker(tracking_uri or settings().default_tracking_uri(), settings().experiment)
    crew = make_executor(executor, jobs=jobs, address=address)
    name = free_name(study, dataset, chosen, seed, storage, resume)
    url = storage_url(storage or settings().storage, name, settings().studies_dir)
    listed = shortlist(
        found,
        dataset,
        chosen,
        budget_seconds=seconds or (parse_duration(chosen.budget) if chosen.budget is not None else None),
        device=where,
        max_parameters=limit,
        kept=study_sources(name, url) if resume else (),
    )
    handle = open_study(
        name,
        url,
        identity={
            "dataset": dataset.fingerprint,
            "space": chosen.identity(),
            "seed": str(seed),
            "sources": ", ".join(source.name for source in listed.sources),
        },
        greater_is_better=objective.greater_is_better,
        resume=resume,
    )
    withdraw_invitation(handle.study)
    told = [tracker, *listeners]

    def tell(event: Event) -> None:
        for listener in told:
            listener(event)

    told_params = params(dataset, chosen, seconds, trials, seed, where, data)
    tags = {"dataset.fingerprint": dataset.fingerprint, "space": chosen.name, **versions()}
    tell(StudyStarted(name, handle.resumed, objective.name, told_params, tags))
    started = time.perf_counter()
    try:
        with crew as workers, interruptible(tell) as go_on:
            outputs = {"classification": "classes", "multilabel": "labels", "regression": "numbers"}[dataset.task]
            tell(PhaseStarted("data", detail=f"{len(dataset)} images, {len(dataset.classes)} {outputs}"))
            for notice in listed.notices:
                tell(Notice(notice))
            pool = build_pool(
                listed.sources,
                dataset,
                chosen,
                objective,
                seed=seed,
                device=where,
                cache_dir=settings().cache_dir,
                listener=tell,
                go_on=go_on,
            )
            pool = same_pool(handle.study, pool, go_on)
            probing_seconds = time.perf_counter() - started
            workshop = Workshop(
                dataset=dataset,
                space=chosen,
                pool=pool,
                metric=objective,
                device=where,
                cache_dir=settings().cache_dir,
                checkpoints=checkpoints_of(name, url),
                seed=seed,
                max_parameters=limit,
                max_latency_ms=max_latency,
                latencies_ms=level_latencies_ms(pool, len(dataset.classes)) if max_latency else {},
                go_on=go_on,
            )
            within_limits(workshop)  # or it is told now, before any training
            strategy = Strategy(sampler or chosen.sampler, workshop)
            if strategy.by_proxy and not handle.study.get_trials(deepcopy=False):
                start_from_past(handle.study, strategy, url, tell, wanted=history)
            queue_first_trials(handle.study, strategy, clock.left())
            tell(PhaseStarted("search", total=clock.trials))
            clock.begin_search(lambda: probing_seconds + trial_seconds(handle.study), workers.jobs)
            job = SearchJob(
                storage=url,
                study=name,
                workshop=workshop,
                sampler=strategy.name,
                plugins=(*chosen.plugins, *plugins),
                trials=clock.trials,
                ends=None if clock.wall_left is None else time.time() + clock.wall_left,
                for_search=clock.for_search,
                gpu_seconds=gpu_seconds,
                gpu_spent=probing_seconds,
                jobs=workers.jobs,
            )
            with invitation(handle.study, job, label_column, dataset.task):
                if reason := workers.search(job, go_on, tell):
                    tell(Notice(f"Stopping early: {reason}."))
            if not trained_trials(handle.study):
                spent = go_on() and not clock.fits(1.0)
                cause = ", the budget was spent before" if spent else "" if go_on() else ", the search was stopped"
                tell(Notice(_NOTHING_TRAINED.format(cause) + (_LONGER_BUDGET if spent else "")))
            search_seconds = time.perf_counter() - started - probing_seconds
            tell(PhaseStarted("final"))
            finished, evidence = answer(handle.study, workshop, clock, plugins=(*chosen.plugins, *plugins))
    except BaseException as error:
        tell(StudyFailed(name, f"{type(error).__name__}: {error}"))
        raise
    cost = {
        "total_seconds": time.perf_counter() - started,
        "probing_seconds": probing_seconds,
        "search_seconds": search_seconds,
        "final_seconds": time.perf_counter() - started - probing_seconds - search_seconds,
        **counts(handle.study),
    }
    folder = Path(out) if out is not None else Path(name)
    recommendation = Recommendation(
        **evidence,
        cost=cost,
        sources=pool.table(),
        trials=trials_table(handle.study),
        study=name,
        storage=handle.storage,
        tracking_uri=tracking_uri or settings().default_tracking_uri(),
        folder=folder.resolve(),
        mlflow_command=tracker.ui_command,
        mlflow_run_url=tracker.ui_url,
    )
    recommendation.save(folder)
    metrics = {f"test.{objective.name}": recommendation.test.value, **{k: float(v) for k, v in cost.items()}}
    metrics |= {f"baseline.{key}": score.value for key, score in recommendation.baselines.items()}
    example = str(dataset.samples["image"].iloc[int(dataset.rows("test")[0])])
    tell(StudyFinished(name, str(folder.resolve()), metrics, {"source": finished.source}, example))
    return recommendation


def start_from_past(study: optuna.Study, strategy: Strategy, url: str, tell: Listener, *, wanted: bool) -> None:
    """Note what this study knows for those after it, and begin with what those before it know."""
    landscape = strategy.landscape
    remember(study, landscape)
    if not wanted:
        return
    pasts = find_past(study, landscape, shipped_prior(), storage=url, studies_dir=settings().studies_dir)
    keep(study, pasts, landscape)
    if sentence := told(study):
        tell(Notice(sentence))


def _budget_seconds(
    budget: str | float | None, trials: int | None, gpu_budget: str | float | None, space: Space
) -> float | None:
    if budget is not None:
        return parse_duration(budget)
    if trials is not None or gpu_budget is not None:
        return None
    if space.budget is not None:
        return parse_duration(space.budget)
    return None if space.trials is not None else parse_duration(_DEFAULT_BUDGET)
