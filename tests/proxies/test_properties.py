"""What holds for any input: invariances, monotonicity, finiteness."""

from __future__ import annotations

import numpy as np
import pytest
from examples import make_example
from hypothesis import given, settings
from hypothesis import strategies as st

from autotransfer.proxies import DEFAULT_PROXIES, compute_proxies, list_proxies

SLOW = {"n_leep", "logistic_cv"}
FAST = tuple(proxy.name for proxy in list_proxies() if proxy.name not in SLOW)
ROTATION_INVARIANT = tuple(name for name in FAST if name not in ("parc", "energy", "sfda"))
SCALE_INVARIANT = ("h_score", "regularized_h_score", "knn", "ridge_loo", "variance_ratio", "parc")
SCALE_DEPENDENT = ("transrate", "lda", "energy", "sfda")

FEATURE_PROXIES = tuple(p.name for p in list_proxies() if p.requires == "features" and p.name not in SLOW)

seeds = st.integers(0, 10_000)
few = settings(max_examples=12, deadline=None)


def values(X: np.ndarray, y: np.ndarray, P: np.ndarray, names: tuple[str, ...] = FAST) -> dict[str, float]:
    return {name: one.value for name, one in compute_proxies(X, y, probabilities=P, names=names).items()}


def assert_same(left: dict[str, float], right: dict[str, float], relative: float = 1e-6) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert right[name] == pytest.approx(value, rel=relative, abs=1e-9), name


@given(seed=seeds)
@few
def test_sample_order_does_not_matter(seed: int) -> None:
    one = make_example(50, 8, 3, 0.5, seed)
    order = np.random.default_rng(seed).permutation(50)
    assert_same(values(one.X, one.y, one.P), values(one.X[order], one.y[order], one.P[order]))


@given(seed=seeds)
@few
def test_class_names_do_not_matter(seed: int) -> None:
    one = make_example(50, 8, 3, 0.5, seed)
    renamed = np.array([40, -7, 12])[one.y]
    assert_same(values(one.X, one.y, one.P), values(one.X, renamed, one.P))


@given(seed=seeds, wide=st.booleans())
@few
def test_rotation_does_not_matter(seed: int, wide: bool) -> None:
    one = make_example(50, 60 if wide else 8, 3, 0.5, seed)
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((one.X.shape[1],) * 2))[0]
    rotated = values(one.X @ rotation, one.y, one.P, ROTATION_INVARIANT)
    assert_same(values(one.X, one.y, one.P, ROTATION_INVARIANT), rotated, 1e-5)


@given(seed=seeds, exponent=st.integers(-6, 6))
@few
def test_scaling_does_not_matter_where_documented(seed: int, exponent: int) -> None:
    one = make_example(50, 8, 3, 0.5, seed)
    scaled = one.X * 2.0 ** (4 * exponent)
    assert_same(values(one.X, one.y, one.P, SCALE_INVARIANT), values(scaled, one.y, one.P, SCALE_INVARIANT))


@pytest.mark.parametrize("name", SCALE_DEPENDENT)
def test_scaling_matters_where_documented(name: str) -> None:
    one = make_example(50, 8, 3, 0.5, 1)
    plain, scaled = (values(X, one.y, one.P, (name,)) for X in (one.X, one.X / 9))
    assert plain != pytest.approx(scaled, rel=1e-3)


@given(seed=seeds, exponent=st.integers(-3, 3))
@few
def test_reduced_features_know_neither_scale_nor_direction(seed: int, exponent: int) -> None:
    one = make_example(50, 8, 3, 0.5, seed)
    names = tuple(name for name in FAST if name not in ("leep", "nce"))
    plain = compute_proxies(one.X, one.y, names=names, dimension=4)
    for other in (one.X * 10.0**exponent, -one.X, one.X[:, ::-1]):
        changed = compute_proxies(other, one.y, names=names, dimension=4)
        for name, value in plain.items():
            assert changed[name].value == pytest.approx(value.value, rel=1e-6, abs=1e-9), name


@pytest.mark.parametrize("name", [proxy.name for proxy in list_proxies() if proxy.requires == "features"])
def test_value_grows_with_class_separation(name: str) -> None:
    if name == "energy":
        pytest.skip("energy ignores the labels")
    noise = np.random.default_rng(3).standard_normal((240, 10))
    y = np.arange(240) % 3
    centres = np.random.default_rng(4).standard_normal((3, 10))
    levels = [noise + gap * centres[y] for gap in (0.0, 0.4, 1.2)]
    scores = [compute_proxies(X / X.std(), y, names=[name])[name].value for X in levels]
    if name == "transrate":  # a rate of the whole: it is monotone in separation before rescaling
        scores = [compute_proxies(X, y, names=[name])[name].value for X in levels]
    assert scores[0] < scores[1] < scores[2]


@given(seed=seeds, strength=st.floats(1.0, 6.0))
@few
def test_better_source_predictions_raise_leep_and_nce(seed: int, strength: float) -> None:
    generator = np.random.default_rng(seed)
    y = np.arange(120) % 4
    logits = generator.standard_normal((120, 6))

    def probabilities(gain: float) -> np.ndarray:
        Z = np.exp(logits + gain * np.eye(6)[y])
        return Z / Z.sum(1, keepdims=True)

    X = generator.standard_normal((120, 2))
    weak = values(X, y, probabilities(0.0), ("leep", "nce"))
    strong = values(X, y, probabilities(strength), ("leep", "nce"))
    assert weak["leep"] < strong["leep"] <= 0 and weak["nce"] < strong["nce"] <= 0


@pytest.mark.parametrize("samples", [40, 400])
def test_wide_noise_does_not_outrank_a_signal_that_is_trusted(samples: int) -> None:
    """Noise of any width ranks under a real signal of 16 features, or is declared untrusted."""
    generator = np.random.default_rng(samples)
    y = np.arange(samples) % 4
    signal = 0.6 * generator.standard_normal((4, 16))[y] + generator.standard_normal((samples, 16))
    real = compute_proxies(signal, y, names=FEATURE_PROXIES)
    for width in (192, 512, 2_048):
        noise = compute_proxies(generator.standard_normal((samples, width)), y, names=FEATURE_PROXIES)
        for name, one in noise.items():
            assert one.value < real[name].value or not one.trusted, (name, width)
            if not one.trusted and name != "energy":
                assert one.reason is not None and str(width) in one.reason


@pytest.mark.parametrize("samples", [40, 400])
def test_noise_does_not_outrank_a_signal_in_the_form_that_studies_use(samples: int) -> None:
    """There all features are first reduced to min(128, n // 2) components of one scale."""
    generator = np.random.default_rng(samples)
    y = np.arange(samples) % 4
    dimension = min(128, samples // 2)
    signal = 0.7 * generator.standard_normal((4, 192))[y] + generator.standard_normal((samples, 192))
    real = compute_proxies(signal, y, names=FEATURE_PROXIES, dimension=dimension)
    for width in (192, 768, 2_048):
        X = generator.standard_normal((samples, width))
        noise = compute_proxies(X, y, names=FEATURE_PROXIES, dimension=dimension)
        for name, one in noise.items():
            assert one.value < real[name].value or not one.trusted, (name, width)
    assert all(real[name].trusted for name in DEFAULT_PROXIES)
