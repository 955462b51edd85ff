"""The main job: from labelled data to a recommendation."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import torch

import autotransfer
from autotransfer.datasets import Dataset, load_dataset
from autotransfer.device import choose_device
from autotransfer.errors import StudyError
from autotransfer.quantities import parse_count, parse_duration
from autotransfer.recommendation.final import (
    Finalist,
    finish_linear_probe,
    finish_trial,
    majority_probabilities,
    measure_latency_ms,
    refit_seconds,
    score_on_test,
)
from autotransfer.recommendation.recommendation import Recommendation
from autotransfer.recommendation.why import negative_transfer, reasons
from autotransfer.search.candidates import build_pool
from autotransfer.search.events import Event, Listener, Notice, PhaseStarted, StudyFailed, StudyFinished, StudyStarted
from autotransfer.search.space import Space, load_space
from autotransfer.search.study import (
    Budget,
    open_storage,
    open_study,
    storage_url,
    study_name,
    trained_trials,
)
from autotransfer.search.trials import Workshop, best_trial, queue_first_trials, run_trials
from autotransfer.settings import settings
from autotransfer.sources import Source, find_sources, load_plugins
from autotransfer.tracking import MlflowTracker
from autotransfer.transfer.evaluation import get_metric
from autotransfer.transfer.model import TrainedModel
from autotransfer.transfer.surgery import build_network

_DEFAULT_BUDGET = "10m"


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
        metric: the objective; the space's where None.
        max_latency: hard limit in milliseconds an image, measured on this machine's CPU.
        max_params: hard limit of parameters (`"20M"`).
        sources: patterns that replace the space's sources.
        plugins: modules that register architectures with timm, beside the space's.
        out: output folder; `./<study>` where None.
        tracking_uri: MLflow store; a local SQLite file where None.
        storage: Optuna storage; a journal file of the study's own where None.
        study: its name; made from data, space and seed where None.
        resume: continue that study.
        seed: of splits, sampler and training.
        device: `auto`, `cpu` or `cuda`.
        listeners: told of every event.

    Returns:
        The recommendation, saved to its folder.

    Raises:
        AutotransferError: something that the user can act on; nothing is left half-written.
    """
    limit = parse_count(max_params) if max_params is not None else None
    chosen = load_space(space, sources=list(sources) if sources else None, metric=metric)
    seconds = _budget_seconds(budget, trials, chosen)
    objective = get_metric(chosen.metric)
    load_plugins([*chosen.plugins, *plugins])
    where = choose_device(device)
    found = find_sources(chosen.sources)
    clock = Budget(seconds, trials if trials is not None else chosen.trials if budget is None else None)
    dataset = load_dataset(data, seed=seed)

    name = _name(study, dataset, chosen, seed, storage, resume)
    url = storage_url(storage or settings().storage, name, settings().studies_dir)
    handle = open_study(
        name,
        url,
        identity={
            "dataset": dataset.fingerprint,
            "space": chosen.identity(),
            "seed": str(seed),
            "sources": ", ".join(source.name for source in found),
        },
        greater_is_better=objective.greater_is_better,
        resume=resume,
        space=chosen,
    )
    tracker = MlflowTracker(tracking_uri or settings().default_tracking_uri(), settings().experiment)
    told = [tracker, *listeners]

    def tell(event: Event) -> None:
        for listener in told:
            listener(event)

    params = _params(dataset, chosen, seconds, trials, seed, where, data)
    tags = {"dataset.fingerprint": dataset.fingerprint, "space": chosen.name, **_versions()}
    tell(StudyStarted(name, handle.resumed, objective.name, params, tags))
    started = time.perf_counter()
    try:
        with _interruptible(tell) as go_on:
            tell(PhaseStarted("data", detail=f"{len(dataset)} images, {len(dataset.classes)} classes"))
            pool = build_pool(
                found,
                dataset,
                chosen,
                objective,
                seed=seed,
                device=where,
                cache_dir=settings().cache_dir,
                listener=tell,
                go_on=go_on,
            )
            probing_seconds = time.perf_counter() - started
            workshop = Workshop(
                dataset=dataset,
                space=chosen,
                pool=pool,
                metric=objective,
                device=where,
                cache_dir=settings().cache_dir,
                checkpoints=settings().home / "checkpoints" / name,
                seed=seed,
                max_parameters=limit,
                max_latency_ms=max_latency,
                latencies_ms=_latencies(pool.sources(), pool.image_sizes, dataset) if max_latency else {},
                go_on=go_on,
            )
            if not handle.study.get_trials(deepcopy=False):
                queue_first_trials(handle.study, workshop)
            tell(PhaseStarted("search", total=clock.trials))
            run_trials(handle.study, workshop, clock, lambda: _reserve(handle.study, workshop), tell)
            search_seconds = time.perf_counter() - started - probing_seconds
            tell(PhaseStarted("final"))
            answer = _answer(handle.study, workshop, clock, pool_plugins=[*chosen.plugins, *plugins])
    except BaseException as error:
        tell(StudyFailed(name, f"{type(error).__name__}: {error}"))
        raise
    finished, evidence = answer
    cost = {
        "total_seconds": time.perf_counter() - started,
        "probing_seconds": probing_seconds,
        "search_seconds": search_seconds,
        "final_seconds": time.perf_counter() - started - probing_seconds - search_seconds,
        **_counts(handle.study),
    }
    folder = Path(out) if out is not None else Path(name)
    recommendation = Recommendation(
        **evidence,
        cost=cost,
        sources=pool.table(),
        trials=_trials_table(handle.study),
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
    tell(StudyFinished(name, str(folder.resolve()), metrics, {"source": finished.config.source}, example))
    return recommendation


def _answer(
    study: optuna.Study, workshop: Workshop, clock: Budget, pool_plugins: list[str]
) -> tuple[Finalist, dict[str, Any]]:
    metric = workshop.metric
    admissible = [c for c in workshop.pool.candidates if not _beyond_limits(c.source.name, c.level, workshop)]
    if not admissible:
        raise StudyError("no (source, level) keeps within --max-params / --max-latency; loosen the limits.")
    sign = 1 if metric.greater_is_better else -1
    probe = finish_linear_probe(max(admissible, key=lambda c: sign * c.linear_probe), workshop)
    transferred = best_trial(study, metric, from_scratch=False)
    scratch_trial = best_trial(study, metric, from_scratch=True)
    chosen = finish_trial(transferred, workshop, clock) if transferred is not None else probe
    if not metric.better(chosen.val_score, probe.val_score):
        chosen = probe
    scratch = finish_trial(scratch_trial, workshop, clock) if scratch_trial is not None else None
    if scratch is not None and metric.better(scratch.val_score, chosen.val_score):
        chosen = scratch
    transferring = chosen if chosen is not scratch else probe
    verdict = negative_transfer(transferring, scratch, workshop)
    baselines = {
        "majority_class": score_on_test(metric, majority_probabilities(workshop), workshop),
        "linear_probe": score_on_test(metric, probe.probabilities, workshop),
    }
    if scratch is not None:
        baselines["from_scratch"] = score_on_test(metric, scratch.probabilities, workshop)
    source = workshop.source(chosen.config.source)
    model = TrainedModel(
        network=chosen.model.to("cpu").eval(),
        classes=workshop.dataset.classes,
        config=chosen.config,
        source=source,
        preprocessing=source.data_config,
        plugins=tuple(pool_plugins),
    )
    evidence = {
        "model": model,
        "config": chosen.config,
        "test": score_on_test(metric, chosen.probabilities, workshop),
        "baselines": baselines,
        "negative_transfer": verdict,
        "alternatives": _alternatives(study, workshop, probe),
        "why": reasons(chosen, probe, workshop, verdict, len(trained_trials(study))),
    }
    return chosen, evidence


def _alternatives(study: optuna.Study, workshop: Workshop, probe: Finalist) -> list[dict[str, Any]]:
    """The Pareto front of validation score, latency and size among trained configurations and the probe."""
    from autotransfer.search.study import complete_trials
    from autotransfer.transfer.config import TransferConfig

    sign = 1 if workshop.metric.greater_is_better else -1
    rows: list[dict[str, Any]] = []
    pairs = [(TransferConfig.from_dict(t.user_attrs["config"]), float(t.value or 0.0)) for t in complete_trials(study)]
    for config, value in [*pairs, (probe.config, probe.val_score)]:
        network = build_network(
            workshop.source(config.source),
            transferred_layers=config.transferred_layers,
            upper_layers=config.upper_layers,
            num_classes=len(workshop.dataset.classes),
        )
        rows.append(
            {
                "source": config.source,
                "transferred_layers": config.transferred_layers,
                "upper_layers": config.upper_layers,
                "frozen_layers": config.frozen_layers,
                "val_score": value,
                "parameters": sum(p.numel() for p in network.parameters()),
                "latency_ms": measure_latency_ms(network, config.image_size),
            }
        )

    def dominated(row: dict[str, Any]) -> bool:
        mine = (-sign * row["val_score"], row["parameters"], row["latency_ms"])
        others = [(-sign * o["val_score"], o["parameters"], o["latency_ms"]) for o in rows if o is not row]
        return any(all(a <= b for a, b in zip(o, mine, strict=True)) and o != mine for o in others)

    front = [row for row in rows if not dominated(row)]
    return sorted(front, key=lambda row: -sign * row["val_score"])


def _beyond_limits(source: str, level: int, workshop: Workshop) -> str:
    from autotransfer.search.trials import exceeds_limits, linear_probe_config

    return exceeds_limits(linear_probe_config(workshop, source, level), workshop)


def _latencies(sources: list[Source], image_sizes: dict[str, int], dataset: Dataset) -> dict[tuple[str, int], float]:
    """Measured CPU latency of every (source, level), cut above the level."""
    return {
        (source.name, level.index): measure_latency_ms(
            build_network(
                source,
                transferred_layers=level.index,
                upper_layers="drop",
                num_classes=len(dataset.classes),
            ),
            image_sizes[source.name],
        )
        for source in sources
        for level in source.levels
    }


def _reserve(study: optuna.Study, workshop: Workshop) -> float:
    """Seconds that the final trainings will take."""
    picked = [best_trial(study, workshop.metric, from_scratch=flag) for flag in (False, True)]
    return sum(refit_seconds(trial, workshop) for trial in picked if trial is not None)


def _budget_seconds(budget: str | float | None, trials: int | None, space: Space) -> float | None:
    if budget is not None:
        return parse_duration(budget)
    if trials is not None:
        return None
    if space.budget is not None:
        return parse_duration(space.budget)
    return None if space.trials is not None else parse_duration(_DEFAULT_BUDGET)


def _name(given: str | None, dataset: Dataset, space: Space, seed: int, storage: str | None, resume: bool) -> str:
    """The given name, or the job's own: the latest of that job to resume, the next free one to start."""
    if given is not None:
        return given
    base = study_name(dataset, space, seed)

    def exists(name: str) -> bool:
        url = storage_url(storage or settings().storage, name, settings().studies_dir)
        if url.startswith("journal:") and not Path(url.removeprefix("journal:")).exists():
            return False
        return name in optuna.get_all_study_names(open_storage(url))

    name, number = base, 1
    while exists(name):
        previous, number = name, number + 1
        name = f"{base}-{number}"
        if resume and not exists(name):
            return previous
    return name


def _params(
    dataset: Dataset,
    space: Space,
    seconds: float | None,
    trials: int | None,
    seed: int,
    device: torch.device,
    data: str | PathLike[str],
) -> dict[str, str | int | float | bool | None]:
    return {
        "dataset": dataset.name,
        "data": str(data),
        "images": len(dataset),
        "classes": len(dataset.classes),
        "splits": dataset.split_origin,
        "space": space.name,
        "sources": ", ".join(space.sources)[:500],
        "budget_seconds": seconds,
        "trials": trials,
        "seed": seed,
        "device": str(device),
    }


def _versions() -> dict[str, str]:
    import timm

    return {
        "version.autotransfer": autotransfer.__version__,
        "version.torch": torch.__version__,
        "version.timm": timm.__version__,
        "version.optuna": optuna.__version__,
    }


def _counts(study: optuna.Study) -> dict[str, float]:
    states = [trial.state.name.lower() for trial in study.get_trials(deepcopy=False)]
    return {
        "trials_complete": states.count("complete"),
        "trials_pruned": states.count("pruned"),
        "trials_failed": states.count("fail"),
    }


def _trials_table(study: optuna.Study) -> pd.DataFrame:
    rows = []
    for trial in study.get_trials(deepcopy=False):
        if "config" not in trial.user_attrs:
            continue
        rows.append(
            {
                "number": trial.number,
                "state": trial.state.name.lower(),
                "value": trial.value,
                "role": trial.user_attrs.get("role", ""),
                "reason": trial.user_attrs.get("reason", ""),
                "seconds": trial.user_attrs.get("seconds"),
                **trial.user_attrs["config"],
            }
        )
    return pd.DataFrame(rows)


@contextmanager
def _interruptible(tell: Callable[[Event], None]) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C asks the job to finish with what is known; the second one ends it."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda: True
        return

    def handle(signum: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        tell(Notice("Stopping: answering with what is known. Ctrl-C again to give up."))

    previous = signal.signal(signal.SIGINT, handle)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield lambda: not stop.is_set()
    finally:
        signal.signal(signal.SIGINT, previous)
