"""Candidates: every (source, level), probed, scored and ordered before anything is trained."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import optuna
import pandas as pd
import torch

from autotransfer.datasets import Dataset
from autotransfer.errors import ProxyError, SourceError, StudyError
from autotransfer.probing import (
    LinearHead,
    Probe,
    best_linear_head,
    choose_image_size,
    probe,
    stratified_subset,
    typical_image_size,
)
from autotransfer.proxies import ProxyValue, compute_proxies, get_proxy
from autotransfer.proxies.combine import combine
from autotransfer.search.events import Listener, PhaseStarted, SourceProbed, SourceSkipped
from autotransfer.search.space import Space
from autotransfer.sources import Source
from autotransfer.transfer.evaluation import Metric

_LARGEST_PROXY_DIMENSION = 128


@dataclass(frozen=True)
class Candidate:
    """One (source, level) of a target.

    Attributes:
        source: the source.
        level: 1..K.
        proxies: by name.
        head: the linear probe solved on this level's features.
        linear_probe: its score on the validation images.
        images: training images that all this was computed from.
        expected: the prior: what the trusted proxies and the size together say, a percentile from 0 to 1 (best).
        uncertainty: the prior's standard deviation.
    """

    source: Source
    level: int
    proxies: dict[str, ProxyValue]
    head: LinearHead
    linear_probe: float
    images: int
    expected: float = 0.0
    uncertainty: float = 0.0


@dataclass(frozen=True)
class Pool:
    """All that is known before training.

    Attributes:
        candidates: best first.
        probes, image_sizes: by source name.
        skipped: why sources could not be used, by name.
        raced_out: candidates of the sources that were behind after a few images, best first.
    """

    candidates: list[Candidate]
    probes: dict[str, Probe]
    image_sizes: dict[str, int]
    skipped: dict[str, str] = field(default_factory=dict)
    raced_out: list[Candidate] = field(default_factory=list)

    def sources(self) -> list[Source]:
        """The sources that can be used, best candidate first."""
        return list({candidate.source.name: candidate.source for candidate in self.candidates}.values())

    def get(self, source: str, level: int) -> Candidate:
        """The candidate of that source and level."""
        return next(c for c in self.candidates if c.source.name == source and c.level == level)

    def best_of(self, source: str) -> Candidate:
        """The source's candidate with the highest expectation."""
        return next(c for c in self.candidates if c.source.name == source)

    def table(self) -> pd.DataFrame:
        """One row a candidate, best first; those that the race left behind come last."""
        rows = []
        for rank, candidate in enumerate([*self.candidates, *self.raced_out], start=1):
            level = candidate.source.levels[candidate.level - 1]
            rows.append(
                {
                    "rank": rank,
                    "source": candidate.source.name,
                    "level": candidate.level,
                    "levels": len(candidate.source.levels),
                    "channels": level.channels,
                    "parameters": level.parameter_count,
                    "flops": level.flops,
                    "images": candidate.images,
                    **{name: proxy.value for name, proxy in candidate.proxies.items()},
                    "linear_probe": candidate.linear_probe,
                    "expected": candidate.expected,
                    "uncertainty": candidate.uncertainty,
                }
            )
        return pd.DataFrame(rows)


def build_pool(
    sources: Sequence[Source],
    dataset: Dataset,
    space: Space,
    metric: Metric,
    *,
    seed: int,
    device: torch.device,
    cache_dir: Path,
    listener: Listener,
    go_on: Callable[[], bool] = lambda: True,
) -> Pool:
    """Probe all sources and order all (source, level) pairs.

    Many sources race: all are probed on a few images, and only the best of them on all. A source that cannot
    be loaded or cut, or that yields no usable features, is skipped and told. Where `go_on` says stop, the
    sources probed so far make the pool.

    Raises:
        SourceError: no source is left.
    """
    probing = space.probing
    skipped: dict[str, str] = {}
    prober = _Prober(
        dataset, space, metric, seed, device, cache_dir, listener, go_on, skipped, typical_image_size(dataset)
    )
    first, left = _Round(), list(sources)
    out: list[Candidate] = []
    if len(sources) > probing.race_above and len(dataset.rows("train")) > 2 * probing.race_images:
        listener(PhaseStarted("probing", total=len(sources), detail=f"a race on {probing.race_images} images"))
        first = prober.probe(sources, probing.race_images, probing.race_images // 2, first)
        left, out = _race(first, max(probing.race_above, math.ceil(probing.race_keep * len(sources))))
    listener(PhaseStarted("probing", total=len(left)))
    last = prober.probe(left, probing.max_train_images, probing.max_val_images, first)
    if not last.candidates:  # stopped between the two
        last, out = first, []
    if not last.candidates and not go_on():
        raise SourceError("stopped before the first source was probed: there is nothing to answer with.")
    if not last.candidates:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in skipped.items())
        raise SourceError(
            f"no source could be used.{reasons}\nWithout internet: use --space offline (the embedded sources), "
            "or --source local-dir:PATH for weights that are on this machine."
        )
    return Pool(_ordered(last.candidates), last.probes, last.image_sizes, skipped, out)


