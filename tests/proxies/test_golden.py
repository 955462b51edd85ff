"""Golden values made by public reference implementations, where the vectors lie beside the checkout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autotransfer.proxies import FeatureStatistics, compute_proxies
from autotransfer.proxies.etran import energy
from autotransfer.proxies.knn import knn
from autotransfer.proxies.logme import logme
from autotransfer.proxies.ncti import collapse_components
from autotransfer.proxies.ridge import linear_mse

VECTORS = Path(__file__).resolve().parents[3] / "shared" / "vectors" / "proxies.json"
pytestmark = pytest.mark.skipif(not VECTORS.exists(), reason="golden vectors are not beside this checkout")

PROXY_TARGETS = {
    "leep": "leep.thuml",
    "nce": "nce.thuml",
    "h_score": "oracle.hscore_ranksafe_rcond1e-10",
    "regularized_h_score": "reg_hscore.tllib",
    "logme": "oracle.logme_fp11_padded",
    "transrate": "transrate.tllib_eps1e-4",
    "gbc": "oracle.gbc_diagonal_pca64",
    "gbc_spherical": "oracle.gbc_spherical_google_pca64",
    "sfda": "sfda.sfda",
    "parc": "oracle.parc_full_rankbiserial",
    "lda": "etran.lda",
    "energy": "etran.energy_on_features_0.5bot",
    "knn": "oracle.knn_loo_l2_k5",
}


@pytest.fixture(scope="module")
def vectors() -> dict[str, Any]:
    return dict(json.loads(VECTORS.read_text()))


def softmax(Z: np.ndarray) -> np.ndarray:
    E = np.exp(Z - Z.max(axis=1, keepdims=True))
    return E / E.sum(axis=1, keepdims=True)


def blobs(generator: np.random.Generator, counts: list[int], D: int, separation: float) -> tuple[Any, Any]:
    y = np.repeat(np.arange(len(counts)), counts)
    centres = separation * generator.standard_normal((len(counts), D))
    X = centres[y] + generator.standard_normal((len(y), D))
    order = generator.permutation(len(y))
    return X[order], y[order]


def inputs(case: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """X, y, source logits and R of one case, by the recipe that travels with the vectors."""
    if case == "a":
        generator = np.random.default_rng(101)
        X, y = blobs(generator, [100] * 5, 64, 0.6)
    elif case == "b":
        generator = np.random.default_rng(102)
        X, y = blobs(generator, [100] * 10, 256, 0.1)
        X = np.maximum(X @ (generator.standard_normal((256, 256)) / 16.0), 0.0)
    else:
        from sklearn.datasets import load_digits

        generator = np.random.default_rng(107)
        digits = load_digits()
        X, y = digits.data.astype(np.float64), digits.target
    centres = 2.0 * generator.standard_normal((int(y.max()) + 1, 20))
    logits = centres[y] + 1.5 * generator.standard_normal((len(y), 20))
    weights = generator.standard_normal((X.shape[1], 2)) / np.sqrt(X.shape[1])
    return X, y, logits, X @ weights + 0.5 * generator.standard_normal((len(y), 2))


@pytest.mark.parametrize("case", ["a", "b", "g"])
def test_recipe_gives_the_published_inputs(vectors: dict[str, Any], case: str) -> None:
    X, y, logits, R = inputs(case)
    sums = vectors["_meta"]["checksums"][case]
    assert X.sum() == pytest.approx(sums["X_sum"], rel=1e-9)
    assert int(y @ np.arange(len(y))) == sums["y_dot_index"]
    assert (softmax(logits) ** 2).sum() == pytest.approx(sums["P_sumsq"], rel=1e-9)
    assert (R**2).sum() == pytest.approx(sums["R_sumsq"], rel=1e-9)


@pytest.mark.parametrize("case", ["a", "b", "g"])
def test_proxies_meet_their_targets(vectors: dict[str, Any], case: str) -> None:
    X, y, logits, _ = inputs(case)
    tolerances = {
        key: (relative, absolute) for rows in vectors["_targets"].values() for key, relative, absolute, _ in rows
    }
    values = compute_proxies(X, y, probabilities=softmax(logits), names=list(PROXY_TARGETS))
    for name, key in PROXY_TARGETS.items():
        relative, absolute = tolerances[key]
        assert values[name].value == pytest.approx(vectors[case][key], rel=relative, abs=absolute), name


@pytest.mark.parametrize("case", ["a", "b", "g"])
def test_components_and_regression_meet_their_targets(vectors: dict[str, Any], case: str) -> None:
    X, y, _, R = inputs(case)
    golden = vectors[case]
    parts = collapse_components(FeatureStatistics(X, y))
    tight = 1e-6 if case == "a" else 3e-3
    assert parts.seli == pytest.approx(golden["oracle.ncti_fullpca.seli"], rel=tight)
    assert parts.ncc == pytest.approx(golden["oracle.ncti_fullpca.ncc"], rel=tight)
    assert parts.log_variability == pytest.approx(golden["oracle.ncti_fullpca.log_vc"], rel=tight)
    assert knn(FeatureStatistics(X, y), 1) == pytest.approx(golden["oracle.knn_loo_l2_k1"], abs=1e-12)
    regression = FeatureStatistics(X, R)
    assert logme(regression) == pytest.approx(golden["oracle.logme_reg_fp11_padded"], rel=1e-6)
    assert linear_mse(regression) == pytest.approx(golden["oracle.linmse_lam0"], rel=1e-6)
    assert linear_mse(regression, 1.0) == pytest.approx(golden["oracle.linmse_lam1"], rel=1e-6)


@pytest.mark.parametrize("case", ["a", "b", "g"])
def test_energy_of_logits_meets_its_target(vectors: dict[str, Any], case: str) -> None:
    _, y, logits, _ = inputs(case)
    statistics = FeatureStatistics(logits, y)
    assert energy(statistics, share=1.0) == pytest.approx(vectors[case]["etran.energy_on_logits_100top"], rel=1e-9)
    assert energy(statistics) == pytest.approx(vectors[case]["etran.energy_on_logits_0.5bot"], rel=1e-6)


def test_stochastic_proxies_are_within_their_seed_spread(vectors: dict[str, Any]) -> None:
    X, y, _, _ = inputs("a")
    values = compute_proxies(X, y, names=["n_leep", "logistic_cv"])
    spread = vectors["_meta"]["seed_spread"]["a"]["nleep.sfda_5C_noLog"]
    assert abs(values["n_leep"].value - spread["seed_mean"]) < 4 * spread["seed_std"] + 0.02
    assert values["logistic_cv"].value == pytest.approx(vectors["a"]["linprobe.sklearn_cv5_C1.acc"], abs=0.03)
