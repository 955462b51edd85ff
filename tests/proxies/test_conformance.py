"""One suite over every registered proxy: the contract of ARCHITECTURE, degenerate input included."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import make_example

from autotransfer.errors import ProxyError
from autotransfer.proxies import DEFAULT_PROXIES, Proxy, compute_proxies, get_proxy, list_proxies

NAMES = [
    "logme",
    "h_score",
    "regularized_h_score",
    "transrate",
    "gbc",
    "gbc_spherical",
    "sfda",
    "ncti",
    "parc",
    "lda",
    "energy",
    "knn",
    "ridge_loo",
    "logistic_cv",
    "variance_ratio",
    "leep",
    "nce",
    "n_leep",
]
PROXIES = list_proxies()
BASE = make_example(48, 6, 3, 0.6, seed=23)


def uniform(rows: int) -> np.ndarray:
    return np.full((rows, 5), 0.2)


DEGENERATE = {
    "constant feature": (np.column_stack([BASE.X, np.full(48, 3.0)]), BASE.y),
    "duplicate columns": (np.column_stack([BASE.X, BASE.X]), BASE.y),
    "fewer samples than features": (
        make_example(20, 50, 3, 0.5, seed=2).X,
        make_example(20, 50, 3, 0.5, seed=2).y,
    ),
    "one feature": (BASE.X[:, :1], BASE.y),
    "a class of one sample": (BASE.X, np.where(np.arange(48) == 5, 3, BASE.y)),
    "two classes": (BASE.X, (BASE.y > 0).astype(np.int64)),
    "all rows equal": (np.ones((12, 4), dtype=np.float32) * 0.3, np.arange(12) % 3),
    "all rows zero": (np.zeros((12, 4)), np.arange(12) % 3),
    "rows equal within classes": (np.eye(3, 4)[np.arange(12) % 3], np.arange(12) % 3),
    "float16": (BASE.X.astype(np.float16), BASE.y),
    "huge scale": (BASE.X * 1e30, BASE.y),
    "tiny scale": (BASE.X * 1e-30, BASE.y),
    "huge scale, float32": ((BASE.X * 1e30).astype(np.float32), BASE.y),
    "tiny scale, float32": ((BASE.X * 1e-30).astype(np.float32), BASE.y),
    "mean far from zero": (BASE.X + 1e6, BASE.y),
    "all classes of one sample": (BASE.X[:5], np.arange(5)),
    "two samples": (BASE.X[:2], np.arange(2)),
}


def each(values: tuple[Proxy, ...]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("proxy", values, ids=[one.name for one in values])


def test_registry_holds_exactly_the_documented_names() -> None:
    assert sorted(proxy.name for proxy in PROXIES) == sorted(NAMES)
    assert set(DEFAULT_PROXIES) <= set(NAMES)
    assert all(get_proxy(name).requires == "features" for name in DEFAULT_PROXIES), "measurable on every source"


@each(PROXIES)
def test_entry_is_complete_and_documented(proxy: Proxy) -> None:
    measure = proxy.of_features if proxy.requires == "features" else proxy.of_probabilities
    assert measure is not None and proxy.title and proxy.paper and proxy.tasks
    text = inspect.getdoc(measure) or ""
    for part in ("Returns:", "Complexity", "nvarian", "Misleads"):
        assert part in text or proxy.name in ("gbc_spherical", "knn"), part  # they refer to their twin


@each(PROXIES)
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_input_gives_a_finite_value_or_a_typed_error(proxy: Proxy, case: str) -> None:
    X, y = DEGENERATE[case]
    try:
        result = compute_proxies(X, y, probabilities=uniform(len(y)), names=[proxy.name])[proxy.name]
    except ProxyError as error:
        assert proxy.name in str(error)
        assert proxy.name == "logistic_cv" and len(y) in (2, 5)
    else:
        assert math.isfinite(result.value)
        assert result.trusted == (result.reason is None)
        assert result.seconds >= 0


@each(PROXIES)
def test_one_class_and_nan_are_typed_errors(proxy: Proxy) -> None:
    with pytest.raises(ProxyError, match="one class"):
        compute_proxies(BASE.X, np.zeros(48, dtype=int), probabilities=uniform(48), names=[proxy.name])
    for bad in (np.nan, np.inf):
        X = BASE.X.copy()
        X[7, 3] = bad
        with pytest.raises(ProxyError, match="NaN or infinite"):
            compute_proxies(X, BASE.y, probabilities=uniform(48), names=[proxy.name])


@each(PROXIES)
def test_is_deterministic_and_leaves_its_input_alone(proxy: Proxy) -> None:
    order = np.argsort(BASE.y, kind="stable")  # class order: no copy is made of such input
    X, y, P = BASE.X[order], BASE.y[order], BASE.P[order]
    before = X.copy()
    first, second = (compute_proxies(X, y, probabilities=P, names=[proxy.name])[proxy.name] for _ in range(2))
    assert first.value == second.value
    assert np.array_equal(X, before)


@each(PROXIES)
def test_torch_and_numpy_and_float32_agree(proxy: Proxy) -> None:
    X, names = BASE.X.astype(np.float32), [proxy.name]
    double = compute_proxies(X.astype(np.float64), BASE.y, probabilities=BASE.P, names=names)[proxy.name].value
    single = compute_proxies(X, BASE.y, probabilities=BASE.P, names=names)[proxy.name].value
    tensor = compute_proxies(
        torch.from_numpy(X), torch.from_numpy(BASE.y), probabilities=torch.from_numpy(BASE.P), names=names
    )[proxy.name].value
    assert tensor == single
    assert single == pytest.approx(double, rel=1e-5, abs=1e-6)


@each(tuple(proxy for proxy in PROXIES if "regression" not in proxy.tasks))
def test_other_targets_are_a_clear_error_where_undefined(proxy: Proxy) -> None:
    with pytest.raises(ProxyError, match=f"{proxy.name} is not defined for regression"):
        compute_proxies(BASE.X, BASE.X[:, 0], probabilities=BASE.P, names=[proxy.name])
    with pytest.raises(ProxyError, match=f"{proxy.name} is not defined for multilabel"):
        compute_proxies(BASE.X, (BASE.X > 1).astype(int), probabilities=BASE.P, names=[proxy.name])


@each(tuple(proxy for proxy in PROXIES if "regression" in proxy.tasks))
def test_other_targets_are_scored_where_defined(proxy: Proxy) -> None:
    signal, noise = BASE.X[:, 0], np.random.default_rng(0).standard_normal(48)
    scores = [compute_proxies(BASE.X, t, names=[proxy.name])[proxy.name].value for t in (noise, signal)]
    assert scores[0] < scores[1]


def test_computing_together_equals_computing_alone() -> None:
    names = [name for name in NAMES if name not in ("n_leep", "logistic_cv")]
    together = compute_proxies(BASE.X, BASE.y, probabilities=BASE.P, names=names)
    assert list(together) == names
    for name in names:
        alone = compute_proxies(BASE.X, BASE.y, probabilities=BASE.P, names=[name])[name]
        assert alone.value == together[name].value


def test_without_probabilities_those_proxies_are_left_out() -> None:
    result = compute_proxies(BASE.X, BASE.y)
    assert set(result) == set(DEFAULT_PROXIES) - {"leep", "nce"}


def test_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(ProxyError, match=r"Did you mean 'h_score'\?.*logme"):
        get_proxy("hscore")
    with pytest.raises(ProxyError, match="Known proxies"):
        compute_proxies(BASE.X, BASE.y, names=["zzz"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": BASE.X[:, 0]}, "must be"),
        ({"features": BASE.X[:10]}, "one per feature row"),
        ({"labels": BASE.y[:, None].repeat(2, 1)}, "multi-label targets must be 0 or 1"),
        ({"probabilities": uniform(10)}, "probabilities must be"),
        ({"probabilities": uniform(48) * 9}, "between 0 and 1"),
        ({"probabilities": np.full((48, 5), np.nan)}, "between 0 and 1"),
        ({"dimension": 0}, "at least 1"),
        ({"features": BASE.X * 1e200}, "rescale"),
    ],
)
def test_unusable_input_is_a_typed_error(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"features": BASE.X, "labels": BASE.y, "probabilities": BASE.P, **change}
    features, labels = arguments.pop("features"), arguments.pop("labels")
    with pytest.raises(ProxyError, match=message):
        compute_proxies(features, labels, **arguments)  # type: ignore[arg-type]


def test_few_samples_are_declared() -> None:
    wide = make_example(20, 50, 3, 0.5, seed=2)
    result = compute_proxies(wide.X, wide.y, names=["logme", "knn"])
    assert not result["logme"].trusted and result["knn"].trusted
    assert result["logme"].reason == "n < D (20 samples, 50 features)"


def test_import_does_not_load_scikit_learn() -> None:
    code = "import sys, autotransfer.proxies; print('sklearn' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "False"
