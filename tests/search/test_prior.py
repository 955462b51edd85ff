"""What the prior says of learning curves: how much is still to come, by the way of training and its learning rate."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotransfer.search.prior import FRACTIONS, KINDS, RATES, Prior, shipped_prior

ONE_KIND = {kind: [[float(rate)] * len(FRACTIONS) for rate in range(len(RATES))] for kind in KINDS}


def gain(prior: Prior, kind: str, rate: float, fraction: float) -> tuple[float, float]:
    mean, deviation = prior.final(np.array([KINDS.index(kind)]), np.array([rate]), np.array([fraction]))
    return float(mean[0]), float(deviation[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [-6.0, -3.0, 0.0])
def test_after_the_last_epoch_nothing_is_left_to_gain(kind, rate):
    assert gain(shipped_prior(), kind, rate, 1.0) == (0.0, 0.0)


@given(rate=st.floats(-8, 2), fraction=st.floats(0, 1), kind=st.sampled_from(KINDS))
def test_between_two_rates_it_is_in_proportion_and_outside_the_nearest_counts(rate, fraction, kind):
    prior = Prior({}, {}, ONE_KIND, ONE_KIND)
    expected = min(max(rate - RATES[0], 0.0), len(RATES) - 1.0)  # the nodes are one apart
    assert gain(prior, kind, rate, fraction) == pytest.approx((expected, expected))


def test_whole_networks_at_high_rates_begin_badly_and_gain_late():
    high, low = gain(shipped_prior(), "full", -1.5, 0.375), gain(shipped_prior(), "full", -3.5, 0.375)
    assert high[0] > 2 * low[0]
    assert high[1] > low[1]


def test_many_are_answered_as_each_alone():
    prior, draw = shipped_prior(), np.random.default_rng(0)
    kinds, rates, fractions = draw.integers(0, len(KINDS), 40), draw.uniform(-5, -1, 40), draw.uniform(0, 1, 40)
    together = np.array(prior.final(kinds, rates, fractions)).T
    alone = [gain(prior, KINDS[k], r, f) for k, r, f in zip(kinds, rates, fractions, strict=True)]
    np.testing.assert_allclose(together, alone)
