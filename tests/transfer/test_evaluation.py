"""Metrics against scikit-learn, and what bootstrap intervals promise."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    log_loss,
    mean_absolute_error,
    mean_squared_error,
    r2_score,
    roc_auc_score,
)

from autotransfer.errors import SpaceError
from autotransfer.task import TASKS
from autotransfer.transfer import evaluation
from autotransfer.transfer.evaluation import bootstrap_difference, bootstrap_interval, get_metric, prediction_loss

METRICS = {metric.name: metric for metric in evaluation.METRICS if metric.task == "classification"}

REFERENCES = {
    "accuracy": lambda P, y: accuracy_score(y, P.argmax(axis=1)),
    "balanced_accuracy": lambda P, y: balanced_accuracy_score(y, P.argmax(axis=1)),
    "macro_f1": lambda P, y: f1_score(y, P.argmax(axis=1), average="macro", zero_division=0),
    "auroc": lambda P, y: np.mean([roc_auc_score(y == c, P[:, c]) for c in np.unique(y)]),
    "log_loss": lambda P, y: log_loss(y, P.astype(np.float64), labels=np.arange(P.shape[1])),
}


def expected_calibration_error(probabilities: np.ndarray, codes: np.ndarray) -> float:
    """By hand: in each of 15 bins of confidence, the gap between confidence and accuracy, by share of samples."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == codes
    bins = np.minimum((confidence.astype(np.float32) * np.float32(15)).astype(int), 14)
    gaps = [abs((confidence - right)[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    return float(sum(gaps))


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
@pytest.mark.parametrize("name", [name for name in METRICS if name != "calibration_error"])
@settings(max_examples=60, deadline=None)
@given(data=predictions())
def test_metrics_are_those_of_scikit_learn(name, data):
    assert METRICS[name](*data) == pytest.approx(REFERENCES[name](*data), abs=1e-5)


def test_the_calibration_error_is_that_of_its_bins():
    probabilities = np.random.default_rng(0).dirichlet(np.ones(4), 300).astype(np.float32)
    codes = np.random.default_rng(1).integers(0, 4, 300)
    found = METRICS["calibration_error"](probabilities, codes)
    assert found == pytest.approx(expected_calibration_error(probabilities, codes), abs=1e-6)
    assert found > 0.2  # confident, and right by chance


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


# Label sets and numbers

LABEL_REFERENCES = {
    "average_precision": lambda P, Y: average_precision_score(Y, P, average="macro"),
    "accuracy": lambda P, Y: ((P >= 0.5) == Y).mean(),
    "macro_f1": lambda P, Y: f1_score(Y, P >= 0.5, average="macro", zero_division=0),
    "auroc": lambda P, Y: roc_auc_score(Y, P, average="macro"),
    "log_loss": lambda P, Y: np.mean([log_loss(Y[:, i], P[:, i]) for i in range(Y.shape[1])]),
}
NUMBER_REFERENCES = {
    "r2": lambda P, Y: r2_score(Y, P),
    "mae": lambda P, Y: mean_absolute_error(Y, P),
    "rmse": lambda P, Y: np.sqrt(mean_squared_error(Y.ravel(), P.ravel())),
}


def labels_sample(size: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = (generator.random((size, 3)) < [0.1, 0.4, 0.6]).astype(np.int64)
    labels[:2] = [[0, 0, 0], [1, 1, 1]]
    return np.clip(0.15 + 0.25 * labels + 0.6 * generator.random((size, 3)), 0, 1).astype(np.float32), labels


def numbers_sample(size: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    numbers = generator.normal([5, -200], [0.1, 50], (size, 2))
    return (numbers + generator.normal(0, [0.05, 60], (size, 2))).astype(np.float32), numbers


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", LABEL_REFERENCES)
def test_metrics_of_label_sets_are_those_of_scikit_learn(name, seed):
    predicted, labels = labels_sample(seed=seed)
    found = get_metric(name, "multilabel")(predicted, labels)
    assert found == pytest.approx(LABEL_REFERENCES[name](predicted.astype(np.float64), labels), abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", NUMBER_REFERENCES)
def test_metrics_of_numbers_are_those_of_scikit_learn(name, seed):
    predicted, numbers = numbers_sample(seed=seed)
    expected = NUMBER_REFERENCES[name](predicted.astype(np.float64), numbers)
    assert get_metric(name, "regression")(predicted, numbers) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("task", "sample_of"), [("multilabel", labels_sample), ("regression", numbers_sample)])
def test_every_metric_of_a_task_has_an_interval_and_survives_targets_that_do_not_vary(task, sample_of):
    for metric in (metric for metric in evaluation.METRICS if metric.task == task):
        predicted, targets = sample_of()
        low, high = bootstrap_interval(metric, predicted, targets, resamples=50)
        assert low <= metric(predicted, targets) <= high
        assert math.isfinite(metric(predicted[:5], np.repeat(targets[:1], 5, axis=0)))
        perfect = metric(targets.astype(np.float32), targets)
        assert metric.better(perfect, than=metric(predicted, targets))


def test_each_task_has_a_usual_metric_and_refuses_those_of_others():
    assert [get_metric("auto", task).name for task in TASKS] == ["accuracy", "average_precision", "r2"]
    with pytest.raises(SpaceError, match=r"metric 'r2' is not one of multilabel\. Choose one of: average_precision, "):
        get_metric("r2", "multilabel")


def test_the_loss_of_predictions_is_that_of_scikit_learn():
    generator = np.random.default_rng(0)
    probabilities, codes = generator.dirichlet(np.ones(4), 50), generator.integers(0, 4, 50)
    expected = log_loss(codes, probabilities, labels=range(4))
    assert prediction_loss(probabilities, codes, "classification") == pytest.approx(expected)
    assert math.isfinite(prediction_loss(np.eye(2), np.array([1, 0]), "classification"))
    predicted, labels = labels_sample()
    expected = LABEL_REFERENCES["log_loss"](predicted.astype(np.float64), labels)
    assert prediction_loss(predicted.astype(np.float64), labels, "multilabel") == pytest.approx(expected)
    predicted, numbers = numbers_sample()
    expected = mean_squared_error(numbers.ravel(), predicted.ravel())
    assert prediction_loss(predicted, numbers, "regression") == pytest.approx(expected)
