"""What worked before: the trials of past studies, as observations that count by how alike the targets are.

A past study says, beside its trials, what was known of its sources before training (`remember`). A new study
chooses the most alike of them once, and keeps what it takes from them in its own storage (`keep`), so that those who
resume or join it see the same.
"""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from autotransfer.errors import AutotransferError
from autotransfer.search.expectation import Surrogate
from autotransfer.search.prior import Array, Landscape, Points, Prior
from autotransfer.search.study import open_storage, storage_url
from autotransfer.search.surrogate import Past
from autotransfer.task import Task
from autotransfer.transfer.evaluation import get_metric

logger = logging.getLogger(__name__)

_LANDSCAPE, _HISTORY = "landscape", "history"
_MOST_STUDIES = 3
_LATEST_JOURNALS = 50
_LEAST_SIMILARITY = 0.1
_FEWEST_TRIALS = 3
_LONGEST_SECONDS = 5.0
_FEWEST_PAIRS = 6
_TRUST = 0.8  # what a past study of the very same linear probes counts
_MOST_TRIALS = 60


def similarity(here: Landscape, there: Landscape) -> float:
    """How alike two targets are, 0..1: Pearson's correlation of the linear probes' log errors, squared.

    Over the (source, level) pairs that both have; 0 where they are fewer than six, or go against each other.
    """
    shared = [name for name in here.sources if name in there.positions]
    first, second = [], []
    for name in shared:
        row, other = here.positions[name], there.positions[name]
        if here.depths[row] == there.depths[other]:
            depth = int(here.depths[row])
            first.append(here.log_error(here.linear_probe[row, :depth]))
            second.append(there.log_error(there.linear_probe[other, :depth]))
    if not first:
        return 0.0
    one, two = np.concatenate(first), np.concatenate(second)
    if len(one) < _FEWEST_PAIRS or np.ptp(one) == 0 or np.ptp(two) == 0:
        return 0.0
    return _TRUST * max(0.0, float(np.corrcoef(one, two)[0, 1])) ** 2


