"""Compute proxies by name on shared statistics."""

from __future__ import annotations

import difflib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from autotransfer.errors import ProxyError
from autotransfer.proxies.catalogue import CATALOGUE, Proxy
from autotransfer.proxies.statistics import FeatureStatistics
from autotransfer.proxies.targets import read_array
from autotransfer.task import Task

DEFAULT_PROXIES: tuple[str, ...] = ("logme", "knn", "ncti")
"""The proxies that run in every study, chosen by evidence (docs/proxies.md): on 264 fine-tuned candidates LogME,
kNN and NCTI rank best alone, add most to the static rankings, and together with the size do better than all
proxies together. They share one decomposition and err differently: LogME sees what a linear model could do, kNN what
the neighbourhoods say, NCTI how far the classes have collapsed.
"""


_LARGEST_GAP = 0.02


@dataclass(frozen=True)
class ProxyValue:
    """One measured proxy.

    Attributes:
        value: Higher is better; always finite.
        trusted: False where the value is known to mislead on this input.
        reason: Why it is not trusted, else None.
        seconds: Wall-clock time, shared statistics counted where they were first needed.
    """

    value: float
    trusted: bool
    reason: str | None
    seconds: float


def list_proxies() -> tuple[Proxy, ...]:
    """Every registered proxy, in the order in which tables show them."""
    return CATALOGUE


def get_proxy(name: str) -> Proxy:
    """The proxy of this name.

    Raises:
        ProxyError: No such proxy; the message lists the names and the nearest one.
    """
    known = {proxy.name: proxy for proxy in CATALOGUE}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ProxyError(f"unknown proxy {name!r}.{hint} Known proxies: {', '.join(known)}.")


def compute_proxies(
    features: torch.Tensor | np.ndarray,
    labels: torch.Tensor | np.ndarray,
    *,
    probabilities: torch.Tensor | np.ndarray | None = None,
    names: Sequence[str] | None = None,
    task: Task | None = None,
    dimension: int | None = None,
) -> dict[str, ProxyValue]:
    """Measure proxies of one (source, level), all on one set of statistics.

    Args:
        features: [n, D] float16, float32 or float64.
        labels: [n] integer classes, [n, L] 0/1 label sets, or real values [n] or [n, T].
        probabilities: [n, S] class probabilities of the source's own classifier, where it has one. Proxies
            that need them are left out of the result without it.
        names: Which proxies; None takes those of `DEFAULT_PROXIES` that are defined for the target.
        task: Overrides the task that the labels' dtype and shape say.
        dimension: Measure on that many principal components, scaled to mean variance 1
            (`FeatureStatistics.reduced`), so that values compare across sources of different width. None
            measures the features as they are.

    Returns:
        Name to value, in the order of `names`.

    Raises:
        ProxyError: Unknown name, unusable input (one class, NaN, wrong shapes), or a proxy that is not
            defined for this kind of target.

    Example:
        >>> import numpy as np
        >>> generator = np.random.default_rng(0)
        >>> labels = np.repeat([0, 1], 50)
        >>> features = generator.standard_normal((100, 8)) + 2 * labels[:, None]
        >>> compute_proxies(features, labels, names=["knn"])["knn"].value > 0.9
        True
    """
    proxies = [get_proxy(name) for name in names or ()]
    statistics = FeatureStatistics(features, labels, task=task)
    if names is None:
        proxies = [one for one in map(get_proxy, DEFAULT_PROXIES) if statistics.targets.task in one.tasks]
    for proxy in proxies:
        if statistics.targets.task not in proxy.tasks:
            needs = " or ".join(proxy.tasks)
            raise ProxyError(f"{proxy.name} is not defined for {statistics.targets.task}, only for {needs}.")
    checked = given_classes = None
    if probabilities is not None and any(proxy.of_probabilities for proxy in proxies):
        checked = _read_probabilities(probabilities, statistics)
        given_classes = statistics.targets.given_labels
    if dimension is not None:
        statistics = statistics.reduced(dimension)
    result: dict[str, ProxyValue] = {}
    for proxy in proxies:
        started = time.perf_counter()
        if proxy.of_features is not None:
            try:
                value = proxy.of_features(statistics)
            except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
                raise ProxyError(f"{proxy.name} cannot be solved on these features: {error}") from error
        elif proxy.of_probabilities is not None and checked is not None and given_classes is not None:
            value = proxy.of_probabilities(checked, given_classes)
        else:
            continue
        if not math.isfinite(value):
            raise ProxyError(f"{proxy.name} has no finite value; rescale features and targets to about unit size.")
        reason = _doubt(proxy, statistics)
        result[proxy.name] = ProxyValue(value, reason is None, reason, time.perf_counter() - started)
    return result


def _read_probabilities(probabilities: torch.Tensor | np.ndarray, statistics: FeatureStatistics) -> torch.Tensor:
    """Checked probabilities in the caller's order, on the features' device."""
    given = read_array(probabilities, "probabilities").to(statistics.device)
    if given.ndim != 2 or given.shape[0] != statistics.samples or given.shape[1] < 1:
        raise ProxyError(f"probabilities must be [{statistics.samples}, S] but have shape {tuple(given.shape)}.")
    if given.dtype not in (torch.float32, torch.float64):
        given = given.to(torch.float32)
    low, high = torch.aminmax(given)
    if not (float(low) >= 0.0 and float(high) <= 1.0 + 1e-3):
        raise ProxyError("probabilities must lie between 0 and 1; pass softmax outputs, not logits.")
    if float((given.sum(1) - 1).abs().max()) > _LARGEST_GAP:
        raise ProxyError("probabilities must sum to 1 in every row; pass softmax outputs over all classes.")
    return given


def _doubt(proxy: Proxy, statistics: FeatureStatistics) -> str | None:
    """Why this proxy misleads on this input, or None."""
    if proxy.never_trusted:
        return proxy.never_trusted
    if not proxy.samples_per_dimension:
        return None
    counted = min(statistics.dimension, proxy.counted_dimensions or statistics.dimension)
    classes = statistics.classes if proxy.per_class else 1
    if statistics.samples >= proxy.samples_per_dimension * counted * classes:
        return None
    factor = "" if proxy.samples_per_dimension == 1 else f"{proxy.samples_per_dimension:g} "
    what = f"{statistics.samples} samples, {statistics.dimension} features"
    if proxy.per_class:
        return f"n < {factor}C D ({what}, {statistics.classes} classes)"
    return f"n < {factor}D ({what})" if counted == statistics.dimension else f"n < {factor}x {counted} ({what})"
