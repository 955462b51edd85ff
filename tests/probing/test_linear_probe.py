"""The linear probe, held against scikit-learn's pipeline of standardisation and logistic regression."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from autotransfer.probing import best_linear_head, fit_linear_head
from autotransfer.probing.linear_probe import STRENGTHS
from autotransfer.transfer.evaluation import prediction_loss

Table = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


def blobs(samples: int, dimension: int, classes: int, seed: int = 0, separation: float = 1.0) -> Table:
    """Gaussian classes around random centres, features of different scale and offset."""
    generator = np.random.default_rng(seed)
    codes = generator.permutation(np.arange(samples) % classes)
    centres = separation * np.random.default_rng(99).standard_normal((classes, dimension))
    values = centres[codes] + generator.standard_normal((samples, dimension))
    scales = np.random.default_rng(98).uniform(0.1, 10, dimension)
    return (values * scales + 5 * scales).astype(np.float32), codes.astype(np.int64)


def reference(features, codes, strength: float):
    regression = LogisticRegression(C=strength, max_iter=5000, tol=1e-8)
    return make_pipeline(StandardScaler(), regression).fit(features.astype(np.float64), codes)


@pytest.mark.parametrize("strength", [0.01, 0.1, 1.0])
@pytest.mark.parametrize(
    ("samples", "dimension", "classes"), [(200, 8, 2), (200, 8, 5), (60, 90, 3), (150, 1, 2), (90, 30, 30)]
)
def test_predictions_are_those_of_scikit_learn(samples, dimension, classes, strength):
    features, codes = blobs(samples, dimension, classes)
    unseen, _ = blobs(100, dimension, classes, seed=1)
    head = fit_linear_head(features, codes, classes, strength)
    expected = reference(features, codes, strength).predict_proba(unseen)
    found = head.predict(unseen)
    assert head.weight.shape == (classes, dimension) and head.bias.shape == (classes,)
    assert head.weight.dtype == head.bias.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=0.02)
    sure = np.diff(np.sort(expected, axis=1)[:, -2:], axis=1)[:, 0] > 0.05
    assert (found.argmax(axis=1) == expected.argmax(axis=1))[sure].all()


def test_probabilities_are_softmax_of_the_linear_logits():
    features, codes = blobs(80, 4, 3)
    head = fit_linear_head(features, codes, 3, 1.0)
    logits = features @ head.weight.T + head.bias
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(head.predict(features), expected, atol=1e-5)


def test_extreme_features_give_finite_probabilities():
    head = fit_linear_head(*blobs(80, 4, 3), 3, 1.0)
    probabilities = head.predict(np.array([[1e30, -1e30, 0, 0], [0, 0, 0, 0]], np.float32))
    assert np.isfinite(probabilities).all()
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)


@settings(max_examples=15, deadline=None)
@given(missing=st.integers(0, 3), classes=st.integers(3, 4), seed=st.integers(0, 1000))
def test_a_class_without_samples_is_improbable_and_changes_nothing_else(missing, classes, seed):
    missing = min(missing, classes - 1)
    features, codes = blobs(90, 5, classes - 1, seed)
    shifted = codes + (codes >= missing)
    found = fit_linear_head(features, shifted, classes, 0.1).predict(features)
    expected = fit_linear_head(features, codes, classes - 1, 0.1).predict(features)
    assert (found[:, missing] < 0.01).all()
    np.testing.assert_allclose(np.delete(found, missing, axis=1), expected, atol=0.02)


def test_a_constant_feature_carries_no_weight():
    features, codes = blobs(90, 5, 3)
    constant = np.insert(features, 2, 1234.5, axis=1)
    found = fit_linear_head(constant, codes, 3, 0.1)
    assert np.isfinite(found.weight).all() and np.isfinite(found.bias).all()
    expected = fit_linear_head(features, codes, 3, 0.1).predict(features)
    np.testing.assert_allclose(found.predict(constant), expected, atol=0.01)
    constant[:, 2] = 1234.6
    np.testing.assert_allclose(found.predict(constant), expected, atol=0.01)


def test_features_that_are_all_constant_give_the_frequencies():
    codes = np.array([0] * 30 + [1] * 10, dtype=np.int64)
    probabilities = fit_linear_head(np.ones((40, 3), np.float32), codes, 2, 1.0).predict(np.ones((1, 3)))
    np.testing.assert_allclose(probabilities, [[0.75, 0.25]], atol=0.01)


@pytest.mark.parametrize(("scale", "offset"), [(1000.0, 0.0), (0.001, 0.0), (1.0, 100.0)])
def test_scale_and_offset_of_features_do_not_matter(scale, offset):
    features, codes = blobs(120, 6, 3)
    expected = fit_linear_head(features, codes, 3, 0.1).predict(features)
    changed = (scale * features.astype(np.float64) + offset).astype(np.float32)
    np.testing.assert_allclose(fit_linear_head(changed, codes, 3, 0.1).predict(changed), expected, atol=0.01)


def test_less_strength_is_more_caution():
    features, codes = blobs(120, 6, 3)
    sureness = [fit_linear_head(features, codes, 3, c).predict(features).max(axis=1).mean() for c in (0.001, 0.1, 10)]
    assert sureness == sorted(sureness)


@pytest.mark.parametrize(("samples", "dimension", "separation"), [(40, 60, 0.1), (60, 10, 0.5), (200, 5, 2.0)])
def test_the_best_head_has_the_lowest_validation_loss(samples, dimension, separation):
    train = blobs(samples, dimension, 3, seed=0, separation=separation)
    val = blobs(150, dimension, 3, seed=1, separation=separation)
    best = best_linear_head(train, val, 3)
    losses = {c: log_loss(val[1], reference(*train, c).predict_proba(val[0])) for c in STRENGTHS}
    assert losses[best.strength] <= min(losses.values()) + 0.005
    assert log_loss(val[1], best.predict(val[0])) == pytest.approx(losses[best.strength], abs=0.02)


def test_the_fit_is_deterministic():
    first, second = (best_linear_head(blobs(90, 6, 3), blobs(90, 6, 3, seed=1), 3) for _ in range(2))
    np.testing.assert_array_equal(first.weight, second.weight)
    np.testing.assert_array_equal(first.bias, second.bias)


def test_a_head_solves_what_is_separable():
    features, codes = blobs(300, 10, 4, separation=4.0)
    head = best_linear_head((features[:200], codes[:200]), (features[200:], codes[200:]), 4)
    assert (head.predict(features[200:]).argmax(axis=1) == codes[200:]).mean() > 0.98


# Label sets and numbers


def test_labels_have_a_logistic_regression_each():
    features, codes = classes_on_a_line()
    labels = np.stack([codes == 0, codes == 1, np.ones_like(codes), np.zeros_like(codes)], axis=1).astype(np.int64)
    head = fit_linear_head(features, labels, 4, 0.1, "multilabel")
    standardised = StandardScaler().fit_transform(features)
    for label in (0, 1):
        expected = LogisticRegression(C=0.1, tol=1e-6, max_iter=1000).fit(standardised, labels[:, label])
        np.testing.assert_allclose(
            head.predict(features)[:, label], expected.predict_proba(standardised)[:, 1], atol=5e-3
        )
    assert (head.predict(features)[:, 2] > 0.99).all()
    assert (head.predict(features)[:, 3] < 0.01).all()


def test_numbers_have_the_ridge_regression_of_standardised_values():
    features, codes = classes_on_a_line()
    numbers = np.stack([1e4 + 100.0 * codes, -1e-3 * codes], axis=1)
    head = fit_linear_head(features, numbers, 2, 0.1, "regression")
    scaler = StandardScaler()
    expected = Ridge(alpha=10).fit(StandardScaler().fit_transform(features), scaler.fit_transform(numbers))
    predicted = scaler.inverse_transform(expected.predict(StandardScaler().fit_transform(features)))
    np.testing.assert_allclose(head.predict(features), predicted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_the_best_head_has_the_lowest_loss_on_the_validation_images(task):
    features, codes = classes_on_a_line()
    targets = codes[:, None] == 1 if task == "multilabel" else codes[:, None].astype(float)
    targets = targets.astype(np.int64) if task == "multilabel" else targets
    train, val = (features[::2], targets[::2]), (features[1::2], targets[1::2])
    best = best_linear_head(train, val, 1, task)
    losses = {c: prediction_loss(fit_linear_head(*train, 1, c, task).predict(val[0]), val[1], task) for c in STRENGTHS}
    assert losses[best.strength] == pytest.approx(min(losses.values()), rel=0.02)
    assert best.task == task


def classes_on_a_line() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 3, 150)
    features = generator.standard_normal((150, 6)).astype(np.float32) * [1, 5, 0.1, 1, 1, 1]
    features[:, 0] += 2 * codes
    return features.astype(np.float32), codes