def past_of(
    study: str, here: Landscape, there: Landscape, prior: Prior, points: Points, values: Array, noise: Array
) -> Past | None:
    """What a study on target `there` says about target `here`; None where they share less than three trials.

    Args:
        study: its name.
        here: this target.
        there: the past one.
        prior: what was expected of configurations on both.
        points: what was trained there, by the positions of `there`.
        values: log errors over the anchor of `there`, [n].
        noise: their variances, [n].
    """
    alike = similarity(here, there)
    names = [there.sources[index] for index in points.source.tolist()]
    usable = np.array([name in here.positions for name in names], bool)
    if not alike or usable.sum() < _FEWEST_TRIALS:
        return None
    surprise = values - prior.mean(there, points)
    surprise = surprise - surprise.mean()
    chosen = np.flatnonzero(usable)
    if len(chosen) > _MOST_TRIALS:  # the best ones say where to look, the others where not
        order = chosen[np.argsort(-values[chosen], kind="stable")]
        chosen = np.unique(
            np.concatenate([order[: _MOST_TRIALS // 2], order[:: max(1, len(order) * 2 // _MOST_TRIALS)]])
        )
    moved = np.array([here.positions[names[index]] for index in chosen], np.int64)
    part = points[chosen]
    return Past(
        study,
        alike,
        Points(moved, part.transferred, part.drop, part.frozen, part.rate),
        surprise[chosen],
        noise[chosen],
    )


def remember(study: optuna.Study, landscape: Landscape) -> None:
    """Note beside a study what was known of its sources, for the studies after it."""
    arrays = ("linear_probe", "percentile", "parameters", "flops")
    content: dict[str, Any] = {name: _rounded(getattr(landscape, name)) for name in arrays}
    content |= {name: getattr(landscape, name) for name in ("train_images", "val_images", "classes")}
    content |= {"sources": list(landscape.sources), "architectures": list(landscape.architectures)}
    content |= {"depths": landscape.depths.tolist(), "metric": landscape.metric.name, "task": landscape.metric.task}
    study.set_user_attr(_LANDSCAPE, json.dumps(content))


def find_past(
    study: optuna.Study, here: Landscape, prior: Prior, *, storage: str, studies_dir: Path
) -> tuple[Past, ...]:
    """What the most alike of this user's studies say: those in the same storage and in the journals of this machine.

    Args:
        study: the new one, which is no past of itself.
        here: what is known of its target.
        prior: what is expected of configurations.
        storage: its storage.
        studies_dir: where the journals lie.
    """
    found, until = [], time.monotonic() + _LONGEST_SECONDS
    for url in _storages(storage, studies_dir):
        try:
            opened = open_storage(url)
            names = [name for name in optuna.get_all_study_names(opened) if name != study.study_name]
        except Exception as error:  # whatever a file or a database of another time or program holds
            logger.debug("%s is left out of the history: %s", url, error)
            continue
        for name in reversed(names):
            if time.monotonic() > until:
                break
            try:
                past = _past_in(optuna.load_study(study_name=name, storage=opened), here, prior)
            except Exception as error:
                logger.debug("study %s is left out of the history: %s", name, error)
                continue
            if past is not None:
                found.append(past)
    return tuple(sorted(found, key=lambda past: (-past.similarity, past.study))[:_MOST_STUDIES])


def _past_in(other: optuna.Study, here: Landscape, prior: Prior) -> Past | None:
    """What one study says; None where that is too little, or of something else."""
    if _LANDSCAPE not in other.user_attrs:
        return None
    there = _landscape_of(json.loads(other.user_attrs[_LANDSCAPE]))
    if there is None or there.metric.name != here.metric.name or similarity(here, there) < _LEAST_SIMILARITY:
        return None
    seen = Surrogate(there, prior, lambda points: np.ones(len(points))).observe(other)
    return past_of(other.study_name, here, there, prior, seen.points, seen.values, seen.noise)


def keep(study: optuna.Study, pasts: Sequence[Past], here: Landscape) -> None:
    """Write into a study what it starts from."""
    content = []
    for past in pasts:
        points = {name: values.tolist() for name, values in asdict(past.points).items()}
        points["source"] = [here.sources[index] for index in past.points.source]
        own = {"study": past.study, "similarity": past.similarity, "points": points}
        content.append({**own, "surprise": _rounded(past.surprise), "noise": _rounded(past.noise)})
    study.set_user_attr(_HISTORY, json.dumps(content))


def kept_past(study: optuna.Study, here: Landscape) -> tuple[Past, ...]:
    """What `keep` wrote; sources that this study has not are left out."""
    found = []
    for content in json.loads(study.user_attrs.get(_HISTORY, "[]")):
        columns = content["points"]
        usable = [index for index, name in enumerate(columns["source"]) if name in here.positions]
        columns["source"] = [here.positions.get(name, -1) for name in columns["source"]]
        names = ("source", "transferred", "drop", "frozen", "rate")
        rows = list(zip(*(columns[name] for name in names), strict=True))
        surprise, noise = (np.array(content[name], float)[usable] for name in ("surprise", "noise"))
        points = Points.of([rows[index] for index in usable])
        found.append(Past(content["study"], content["similarity"], points, surprise, noise))
    return tuple(found)


def told(study: optuna.Study) -> str:
    """One sentence on what a study started from, empty where that is nothing."""
    kept = json.loads(study.user_attrs.get(_HISTORY, "[]"))
    parts = [f"{p['study']} ({len(p['noise'])} trials, similarity {p['similarity']:.2f})" for p in kept]
    return f"started from what worked on {', '.join(parts)}" if parts else ""


def _storages(storage: str, studies_dir: Path) -> list[str]:
    """The storage, then the latest journals."""

    def last_change(path: Path) -> float:
        try:
            return path.stat().st_mtime
        except OSError:  # taken away meanwhile, or a link to nothing
            return 0.0

    journals = sorted(studies_dir.glob("*.journal"), key=last_change, reverse=True)
    latest = [storage_url(None, path.stem, studies_dir) for path in journals[:_LATEST_JOURNALS]]
    return list(dict.fromkeys([storage, *latest]))


def _landscape_of(content: dict[str, Any]) -> Landscape | None:
    """What `remember` wrote; None of a version that wrote it otherwise."""
    try:
        task: Task = content.pop("task")
        arrays = ("linear_probe", "percentile", "parameters", "flops")
        read = {name: np.array(content[name], float) for name in arrays}
        metric = get_metric(content["metric"], task)
        return Landscape(**{**content, **read, "depths": np.array(content["depths"], np.int64), "metric": metric})
    except (TypeError, ValueError, KeyError, AutotransferError):
        return None


def _rounded(values: Array) -> list[Any]:
    """For JSON, which has no NaN."""
    rounded = [[round(v, 5) if np.isfinite(v) else None for v in row] for row in np.atleast_2d(values).tolist()]
    return rounded if values.ndim == 2 else rounded[0]
