"""Candidates: every (source, level), probed, scored and ordered before anything is trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from autotransfer.datasets import Dataset
from autotransfer.errors import ProxyError, SourceError
from autotransfer.probing import (
    LinearHead,
    Probe,
    best_linear_head,
    choose_image_size,
    probe,
    stratified_subset,
    typical_image_size,
)
from autotransfer.proxies import ProxyValue, compute_proxies
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
        expected: the prior: what the trusted proxies and the size together say, a percentile from 0 to 1 (best).
        uncertainty: the prior's standard deviation.
    """

    source: Source
    level: int
    proxies: dict[str, ProxyValue]
    head: LinearHead
    linear_probe: float
    expected: float = 0.0
    uncertainty: float = 0.0


@dataclass(frozen=True)
class Pool:
    """All that is known before training: candidates best first, probes and image sizes by source name."""

    candidates: list[Candidate]
    probes: dict[str, Probe]
    image_sizes: dict[str, int]
    skipped: dict[str, str] = field(default_factory=dict)

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
        """One row a candidate, best first."""
        rows = []
        for rank, candidate in enumerate(self.candidates, start=1):
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

    A source that cannot be loaded or cut, or that yields no usable features, is skipped and told. Where
    `go_on` says stop, the sources probed so far make the pool.

    Raises:
        SourceError: no source is left.
    """
    listener(PhaseStarted("probing", total=len(sources)))
    train = stratified_subset(dataset, "train", space.probing.max_train_images, seed)
    val = stratified_subset(dataset, "val", space.probing.max_val_images, seed)
    rows = np.sort(np.concatenate([train, val]))
    typical = typical_image_size(dataset)
    found: list[Candidate] = []
    probes: dict[str, Probe] = {}
    sizes: dict[str, int] = {}
    skipped: dict[str, str] = {}
    for source in sources:
        if not go_on() and probes:
            break
        try:
            size = choose_image_size(source, typical, space.training.max_image_size)
            made = probe(source, dataset, rows, image_size=size, cache_dir=cache_dir, device=device, go_on=go_on)
            scored = _score_levels(source, made, dataset, train, val, space, metric)
        except (SourceError, ProxyError, torch.OutOfMemoryError) as error:
            reason = "out of memory" if isinstance(error, torch.OutOfMemoryError) else str(error)
            reason = reason.removeprefix(f"source '{source.name}' ")
            skipped[source.name] = reason
            listener(SourceSkipped(source.name, reason))
            continue
        except InterruptedError:
            break
        probes[source.name], sizes[source.name] = made, size
        found.extend(scored)
        listener(SourceProbed(source.name, len(source.levels), made.seconds, made.cached))
    if not found and not go_on():
        raise SourceError("stopped before the first source was probed: there is nothing to answer with.")
    if not found:
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in skipped.items())
        raise SourceError(
            f"no source could be used.{reasons}\nWithout internet: use --space offline (the embedded sources), "
            "or --source local-dir:PATH for weights that are on this machine."
        )
    return Pool(_ordered(found), probes, sizes, skipped)


def _score_levels(
    source: Source,
    made: Probe,
    dataset: Dataset,
    train: npt.NDArray[np.int64],
    val: npt.NDArray[np.int64],
    space: Space,
    metric: Metric,
) -> list[Candidate]:
    codes = dataset.codes
    probabilities = None
    if made.probabilities is not None:
        probabilities = made.probabilities[np.searchsorted(made.rows, train)]
    candidates = []
    for level in source.levels:
        features = made.at(level.index, train)
        dimension = min(_LARGEST_PROXY_DIMENSION, max(1, len(train) // 2), features.shape[1])
        proxies = compute_proxies(
            features,
            codes[train],
            probabilities=probabilities,
            names=tuple(space.proxies),
            dimension=dimension,
        )
        val_features = made.at(level.index, val)
        head = best_linear_head((features, codes[train]), (val_features, codes[val]), len(dataset.classes))
        score = metric(head.probabilities(val_features), codes[val])
        candidates.append(Candidate(source, level.index, proxies, head, score))
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
