"""What is expected of every transfer configuration before it is trained, and how certain that is.

Scores are compared as *log errors*: u = -log(distance from a perfect score), so that a step of 0.1 takes a tenth off
the error wherever it is taken, and as the difference from the best linear probe of the target, which is known
before anything is trained and says how hard the target is. The expectation is linear in what is known of a
configuration: the linear probe of its level, where the proxies rank it, its size, how it is trained. What
remains is a Gaussian process (`surrogate.py`). The coefficients are measured on other targets by
`tests/benchmarks/prior.py` and shipped in `prior.json`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from importlib.resources import files
from typing import Any

import numpy as np
import numpy.typing as npt

from autotransfer.transfer.evaluation import Metric

Array = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

KINDS = ("scratch", "head", "part", "full", "reinit")
RATES = (-4.5, -3.5, -2.5, -1.5)  # log10 of learning rates
FRACTIONS = (0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
_USUAL_LEARNING_RATE = -3.0  # log10; where the linear features have their zero


@dataclass(frozen=True)
class Landscape:
    """What is known of a target's sources before anything is trained: [S, K] arrays, NaN above a source's depth.

    Attributes:
        sources: names, [S].
        architectures: of the sources, [S]: from scratch, sources of one architecture are the same.
        depths: K of each source, [S].
        linear_probe: score of the linear probe of each level.
        percentile: where the proxies and the size together rank each level, 0..1.
        parameters, flops: of the network up to each level.
        metric: the objective.
        train_images, val_images, classes: sizes of the target.
    """

    sources: Sequence[str]
    architectures: Sequence[str]
    depths: Ints
    linear_probe: Array
    percentile: Array
    parameters: Array
    flops: Array
    metric: Metric
    train_images: int
    val_images: int
    classes: int

    def log_error(self, scores: npt.ArrayLike) -> Array:
        """-log(distance from a perfect score), no better than half a validation image away; NaN stays NaN."""
        return log_error(self.metric, scores, self.val_images)

    @cached_property
    def positions(self) -> dict[str, int]:
        """Index of each source by name."""
        return {name: index for index, name in enumerate(self.sources)}

    @cached_property
    def anchor(self) -> float:
        """The log error of the best linear probe."""
        return float(np.nanmax(self.log_error(self.linear_probe)))


@dataclass(frozen=True)
class Points:
    """Configurations as arrays [m]: source index, k, whether cut above k, f, log10 of the learning rate."""

    source: Ints
    transferred: Ints
    drop: npt.NDArray[np.bool_]
    frozen: Ints
    rate: Array

    @classmethod
    def of(cls, rows: Sequence[tuple[int, int, bool, int, float]]) -> "Points":
        """From (source, k, drop, f, log10 rate) tuples."""
        columns: list[Any] = list(zip(*rows, strict=True)) if rows else [[]] * 5
        kinds: tuple[Any, ...] = (np.int64, np.int64, np.bool_, np.int64, np.float64)
        return cls(*(np.array(column, kind) for column, kind in zip(columns, kinds, strict=True)))

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, chosen: Any) -> "Points":
        return Points(*(getattr(self, name)[chosen] for name in ("source", "transferred", "drop", "frozen", "rate")))

    def joined(self, other: "Points") -> "Points":
        """These, then the others."""
        names = ("source", "transferred", "drop", "frozen", "rate")
        return Points(*(np.concatenate([getattr(self, name), getattr(other, name)]) for name in names))

    def kinds(self, landscape: Landscape) -> Ints:
        """Indices into `KINDS`."""
        whole = self.transferred == landscape.depths[self.source]
        kept = self.drop | whole
        kind = np.where(self.frozen == 0, 3, np.where(self.frozen < self.transferred, 2, 1))
        kind = np.where(kept, kind, 4)
        return np.where(self.transferred == 0, 0, kind).astype(np.int64)


def log_error(metric: Metric, scores: npt.ArrayLike, images: int) -> Array:
    """-log(distance from a perfect score) of scores on so many images."""
    values = np.asarray(scores, float)
    distance = 1.0 - values if metric.greater_is_better else values
    result: Array = -np.log(np.maximum(distance, 0.5 / max(1, images)))
    return result


@dataclass(frozen=True)
class Prior:
    """Measured coefficients.

    Attributes:
        weights: of the features that `describe` names.
        kernel: variances and length scales of the Gaussian process of the rest; see `surrogate.py`.
        gain, uncertainty: by kind, at `RATES` and `FRACTIONS` of the epochs: how much the log error still changes
            until the last epoch, and the standard deviation of that. High rates begin badly and gain late.
        origin: what it was measured on.
    """

    weights: Mapping[str, float]
    kernel: Mapping[str, float]
    gain: Mapping[str, Sequence[Sequence[float]]]
    uncertainty: Mapping[str, Sequence[Sequence[float]]]
    origin: str = ""

    def mean(self, landscape: Landscape, points: Points) -> Array:
        """Expected log error of each configuration, over that of the best linear probe: [m]."""
        described = describe(landscape, points)
        total = np.zeros(len(points))
        for name, weight in self.weights.items():
            total += weight * described[name]
        return total

    def final(self, kinds: Ints, rates: Array, fractions: Array) -> tuple[Array, Array]:
        """(mean, standard deviation) of what the log error still gains after those fractions of the epochs.

        Args:
            kinds: indices into `KINDS`, [n].
            rates: log10 of the learning rates, [n]; outside of `RATES` the nearest counts.
            fractions: of the epochs that are done, 0..1, [n].
        """
        gain, uncertainty = np.zeros(len(kinds)), np.zeros(len(kinds))
        place = np.interp(rates, RATES, np.arange(len(RATES)))
        lower = np.minimum(place.astype(np.int64), len(RATES) - 2)
        for index, kind in enumerate(KINDS):
            for found, table in ((gain, self.gain[kind]), (uncertainty, self.uncertainty[kind])):
                for node in range(len(RATES) - 1):
                    of = (kinds == index) & (lower == node)
                    at = [np.interp(fractions[of], FRACTIONS, table[node + step]) for step in (0, 1)]
                    share = place[of] - node
                    found[of] = (1 - share) * at[0] + share * at[1]
        return gain, uncertainty

    def to_json(self) -> str:
        """As text; the inverse of `from_json`."""
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Prior":
        """From what `to_json` wrote."""
        return cls(**json.loads(text))


@cache
def shipped_prior() -> Prior:
    """The coefficients that come with autotransfer."""
    return Prior.from_json((files("autotransfer.search") / "prior.json").read_text(encoding="utf-8"))


def describe(landscape: Landscape, points: Points) -> dict[str, Array]:
    """What is known of configurations before they are trained, by name: each [m], most of them within -3..3."""
    source, k = points.source, points.transferred
    kind, depth = points.kinds(landscape), landscape.depths[points.source]
    transfers = k > 0
    level = np.maximum(k, 1) - 1
    anchor, probes = landscape.anchor, landscape.log_error(landscape.linear_probe)
    own = np.where(transfers, probes[source, level] - anchor, 0.0)
    best = np.where(transfers, np.nanmax(probes, axis=1)[source] - anchor, 0.0)
    rank = np.where(transfers, landscape.percentile[source, level] - 0.5, 0.0)
    top = depth - 1
    kept_depth = np.where(transfers & points.drop, level, top)
    size = np.log10(landscape.parameters[source, kept_depth])
    flops = landscape.flops[source, kept_depth]
    centre = float(np.nanmean(np.log10(landscape.parameters[np.arange(len(landscape.depths)), landscape.depths - 1])))
    frozen_flops = np.where(points.frozen > 0, landscape.flops[source, np.maximum(points.frozen, 1) - 1], 0.0)
    fresh = np.where(kind == KINDS.index("reinit"), 1 - landscape.flops[source, level] / flops, 0.0)
    images = np.log10(landscape.train_images / landscape.classes) - 1.3
    rate = points.rate - _USUAL_LEARNING_RATE
    described: dict[str, Array] = {
        "linear_probe": own,
        "linear_probe_of_source": best,
        "rank": rank,
        "size": np.where(transfers, size - centre, 0.0),
        "trained_share": np.where(transfers, 1 - frozen_flops / flops, 0.0),
        "fresh_share": fresh,
        "depth": np.where(transfers, k / depth - 0.6, 0.0),
    }
    for index, name in enumerate(KINDS):
        of = (kind == index).astype(float)
        described[name] = of
        described[f"{name} x rate"] = of * rate
        described[f"{name} x rate^2"] = of * rate**2
        described[f"{name} x images"] = of * images
        described[f"{name} x anchor"] = of * (anchor - 1.0)
        if name not in ("scratch", "head"):
            described[f"{name} x linear_probe"] = of * own
    return described
