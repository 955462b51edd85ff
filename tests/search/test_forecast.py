"""What the forecast promises: time in proportion to the work, by what this study's own trials have shown."""

from dataclasses import replace
from types import MappingProxyType

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_study import CONVNEXT, MOBILENET, config_of, new_study

from autotransfer.search.candidates import Pool
from autotransfer.search.forecast import Forecast, nominal_seconds, refit_seconds
from autotransfer.search.prior import Points
from autotransfer.search.strategy import Strategy

NOTHING_KNOWN: MappingProxyType[str, list[float]] = MappingProxyType({})
IMAGES = 900


@pytest.fixture(scope="session")
def timed_pool(pool: Pool) -> Pool:
    """The pool, its probes told to have taken 1 ms and 2 ms an image."""
    seconds = {CONVNEXT: 0.001, MOBILENET: 0.002}
    probes = {name: replace(probe, seconds=seconds[name] * len(probe.rows)) for name, probe in pool.probes.items()}
    return replace(pool, probes=probes)


def forecast(pool: Pool, ratios=NOTHING_KNOWN, images: int = IMAGES) -> Forecast:
    return Forecast(pool, images, ratios)


@pytest.mark.parametrize(("source", "seconds"), [(CONVNEXT, 0.9), (MOBILENET, 1.8)])
def test_a_forward_pass_of_the_whole_network_takes_what_the_probe_took_an_image(timed_pool, source, seconds):
    whole = config_of(source, timed_pool.get(source, 1).source.levels[-1].index)
    assert forecast(timed_pool).forward_seconds(whole) == pytest.approx(seconds)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_cut_network_takes_its_share_of_the_work(timed_pool, level):
    levels = timed_pool.get(CONVNEXT, 1).source.levels
    seconds = forecast(timed_pool).forward_seconds(config_of(CONVNEXT, level))
    assert seconds == pytest.approx(0.9 * levels[level - 1].flops / levels[-1].flops)
    assert seconds < 0.9


@pytest.mark.parametrize("level", [0, 1, 3])
def test_a_network_with_its_upper_layers_kept_takes_the_whole_time(timed_pool, level):
    kept = config_of(CONVNEXT, level, upper_layers="reinit")
    assert forecast(timed_pool).forward_seconds(kept) == pytest.approx(0.9)


def test_where_the_clock_has_no_say_dearer_is_what_computes_more(make_workshop):
    landscape = Strategy("proxy", make_workshop()).landscape
    shapes = [(0, 1, True, 1, -3.0), (0, 1, True, 0, -3.0), (0, 2, True, 0, -3.0), (0, 2, False, 0, -3.0)]
    seconds = nominal_seconds(Points.of(shapes), landscape, np.full(4, 8), 4)
    assert (np.diff(seconds) > 0).all()
    assert (nominal_seconds(Points.of(shapes), landscape, np.full(4, 16), 4) > seconds).all()


def test_before_any_trial_training_takes_several_forward_passes_an_epoch(timed_pool):
    config = config_of(epochs=1)
    guess = forecast(timed_pool)
    assert 3 <= guess.seconds(config) / guess.forward_seconds(config) <= 10
    assert guess.seconds(config.replace(epochs=7)) == pytest.approx(7 * guess.seconds(config))


def test_a_sources_own_trials_tell_its_time_by_their_median(timed_pool):
    known = forecast(timed_pool, {CONVNEXT: [2.0, 30.0, 3.0], MOBILENET: [100.0]})
    config = config_of(CONVNEXT, 4, epochs=2)
    assert known.seconds(config) == pytest.approx(0.9 * 3.0 * 2)


def test_another_sources_trials_tell_the_time_where_its_own_are_missing(timed_pool):
    known = forecast(timed_pool, {MOBILENET: [5.0, 6.0, 7.0]})
    assert known.seconds(config_of(CONVNEXT, 4)) == pytest.approx(0.9 * 6.0)


