"""One suite over every registered proxy: the contract of ARCHITECTURE, degenerate input included."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from examples import make_example

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
    "zeros and ones": ((BASE.X > 1.5).astype(float), BASE.y),
    "one feature far larger than the others": (BASE.X * np.array([1e12, 1, 1, 1, 1, 1]), np.arange(48) // 2),
    "mean far from zero": (BASE.X + 1e6, BASE.y),
    "all classes of one sample": (BASE.X[:5], np.arange(5)),
    "two samples": (BASE.X[:2], np.arange(2)),
}
SCALES = [1e3, 1e6, 1e10, 1e30, 1e40, 1e-6, 1e-30, 1e-60]


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
        assert part in text or proxy.name == "knn", part  # the registered one refers to `knn`


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


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("kind", [np.float64, np.float32])
def test_degenerate_input_of_any_scale_gives_finite_values(kind: type, case: str) -> None:
    names = [name for name in NAMES if name not in ("n_leep", "logistic_cv", "leep", "nce")]
    X, y = DEGENERATE[case]
    for scale in SCALES:
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = X.astype(kind) * kind(scale)
        if np.isfinite(scaled).all():  # not beyond float32
            result = compute_proxies(scaled, y, names=names)
            assert all(math.isfinite(one.value) for one in result.values()), scale


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
        ({"features": BASE.X * 1e-160}, "rescale"),
        ({"features": BASE.X.astype(str)}, "real numbers"),
        ({"features": BASE.X * 1j}, "real numbers"),
        ({"features": torch.from_numpy(BASE.X) * 1j}, "real numbers"),
        ({"labels": np.array(list("abc"))[BASE.y]}, "encode classes as integers"),
        ({"labels": np.where(BASE.y == 0, np.inf, BASE.y), "task": "classification"}, "must be integers"),
        ({"probabilities": BASE.P / 3}, "sum to 1"),
    ],
)
def test_unusable_input_is_a_typed_error(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"features": BASE.X, "labels": BASE.y, "probabilities": BASE.P, **change}
    features, labels = arguments.pop("features"), arguments.pop("labels")
    arguments["names"] = ["leep" if "probabilities" in change else "logme"]
    with pytest.raises(ProxyError, match=message):
        compute_proxies(features, labels, **arguments)  # type: ignore[arg-type]


def test_few_samples_are_declared() -> None:
    wide = make_example(20, 50, 3, 0.5, seed=2)
    result = compute_proxies(wide.X, wide.y, names=["logme", "knn"])
    assert not result["logme"].trusted and result["knn"].trusted
    assert result["logme"].reason == "n < D (20 samples, 50 features)"


@pytest.mark.parametrize("name", ["transrate", "lda", "sfda", "gbc", "ncti", "h_score"])
def test_a_proxy_that_ranks_wide_noise_high_says_when_it_has_too_few_samples(name: str) -> None:
    one = make_example(60, 50, 3, 0.5, seed=2)
    found = compute_proxies(one.X, one.y, names=[name])[name]
    assert not found.trusted and "60 samples, 50 features" in str(found.reason)


def test_energy_is_for_information_only() -> None:
    assert "labels" in str(compute_proxies(BASE.X, BASE.y, names=["energy"])["energy"].reason)


def test_the_default_is_what_is_defined_for_the_target() -> None:
    assert list(compute_proxies(BASE.X, BASE.y)) == list(DEFAULT_PROXIES)
    assert list(compute_proxies(BASE.X, BASE.X[:, 0])) == ["logme"]
    assert list(compute_proxies(BASE.X, BASE.X[:, 0], probabilities=BASE.P, names=["h_score"])) == ["h_score"]


@pytest.mark.filterwarnings("error")
def test_any_memory_layout_is_read() -> None:
    frozen = BASE.X.copy()
    frozen.flags.writeable = False
    expected = compute_proxies(BASE.X, BASE.y)["logme"].value
    assert compute_proxies(frozen, BASE.y)["logme"].value == expected
    assert compute_proxies(BASE.X.astype(">f8"), BASE.y.astype(">i4"))["logme"].value == expected
    assert compute_proxies(np.asfortranarray(BASE.X), BASE.y)["logme"].value == expected
    assert compute_proxies(BASE.X[::-1], BASE.y[::-1])["logme"].value == pytest.approx(expected, rel=1e-12)


@each(tuple(proxy for proxy in PROXIES if "multilabel" in proxy.tasks))
def test_a_label_that_never_occurs_changes_nothing(proxy: Proxy) -> None:
    labels = np.eye(3, dtype=int)[BASE.y]
    padded = np.column_stack([labels, np.zeros(48, int), np.ones(48, int)])
    values = [compute_proxies(BASE.X, Y, names=[proxy.name])[proxy.name].value for Y in (labels, padded)]
    assert values[0] == pytest.approx(values[1], rel=1e-9)


@pytest.mark.parametrize("name", ["h_score", "regularized_h_score", "ridge_loo"])
def test_the_units_of_a_target_column_do_not_matter(name: str) -> None:
    Y = np.random.default_rng(1).standard_normal((48, 2)) + BASE.X[:, :2]
    values = [compute_proxies(BASE.X, Y * [1, unit], names=[name])[name].value for unit in (1, 1e6)]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_import_does_not_load_scikit_learn() -> None:
    code = "import sys, autotransfer.proxies; print('sklearn' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "False"
