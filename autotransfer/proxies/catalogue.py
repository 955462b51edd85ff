"""Every proxy by its name: the names that `score`, the YAML spaces and MLflow (`proxy.<name>`) use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from autotransfer.proxies.etran import energy, lda
from autotransfer.proxies.gbc import gbc, gbc_spherical
from autotransfer.proxies.h_score import h_score, regularized_h_score
from autotransfer.proxies.knn import knn
from autotransfer.proxies.leep import leep, nce
from autotransfer.proxies.logistic import logistic_cv
from autotransfer.proxies.logme import logme
from autotransfer.proxies.n_leep import n_leep
from autotransfer.proxies.ncti import ncti
from autotransfer.proxies.parc import parc
from autotransfer.proxies.ridge import ridge_loo
from autotransfer.proxies.sfda import sfda
from autotransfer.proxies.statistics import FeatureStatistics
from autotransfer.proxies.transrate import transrate
from autotransfer.proxies.variance_ratio import variance_ratio
from autotransfer.task import Task

_CLASSES: tuple[Task, ...] = ("classification",)
_ANY_TARGET: tuple[Task, ...] = ("classification", "multilabel", "regression")


@dataclass(frozen=True)
class Proxy:
    """One proxy: what it is called, what it needs, and the function that measures it.

    Attributes:
        name: Registry name.
        title: What a table or a figure calls it.
        paper: Authors, venue, year.
        requires: What it is computed from.
        tasks: Targets that it is defined for.
        of_features: statistics -> value, where it requires features.
        of_probabilities: (probabilities [n, S], classes [n]) -> value, where it requires those.
        samples_per_dimension: Not to be trusted under this many samples for each feature dimension: then it
            ranks wide noise above a real signal.
        counted_dimensions: At most so many dimensions count for that (those that work on principal components).
        per_class: Whether every class needs that many samples.
        never_trusted: Why it is for information only; empty for the others.
    """

    name: str
    title: str
    paper: str
    requires: Literal["features", "probabilities"]
    tasks: tuple[Task, ...]
    of_features: Callable[[FeatureStatistics], float] | None = None
    of_probabilities: Callable[[torch.Tensor, torch.Tensor], float] | None = None
    samples_per_dimension: float = 0.0
    counted_dimensions: int | None = None
    per_class: bool = False
    never_trusted: str = ""


def bounded_knn(statistics: FeatureStatistics) -> float:
    """`knn` with k = 5, its cost bounded above 5,000 samples."""
    return knn(statistics, neighbours=5, exact=False)


def _of_features(
    name: str,
    title: str,
    paper: str,
    measure: Callable[[FeatureStatistics], float],
    tasks: tuple[Task, ...] = _CLASSES,
    **trust: Any,
) -> Proxy:
    return Proxy(name, title, paper, "features", tasks, measure, None, **trust)


def _of_probabilities(
    name: str, title: str, paper: str, measure: Callable[[torch.Tensor, torch.Tensor], float]
) -> Proxy:
    return Proxy(name, title, paper, "probabilities", _CLASSES, None, measure)


_COMPONENTS: dict[str, Any] = {"samples_per_dimension": 2.0, "counted_dimensions": 64}
CATALOGUE: tuple[Proxy, ...] = (
    _of_features("logme", "LogME", "You et al., ICML 2021", logme, _ANY_TARGET, samples_per_dimension=1.0),
    _of_features("h_score", "H-score", "Bao et al., ICIP 2019", h_score, _ANY_TARGET, samples_per_dimension=10.0),
    _of_features(
        "regularized_h_score",
        "H-score, regularised",
        "Ibrahim et al., ECML PKDD 2022",
        regularized_h_score,
        _ANY_TARGET,
        samples_per_dimension=1.0,
    ),
    _of_features(
        "transrate", "TransRate", "Huang et al., ICML 2022", transrate, samples_per_dimension=1.0, per_class=True
    ),
    _of_features("gbc", "GBC, diagonal", "Pandy et al., CVPR 2022", gbc, **_COMPONENTS),
    _of_features("gbc_spherical", "GBC, spherical", "Pandy et al., CVPR 2022", gbc_spherical, **_COMPONENTS),
    _of_features("sfda", "SFDA", "Shao et al., ECCV 2022", sfda, samples_per_dimension=4.0),
    _of_features("ncti", "NCTI", "Wang et al., ICCV 2023", ncti, **_COMPONENTS),
    _of_features("parc", "PARC", "Bolya et al., NeurIPS 2021", parc),
    _of_features("lda", "ETran LDA", "Gholami et al., ICCV 2023", lda, samples_per_dimension=2.0),
    _of_features(
        "energy", "ETran energy", "Gholami et al., ICCV 2023", energy, never_trusted="it does not look at the labels"
    ),
    _of_features("knn", "kNN leave-one-out", "Cover and Hart, IEEE TIT 1967", bounded_knn),
    _of_features("ridge_loo", "Ridge leave-one-out", "Allen, Technometrics 1974", ridge_loo, _ANY_TARGET),
    _of_features("logistic_cv", "Logistic regression, cross-validated", "Cox, JRSS B 1958", logistic_cv),
    _of_features("variance_ratio", "Between/within variance", "Fisher, Annals of Eugenics 1936", variance_ratio),
    _of_probabilities("leep", "LEEP", "Nguyen et al., ICML 2020", leep),
    _of_probabilities("nce", "NCE", "Tran et al., ICCV 2019", nce),
    _of_features("n_leep", "N-LEEP", "Li et al., CVPR 2021", n_leep),
)
