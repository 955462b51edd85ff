"""Which of many sources are probed: decided before anything is downloaded, from published figures and cost."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import pandas as pd
import torch

from autotransfer.datasets import Dataset
from autotransfer.errors import SourceError
from autotransfer.probing import choose_image_size, typical_image_size
from autotransfer.quantities import format_count
from autotransfer.search.hub_prior import shipped_hub_prior
from autotransfer.search.space import Space
from autotransfer.sources import Source
from autotransfer.sources.published import Published, published_models

# Of the budget: one full fine-tuning, and probing all sources together.
_TRAINING_SHARE = 0.25
_PROBING_SHARE = 0.5
_TRAINING_PASSES = 3  # a backward pass costs two forward ones
_LARGEST_CLASSIFIER = 1000 * (4096 + 1)
_SMALLEST_CUT = 0.25  # a source named on purpose is downloaded for as little as this part of its parameters
_MEASURED = "resnet18.tv_in1k"


@dataclass(frozen=True)
class Shortlist:
    """The sources that are probed, and sentences for the user on those that are not."""

    sources: list[Source]
    notices: list[str]


def shortlist(
    found: Sequence[Source],
    dataset: Dataset,
    space: Space,
    *,
    budget_seconds: float | None,
    device: torch.device,
    max_parameters: int | None = None,
    kept: Sequence[str] = (),
) -> Shortlist:
    """Choose at most `space.probing.max_sources` of what the space's patterns match; loads nothing.

    Sources that were named one by one, that are on this machine or of a hub repository go first, and none of them is
    one too many; of timm's, as many as are left by what is expected of them and by what they cost.

    Args:
        found: what the patterns match, in their order; kept so where nothing is too much.
        dataset: the target; its training images and their size say what a source costs.
        space: its patterns, `probing.max_sources`, fewest epochs and whether it cuts.
        budget_seconds: of the study, None where cost does not count.
        device: where training will run; its speed is measured once a process, where it is needed.
        max_parameters: sources that are larger by published figures are left out.
        kept: names of the sources that a study has already; where all are among `found`, they are the answer.

    Raises:
        SourceError: all sources are larger than `max_parameters`.
    """
    by_name = {source.name: source for source in found}
    if kept and all(name in by_name for name in kept):
        return Shortlist([by_name[name] for name in kept], [])
    notices: list[str] = []
    fitting = [source for source in found if max_parameters is None or _may_fit(source, max_parameters, space)]
    if not fitting:
        raise SourceError(
            f"all {len(found)} sources have more parameters than --max-params {max_parameters:,} by published figures. "
            "Give smaller ones with --source (`autotransfer sources PATTERN` shows sizes), or raise the limit."
        )
    if max_parameters is not None and len(fitting) < len(found):
        notices.append(
            f"{len(found) - len(fitting)} of {len(found)} sources have more than {format_count(max_parameters)} "
            "parameters by published figures: not downloaded."
        )
    most = space.probing.max_sources
    if len(fitting) <= most:
        return Shortlist(fitting, notices)
    front = [source for source in fitting if _is_wanted(source, space)]
    rest = [source for source in fitting if not _is_wanted(source, space)]
    if budget_seconds is None:
        chosen = order_sources(rest)
        by = "published results"
    else:
        chosen = order_sources(rest, _overrun(dataset, space, budget_seconds, device))
        by = "published results and cost"
    chosen = chosen[: max(0, most - len(front))]
    if len(chosen) < len(rest):
        notices.append(
            f"{len(fitting)} sources match; {len(front) + len(chosen)} are probed: {len(front)} named or at hand, and "
            f"the {len(chosen)} most promising by {by} (probing.max_sources: {most})."
        )
    return Shortlist([*front, *chosen], notices)


def order_sources(sources: Sequence[Source], overrun: Callable[[Source], float] | None = None) -> list[Source]:
    """Sources with the highest expectation first; those without published figures last, in the order they came.

    Args:
        sources: any number of them.
        overrun: by how much a source costs more than its share (up to 1: not at all). Those that do stand back, the
            further the more often they need their share's double.
    """
    prior = shipped_hub_prior()

    def key(source: Source) -> tuple[bool, int, float]:
        published = source.published
        if published is None:
            return True, 0, 0.0
        steps = max(0, math.ceil(math.log2(max(overrun(source), 1e-9)))) if overrun else 0
        return False, steps, -prior.expect(published)

    return sorted(sources, key=key)


def describe_sources(sources: Sequence[Source]) -> pd.DataFrame:
    """What is published of each, best expectation first: source, kind, parameters, gmacs, top1, pretraining, expected.

    None where it is not known.
    """
    rows = []
    for source in order_sources(sources):
        known = source.published
        rows.append(
            {
                "source": source.name,
                "kind": source.kind,
                "parameters": known.parameters if known else None,
                "gmacs": round(known.macs / 1e9, 3) if known else None,
                "top1": known.top1 if known else None,
                "pretraining": (known.pretraining or None) if known else None,
                "expected": round(shipped_hub_prior().expect(known), 3) if known else None,
            }
        )
    return pd.DataFrame(rows, dtype=object)


def _overrun(dataset: Dataset, space: Space, budget_seconds: float, device: torch.device) -> Callable[[Source], float]:
    """By source: its cost over its share of the budget, in training or in probing, whichever is more."""
    probing = space.probing
    speed = macs_per_second(device)
    typical = typical_image_size(dataset)
    images = len(dataset.rows("train"))
    trained = images * space.parameters.epochs.min * _TRAINING_PASSES
    looked_at = min(len(dataset.rows("train", "val")), round(1.5 * probing.race_images))

    def overrun(source: Source) -> float:
        published = source.published
        if published is None:
            return 0.0
        size = choose_image_size(source, typical, space.training.max_image_size)
        seconds = published.macs * (size / published.image_size) ** 2 / speed
        training = seconds * trained / (_TRAINING_SHARE * budget_seconds)
        return max(training, seconds * looked_at * probing.max_sources / (_PROBING_SHARE * budget_seconds))

    return overrun


@cache
def macs_per_second(device: torch.device) -> float:
    """Multiply-adds a second of a forward pass, of the fastest of three batches.

    Rounded to a power of two: the same machine should choose the same sources again.
    """
    import timm

    published = published_models()[_MEASURED]
    with torch.random.fork_rng(devices=[]):
        network = timm.create_model(_MEASURED.split(".")[0], pretrained=False).eval().to(device)
        batch = torch.rand(128 if device.type == "cuda" else 4, 3, published.image_size, published.image_size)
    batch = batch.to(device)
    fastest = math.inf
    with torch.inference_mode():
        for _ in range(3):
            started = time.perf_counter()
            network(batch).sum().item()
            fastest = min(fastest, time.perf_counter() - started)
    return float(2.0 ** round(math.log2(len(batch) * published.macs / fastest)))


def _is_wanted(source: Source, space: Space) -> bool:
    """True for what costs no download or was named on purpose."""
    return source.kind != "timm" or _is_named(source, space)


def _is_named(source: Source, space: Space) -> bool:
    return source.name in space.sources or source.name.split(".")[0] in space.sources


def _may_fit(source: Source, max_parameters: int, space: Space) -> bool:
    """False where published figures say that a source is too large, whatever its classifier."""
    published = source.published
    if published is None:
        return True
    needed = fewest_parameters(published)
    if _is_named(source, space) and "drop" in space.parameters.upper_layers:
        needed *= _SMALLEST_CUT
    return needed <= max_parameters


def fewest_parameters(published: Published) -> float:
    """What is left of the parameters without the largest classifier that the network may have."""
    return published.parameters - max(_LARGEST_CLASSIFIER, published.parameters / 10)
