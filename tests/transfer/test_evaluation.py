"""Metrics against scikit-learn, and what bootstrap intervals promise."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss, roc_auc_score

from autotransfer.errors import SpaceError
from autotransfer.transfer.evaluation import METRICS, bootstrap_difference, bootstrap_interval, get_metric

REFERENCES = {
    "accuracy": lambda P, y: accuracy_score(y, P.argmax(axis=1)),
    "balanced_accuracy": lambda P, y: balanced_accuracy_score(y, P.argmax(axis=1)),
    "macro_f1": lambda P, y: f1_score(y, P.argmax(axis=1), average="macro", zero_division=0),
    "auroc": lambda P, y: np.mean([roc_auc_score(y == c, P[:, c]) for c in np.unique(y)]),
    "log_loss": lambda P, y: log_loss(y, P.astype(np.float64), labels=np.arange(P.shape[1])),
}


@st.composite
def predictions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (ties among them) and labels; some classes may not occur."""
    classes = draw(st.integers(2, 5))
    samples = draw(st.integers(2, 40))
    weights = draw(arrays.arrays(np.float64, (samples, classes), elements=st.integers(1, 9).map(float)))
    codes = draw(arrays.arrays(np.int64, samples, elements=st.integers(0, classes - 1)))
    codes[:2] = [0, 1]
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32), codes


def sample(size: int, accuracy: float = 0.7, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of which about `accuracy` are right."""
    generator = np.random.default_rng(seed)
    codes = generator.integers(0, classes, size)
    right = generator.random(size) < accuracy
    predicted = np.where(right, codes, (codes + generator.integers(1, classes, size)) % classes)
    probabilities = np.full((size, classes), 0.5 / classes)
    probabilities[np.arange(size), predicted] += 0.5
    return probabilities.astype(np.float32), codes


@pytest.mark.filterwarnings("ignore:y_pred contains classes", "ignore:The y_prob values do not sum")
@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=60, deadline=None)
@given(data=predictions())
def test_metrics_are_those_of_scikit_learn(name, data):
    assert METRICS[name](*data) == pytest.approx(REFERENCES[name](*data), abs=1e-5)


@pytest.mark.parametrize("name", METRICS)
def test_a_perfect_prediction_has_the_best_score(name):
    codes = np.array([0, 1, 2, 0, 1])
    best = METRICS[name](np.eye(3, dtype=np.float32)[codes], codes)
    assert best == pytest.approx(1.0 if METRICS[name].greater_is_better else 0.0, abs=1e-6)
    worse = METRICS[name](*sample(100))
    assert METRICS[name].better(best, than=worse)
    assert not METRICS[name].better(worse, than=best)
    assert not METRICS[name].better(best, than=best)


@pytest.mark.parametrize("name", METRICS)
def test_one_class_only_gives_a_finite_score(name):
    assert math.isfinite(METRICS[name](sample(5)[0], np.zeros(5, np.int64)))


def test_certainty_in_the_wrong_class_is_a_finite_loss():
    assert METRICS["log_loss"](np.eye(2, dtype=np.float32), np.array([1, 0])) == pytest.approx(-math.log(1e-12))


def test_metrics_are_found_by_name():
    assert get_metric("auroc") is METRICS["auroc"]
    with pytest.raises(SpaceError, match=r"metric 'acuracy' is unknown\. Choose one of: accuracy, .*log_loss"):
        get_metric("acuracy")


@pytest.mark.parametrize("name", METRICS)
@settings(max_examples=10, deadline=None)
@given(data=predictions(), seed=st.integers(0, 1000))
def test_an_interval_is_ordered_finite_and_drawn_from_the_seed(name, data, seed):
    low, high = bootstrap_interval(METRICS[name], *data, resamples=20, seed=seed)
    assert math.isfinite(low) and math.isfinite(high)
    assert 0 <= low <= high
    assert high <= 1 or name == "log_loss"
    assert bootstrap_interval(METRICS[name], *data, resamples=20, seed=seed) == (low, high)


@pytest.mark.parametrize("name", METRICS)
def test_the_interval_lies_around_the_score(name):
    probabilities, codes = sample(200)
    low, high = bootstrap_interval(METRICS[name], probabilities, codes, resamples=200)
    assert low < METRICS[name](probabilities, codes) < high


@pytest.mark.parametrize("name", ["balanced_accuracy", "auroc"])
def test_rare_classes_do_not_draw_the_interval_down(name):
    """A class of one image is missing from every third resample; that must not count as a failure on it."""
    codes = sample(60)[1]
    codes = np.where(codes == 2, 0, codes)
    codes[0] = 2
    certain = np.eye(3, dtype=np.float32)[codes]
    assert bootstrap_interval(METRICS[name], certain, codes, resamples=100) == (1.0, 1.0)


@pytest.mark.parametrize("size", [100, 400])
def test_the_width_of_an_accuracy_interval_is_that_of_the_binomial(size):
    probabilities, codes = sample(size)
    accuracy = METRICS["accuracy"](probabilities, codes)
    low, high = bootstrap_interval(METRICS["accuracy"], probabilities, codes, resamples=1000)
    expected = 2 * 1.96 * math.sqrt(accuracy * (1 - accuracy) / size)
    assert high - low == pytest.approx(expected, rel=0.15)


@pytest.mark.parametrize("name", METRICS)
def test_a_clearly_better_model_has_a_difference_above_zero(name):
    (better, codes), (worse, _) = sample(300, accuracy=0.9), sample(300, accuracy=0.4)
    low, high = bootstrap_difference(METRICS[name], better, worse, codes, resamples=100)
    assert 0 < low < high
    backwards = bootstrap_difference(METRICS[name], worse, better, codes, resamples=100)
    assert backwards == pytest.approx((-high, -low))


@pytest.mark.parametrize("name", METRICS)
def test_equal_predictions_do_not_differ(name):
    probabilities, codes = sample(50)
    assert bootstrap_difference(METRICS[name], probabilities, probabilities, codes, resamples=20) == (0.0, 0.0)


def test_a_difference_on_the_same_images_is_surer_than_two_intervals():
    probabilities, codes = sample(300)
    slightly_better = probabilities.copy()
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != codes)[:15]
    slightly_better[wrong] = np.eye(3, dtype=np.float32)[codes[wrong]]
    metric = METRICS["accuracy"]
    low, _ = bootstrap_difference(metric, slightly_better, probabilities, codes)
    assert low > 0
    assert bootstrap_interval(metric, slightly_better, codes)[0] < bootstrap_interval(metric, probabilities, codes)[1]