@settings(deadline=None)
@given(seconds=st.floats(0.01, 1e4), epochs=st.integers(1, 30), level=st.integers(1, 4))
def test_what_a_trial_took_is_what_its_configuration_is_forecast_to_take(timed_pool, seconds, epochs, level):
    config = config_of(CONVNEXT, level, epochs=epochs)
    shown = forecast(timed_pool).ratio(config, epochs, seconds)
    assert forecast(timed_pool, {CONVNEXT: [shown]}).seconds(config) == pytest.approx(seconds)


@settings(deadline=None)
@given(seconds=st.floats(0, 1000), level=st.integers(1, 4))
def test_the_most_epochs_fit_and_one_more_does_not(timed_pool, seconds, level):
    config = config_of(CONVNEXT, level)
    guess = forecast(timed_pool)
    most = guess.most_epochs(config, seconds)
    assert guess.seconds(config.replace(epochs=most)) <= seconds * (1 + 1e-9)
    assert guess.seconds(config.replace(epochs=most + 1)) > seconds * (1 - 1e-9)


@pytest.mark.parametrize("frozen", [1, 2, 3])
def test_what_is_frozen_costs_its_forward_pass_only(timed_pool, frozen):
    """Of three parts of the work, forward, backward to weights and backward to inputs, two are saved."""
    levels = timed_pool.get(CONVNEXT, 1).source.levels
    free, frozen_too = (forecast(timed_pool).seconds(config_of(CONVNEXT, 4, frozen_layers=f)) for f in (0, frozen))
    assert 1 - frozen_too / free == pytest.approx(2 / 3 * levels[frozen - 1].flops / levels[-1].flops)


def test_kept_activations_cost_their_views_once_and_then_only_the_rest(timed_pool):
    levels = timed_pool.get(CONVNEXT, 1).source.levels
    share = levels[1].flops / levels[-1].flops
    guess = forecast(timed_pool, {CONVNEXT: [5.0]})
    config = config_of(CONVNEXT, 4, frozen_layers=2, cached_views=3, epochs=7)
    assert guess.seconds(config) == pytest.approx(0.9 * 3 * share + 7 * 5.0 * 0.9 * (1 - share))
    assert guess.ratio(config, 7, 100.0) is None
    features = guess.seconds(config.replace(frozen_layers=4, epochs=100))
    assert 0.9 * 3 < features < 0.9 * 3 + 100 * 5.0 * 0.9 * 0.05


def test_a_probe_that_took_no_time_still_gives_a_forecast(pool):
    instant = {name: replace(probe, seconds=0.0) for name, probe in pool.probes.items()}
    guess = forecast(replace(pool, probes=instant))
    assert guess.seconds(config_of()) == 0
    assert guess.ratio(config_of(), 1, 1.0) > 0
    assert guess.most_epochs(config_of(), 1.0) > 1000


def test_the_forecast_knows_what_a_studys_trials_have_shown(timed_pool, workshop):
    study = new_study()
    for source, ratio in ((CONVNEXT, 4.0), (MOBILENET, 9.0), (CONVNEXT, 5.0), (CONVNEXT, None)):
        trial = study.ask()
        trial.set_user_attr("config", config_of(source).to_dict())
        if ratio is not None:  # a trial that was pruned before training shows nothing
            trial.set_user_attr("train_over_forward", ratio)
        study.tell(trial, 0.5)
    study.ask()  # one that runs and has shown nothing yet
    assert Forecast.of(study, replace(workshop, pool=timed_pool)).ratios == {CONVNEXT: [4.0, 5.0], MOBILENET: [9.0]}


def test_training_again_with_the_validation_images_takes_longer_in_proportion_or_a_little_more(digits):
    trial = optuna.trial.create_trial(value=0.9, user_attrs={"seconds": 60.0})
    train, val = len(digits.rows("train")), len(digits.rows("val"))
    assert 1.0 <= refit_seconds(trial, digits) / (60.0 * (train + val) / train) <= 1.25
