"""Every proxy equals its published formula, computed slowly and independently."""

from __future__ import annotations

import numpy as np
import pytest
import slow_formulas as slow
from examples import Example, make_example

from autotransfer.proxies import FeatureStatistics, compute_proxies
from autotransfer.proxies.h_score import h_score
from autotransfer.proxies.knn import knn
from autotransfer.proxies.logme import logme
from autotransfer.proxies.ncti import collapse_components
from autotransfer.proxies.ridge import linear_mse, ridge_loo


@pytest.mark.parametrize("name", slow.OF_FEATURES)
def test_proxy_equals_its_slow_formula(name: str, example: Example) -> None:
    if name == "sfda" and example.X.shape[0] <= example.X.shape[1] + example.y.max() + 1:
        pytest.skip("the explicit inverse of the slow formula is singular where n is about D or less")
    if name in ("parc", "sfda") and example.X.shape[1] == 1:
        pytest.skip("a Pearson correlation, and np.cov's matrix, need two features")
    expected = slow.OF_FEATURES[name](example.X, example.y)
    value = compute_proxies(example.X, example.y, names=[name])[name].value
    assert value == pytest.approx(expected, rel=1e-7, abs=1e-12)


@pytest.mark.parametrize("name", ["leep", "nce"])
def test_probability_proxy_equals_its_slow_formula(name: str, example: Example) -> None:
    value = compute_proxies(example.X, example.y, probabilities=example.P, names=[name])[name].value
    assert value == pytest.approx(getattr(slow, name)(example.P, example.y), rel=1e-10)


def test_spherical_gbc_counts_the_determinant_once() -> None:
    one = make_example(90, 6, 3, 0.5, seed=2)
    scale = np.ones(6)
    expected = slow.gbc(one.X * scale, one.y, spherical=True)
    assert compute_proxies(one.X, one.y, names=["gbc_spherical"])["gbc_spherical"].value == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(200, 10, 4, 0.5), (300, 80, 5, 0.3)])
def test_ncti_components_equal_discriminant_analysis(shape: tuple[int, int, int, float]) -> None:
    one = make_example(*shape, seed=3)
    parts = collapse_components(FeatureStatistics(one.X, one.y))
    seli, ncc, variability = slow.ncti_components(one.X, one.y)
    assert parts.seli == pytest.approx(seli, rel=1e-6)
    assert parts.ncc == pytest.approx(ncc, rel=1e-6)
    assert parts.log_variability == pytest.approx(variability, rel=1e-6)


@pytest.mark.parametrize("penalty", [0.01, 1.0, 30.0])
def test_ridge_equals_refitting_without_each_sample(example: Example, penalty: float) -> None:
    statistics = FeatureStatistics(example.X, example.y)
    assert ridge_loo(statistics, penalty) == pytest.approx(slow.ridge_loo(example.X, example.y, penalty), abs=1e-12)


def test_knn_bounded_equals_knn_up_to_its_bound() -> None:
    one = make_example(120, 5, 4, 0.5, seed=5)
    statistics = FeatureStatistics(one.X, one.y)
    assert knn(statistics, exact=False) == knn(statistics) == slow.knn(one.X, one.y)
    assert knn(statistics, neighbours=1) == slow.knn(one.X, one.y, k=1)


def test_knn_bounded_is_near_knn_above_its_bound() -> None:
    one = make_example(6_000, 4, 4, 0.6, seed=5)
    statistics = FeatureStatistics(one.X, one.y)
    assert knn(statistics, exact=False) == pytest.approx(knn(statistics), abs=0.05)


