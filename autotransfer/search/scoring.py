"""The quick answer: every (source, level) scored by proxies, nothing trained."""

from collections.abc import Sequence
from os import PathLike

import pandas as pd

from autotransfer.datasets import load_dataset
from autotransfer.device import choose_device
from autotransfer.quantities import parse_duration
from autotransfer.search.candidates import build_pool
from autotransfer.search.events import Listener, Notice, PhaseStarted
from autotransfer.search.shortlist import shortlist
from autotransfer.search.space import load_space
from autotransfer.settings import settings
from autotransfer.sources import find_sources, load_plugins
from autotransfer.task import Task
from autotransfer.transfer.evaluation import get_metric


def score(
    data: str | PathLike[str],
    *,
    space: str = "default",
    sources: Sequence[str] | None = None,
    plugins: Sequence[str] = (),
    label_column: str | Sequence[str] = "label",
    task: Task | None = None,
    seed: int = 0,
    device: str = "auto",
    listeners: Sequence[Listener] = (),
) -> pd.DataFrame:
    """Proxies and linear-probe score of every (source, level) on a target, best first.

    Args:
        data: a folder of class folders, or a CSV manifest.
        space: name or file of the search space (its sources, proxies and probing; its budget says which of many
            sources are too costly to be probed).
        sources: patterns that replace the space's sources.
        plugins: modules that register architectures with timm, beside the space's.
        label_column: the manifest's column of labels, or its columns of labels or numbers.
        task: `classification`, `multilabel` or `regression`; recognised from the data where None.
        seed: of splits and subsets.
        device: `auto`, `cpu` or `cuda`.
        listeners: told of progress.

    Returns:
        Columns rank, source, level, levels, channels, parameters, flops, images (training images probed), one per
        proxy, linear_probe (validation score), expected (the combined percentile that orders the rows) and its
        uncertainty. Many sources race: those that a few images put behind come last, with what these said.
    """

    def tell(event: object) -> None:
        for listener in listeners:
            listener(event)  # type: ignore[arg-type]

    chosen = load_space(space, sources=list(sources) if sources else None)
    load_plugins([*chosen.plugins, *plugins])
    tell(PhaseStarted("data"))
    dataset = load_dataset(data, seed=seed, label_column=label_column, task=task)
    where = choose_device(device)
    listed = shortlist(
        find_sources(chosen.sources),
        dataset,
        chosen,
        budget_seconds=parse_duration(chosen.budget) if chosen.budget is not None else None,
        device=where,
    )
    for notice in listed.notices:
        tell(Notice(notice))
    pool = build_pool(
        listed.sources,
        dataset,
        chosen,
        get_metric(chosen.metric, dataset.task),
        seed=seed,
        device=where,
        cache_dir=settings().cache_dir,
        listener=tell,
    )
    return pool.table()