def same_pool(study: optuna.Study, pool: Pool, go_on: Callable[[], bool]) -> Pool:
    """The sources that a study began with: a categorical cannot change inside an Optuna study.

    Args:
        study: notes them, the first time.
        pool: what could be probed now.
        go_on: where it says stop, some may be missing.

    Raises:
        StudyError: one of them cannot be used now.
    """
    if not study.get_trials(deepcopy=False):
        study.set_user_attr("pool", json.dumps(sorted(source.name for source in pool.sources())))
    if "pool" not in study.user_attrs:
        return pool
    began_with = json.loads(study.user_attrs["pool"])
    missing = set(began_with) - {source.name for source in pool.sources()}
    if missing and go_on():
        reasons = "; ".join(f"{name}: {pool.skipped.get(name, 'left behind')}" for name in sorted(missing))
        raise StudyError(
            f"study '{study.study_name}' cannot go on without sources that it began with: {reasons}. "
            "Make them available again, or start a new study."
        )
    return replace(pool, candidates=[c for c in pool.candidates if c.source.name in began_with])


@dataclass(frozen=True)
class _Round:
    """What probing on one set of images has found."""

    candidates: list[Candidate] = field(default_factory=list)
    probes: dict[str, Probe] = field(default_factory=dict)
    image_sizes: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Prober:
    """Probes sources on a subset of the target and scores their levels; notes those that cannot be used."""

    dataset: Dataset
    space: Space
    metric: Metric
    seed: int
    device: torch.device
    cache_dir: Path
    listener: Listener
    go_on: Callable[[], bool]
    skipped: dict[str, str]
    typical_image_size: int

    def probe(self, sources: Sequence[Source], train_images: int, val_images: int, before: _Round) -> _Round:
        """Probe `sources` on so many images; those of the round `before` are not looked at again."""
        train = stratified_subset(self.dataset, "train", train_images, self.seed)
        val = stratified_subset(self.dataset, "val", val_images, self.seed)
        found = _Round()
        for source in sources:
            if not self.go_on() and (found.probes or before.probes):
                break
            try:
                size = choose_image_size(source, self.typical_image_size, self.space.training.max_image_size)
                made = probe(
                    source,
                    self.dataset,
                    np.sort(np.concatenate([train, val])),
                    image_size=size,
                    cache_dir=self.cache_dir,
                    device=self.device,
                    known=before.probes.get(source.name),
                    go_on=self.go_on,
                )
                scored = _score_levels(source, made, self.dataset, train, val, self.space, self.metric)
            except (SourceError, ProxyError, torch.OutOfMemoryError) as error:
                reason = "out of memory" if isinstance(error, torch.OutOfMemoryError) else str(error)
                self.skipped[source.name] = reason.removeprefix(f"source '{source.name}' ")
                self.listener(SourceSkipped(source.name, self.skipped[source.name]))
                continue
            except InterruptedError:
                break
            found.probes[source.name], found.image_sizes[source.name] = made, size
            found.candidates.extend(scored)
            self.listener(SourceProbed(source.name, len(source.levels), made.seconds, made.cached))
        return found


def _race(first: _Round, keep: int) -> tuple[list[Source], list[Candidate]]:
    """The sources whose best candidates lead, and the candidates of the others, best first."""
    ordered = _ordered(first.candidates)
    sources = list({candidate.source.name: candidate.source for candidate in ordered}.values())
    kept = {source.name for source in sources[:keep]}
    return sources[:keep], [candidate for candidate in ordered if candidate.source.name not in kept]


def _score_levels(
    source: Source,
    made: Probe,
    dataset: Dataset,
    train: npt.NDArray[np.int64],
    val: npt.NDArray[np.int64],
    space: Space,
    metric: Metric,
) -> list[Candidate]:
    targets, task = dataset.targets, dataset.task
    names = tuple(name for name in space.proxies if task in get_proxy(name).tasks)
    probabilities = None
    if made.probabilities is not None:
        probabilities = made.probabilities[np.searchsorted(made.rows, train)]
    candidates = []
    for level in source.levels:
        features = made.at(level.index, train)
        dimension = min(_LARGEST_PROXY_DIMENSION, max(1, len(train) // 2), features.shape[1])
        proxies = compute_proxies(
            features,
            targets[train],
            probabilities=probabilities,
            names=names,
            dimension=dimension,
        )
        val_features = made.at(level.index, val)
        head = best_linear_head((features, targets[train]), (val_features, targets[val]), len(dataset.classes), task)
        score = metric(head.predict(val_features), targets[val])
        candidates.append(Candidate(source, level.index, proxies, head, score, len(train)))
    return candidates


def _ordered(candidates: list[Candidate]) -> list[Candidate]:
    """Candidates with their expectation, best first; ties by name, so that the order is always the same."""
    names = sorted({name for candidate in candidates for name in candidate.proxies})
    columns = {name: [_trusted(candidate.proxies.get(name)) for candidate in candidates] for name in names}
    # The static ranking, by size: proxies are judged by what they add to it, so it always counts.
    columns["size"] = [float(c.source.levels[c.level - 1].parameter_count) for c in candidates]
    combined = combine(columns)
    known = [
        replace(candidate, expected=float(expected), uncertainty=float(uncertainty))
        for candidate, expected, uncertainty in zip(candidates, combined.expected, combined.uncertainty, strict=True)
    ]
    return sorted(known, key=lambda c: (-c.expected, c.source.name, -c.level))


def _trusted(proxy: ProxyValue | None) -> float:
    return proxy.value if proxy is not None and proxy.trusted else float("nan")