@pytest.mark.parametrize("shape", [(80, 6, 3, 0.5), (25, 40, 3, 0.5)])
def test_regression_targets(shape: tuple[int, int, int, float]) -> None:
    one = make_example(*shape, seed=11)
    generator = np.random.default_rng(0)
    Y = one.X[:, :2] @ generator.standard_normal((2, 3)) + 0.3 * generator.standard_normal((len(one.X), 3))
    statistics = FeatureStatistics(one.X, Y)
    assert logme(statistics) == pytest.approx(slow.logme(one.X, Y), rel=1e-8)
    if shape[0] > shape[1]:
        assert h_score(statistics) == pytest.approx(slow.canonical_h_score(one.X, Y), rel=1e-8)
    left_out = slow.ridge_left_out(one.X, Y, 0.5)
    expected = np.mean(1 - ((Y - left_out) ** 2).sum(0) / ((Y - Y.mean(0)) ** 2).sum(0))
    assert ridge_loo(statistics, 0.5) == pytest.approx(expected, rel=1e-8)


def test_linear_mse_equals_least_squares() -> None:
    one = make_example(60, 5, 3, 0.5, seed=13)
    Y = one.X @ np.arange(10.0).reshape(5, 2) + np.random.default_rng(1).standard_normal((60, 2))
    design = np.column_stack([one.X, np.ones(60)])
    residual = Y - design @ np.linalg.lstsq(design, Y)[0]
    assert linear_mse(FeatureStatistics(one.X, Y)) == pytest.approx(-(residual**2).sum() / 60)


def test_label_sets_are_scored_column_by_column() -> None:
    one = make_example(80, 6, 3, 0.5, seed=17)
    sets = (one.X[:, :4] > 1.5).astype(np.int64)
    statistics = FeatureStatistics(one.X, sets)
    assert statistics.targets.task == "multilabel"
    assert logme(statistics) == pytest.approx(slow.logme(one.X, sets.astype(np.float64)), rel=1e-8)
    assert h_score(statistics) == pytest.approx(slow.canonical_h_score(one.X, sets.astype(np.float64)), rel=1e-8)


def test_h_score_of_one_hot_columns_is_the_class_formula() -> None:
    one = make_example(80, 6, 3, 0.5, seed=19)
    classes = h_score(FeatureStatistics(one.X, one.y))
    assert h_score(FeatureStatistics(one.X, slow.one_hot(one.y), task="regression")) == pytest.approx(classes)


@pytest.mark.parametrize("features", ["two", "zeros and ones", "repeated rows"])
def test_parc_ranks_equal_distances_alike(features: str) -> None:
    one = make_example(40, 6, 3, 0.5, seed=4)
    X = {"two": one.X[:, :2], "zeros and ones": (one.X > 1.5).astype(float), "repeated rows": one.X.repeat(2, 0)}[
        features
    ]
    y = one.y.repeat(2) if features == "repeated rows" else one.y
    order = np.random.default_rng(0).permutation(len(y))
    value = compute_proxies(X, y, names=["parc"])["parc"].value
    assert value == pytest.approx(slow.parc(X, y), abs=1e-6)
    assert value == pytest.approx(compute_proxies(X[order], y[order], names=["parc"])["parc"].value, abs=1e-9)


@pytest.mark.parametrize("samples", [60, 100, 200])
def test_ridge_in_float32_equals_refits_where_samples_are_few(samples: int) -> None:
    one = make_example(samples, 59, 3, 0.5, seed=6)
    X = one.X.astype(np.float32)
    target = one.X[:, 0] + np.random.default_rng(2).standard_normal(samples)
    for penalty in (1e-3, 1.0):
        single, double = (ridge_loo(FeatureStatistics(Z, target), penalty) for Z in (X, X.astype(np.float64)))
        assert single == pytest.approx(double, rel=1e-5, abs=1e-6)


def test_transrate_of_scaled_features_is_that_of_its_eigenvalues() -> None:
    one = make_example(48, 6, 3, 0.6, seed=23)
    for scale in (1.0, 1e3, 1e5, 1e7):
        X = scale * one.X
        doubled = compute_proxies(np.column_stack([X, X]), one.y, names=["transrate"])["transrate"].value
        # the columns twice: every eigenvalue twice as large, the others zero
        assert doubled == pytest.approx(slow.transrate(np.sqrt(2) * X, one.y), rel=1e-6)
