import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, spearmanr

from autotransfer.proxies.combine import combine

values = st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=12, unique=True)


def noisy(truth, seeds, noise=0.3):
    return {f"p{s}": truth + noise * np.random.default_rng(s).standard_normal(len(truth)) for s in seeds}


@given(values)
def test_one_proxy_alone_gives_its_own_percentiles(column):
    combined = combine({"only": column})
    np.testing.assert_allclose(combined.expected, (rankdata(column) - 0.5) / len(column))
    assert combined.weights == {"only": 1.0}


@given(values, st.floats(0.1, 100), st.floats(-100, 100))
def test_scale_and_offset_of_a_proxy_do_not_matter(column, scale, offset):
    column = np.round(np.array(column), 3)
    other = np.random.default_rng(0).standard_normal(len(column))
    first = combine({"a": column, "b": other})
    second = combine({"a": scale * column + offset, "b": other})
    if (rankdata(column) == rankdata(scale * column + offset)).all():  # rounding may tie neighbours
        np.testing.assert_allclose(first.expected, second.expected)


def test_the_formula_is_the_one_documented():
    columns = {name: np.random.default_rng(seed).standard_normal(9) for seed, name in enumerate("abc")}
    ranks = {name: (rankdata(column) - 0.5) / 9 for name, column in columns.items()}
    weights = {}
    for name in columns:
        others = np.mean([ranks[other] for other in columns if other != name], axis=0)
        weights[name] = max(0.05, spearmanr(ranks[name], others).statistic)
    expected = sum(weights[n] * ranks[n] for n in columns) / sum(weights.values())
    combined = combine(columns)
    np.testing.assert_allclose(combined.expected, expected)
    assert combined.weights == pytest.approx({n: w / sum(weights.values()) for n, w in weights.items()})


def test_a_misleading_proxy_hardly_counts():
    truth = np.linspace(0, 1, 30)
    honest = noisy(truth, range(4))
    combined = combine({**honest, "liar": -truth})
    assert combined.weights["liar"] < 0.03
    without = spearmanr(combine(honest).expected, truth).statistic
    assert spearmanr(combined.expected, truth).statistic > without - 0.03


def test_a_failing_proxy_changes_nothing():
    honest = noisy(np.linspace(0, 1, 20), range(3))
    for broken in (np.full(20, np.nan), np.full(20, 7.0)):
        combined = combine({**honest, "broken": broken})
        np.testing.assert_allclose(combined.expected, combine(honest).expected)
        assert combined.weights["broken"] == 0.0


def test_several_noisy_proxies_are_better_than_one():
    truth = np.linspace(0, 1, 40)
    gains = []
    for seed in range(20):
        columns = noisy(truth, range(100 * seed, 100 * seed + 6), noise=1.0)
        single = np.mean([spearmanr(column, truth).statistic for column in columns.values()])
        gains.append(spearmanr(combine(columns).expected, truth).statistic - single)
    assert np.mean(gains) > 0.1


def test_agreement_makes_sure_and_ignorance_is_said():
    truth = np.linspace(0, 1, 20)
    agreeing = combine(noisy(truth, range(5), noise=0.01)).uncertainty
    quarrelling = combine({f"p{s}": np.random.default_rng(s).permutation(truth) for s in range(5)}).uncertainty
    assert agreeing.mean() < quarrelling.mean()
    nothing = combine({"a": np.full(4, np.nan)})
    np.testing.assert_allclose(nothing.expected, 0.5)
    np.testing.assert_allclose(nothing.uncertainty, 1 / np.sqrt(12))


def test_more_proxies_that_agree_make_surer():
    truth = np.linspace(0, 1, 20)
    few, many = (combine(noisy(truth, range(count), noise=0.1)).uncertainty.mean() for count in (2, 8))
    assert many < few


def test_a_missing_value_is_left_to_the_other_proxies():
    combined = combine({"a": [1.0, 2.0, 3.0, np.nan], "b": [1.0, 2.0, 3.0, 4.0]})
    assert combined.expected.argmax() == 3
    assert combined.uncertainty[3] > combined.uncertainty[2]


def test_the_prior_says_what_a_proxy_counts():
    truth = np.linspace(0, 1, 20)
    columns = noisy(truth, range(3))
    weighted = combine(columns, prior={"p0": 10.0})
    assert weighted.weights["p0"] > 3 * combine(columns).weights["p0"] / 2
    assert combine(columns, prior={"p0": 0.0}).weights["p0"] == 0.0


def test_unequal_lengths_and_infinity_are_refused():
    with pytest.raises(ValueError, match="same candidates"):
        combine({"a": [1.0, 2.0], "b": [1.0]})
    with pytest.raises(ValueError, match="finite"):
        combine({"a": [1.0, np.inf]})
