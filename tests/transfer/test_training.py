"""Training: repeatable, stoppable, and it learns what can be learnt."""

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss as reference_log_loss

from autotransfer.errors import TrainingError
from autotransfer.sources import weights_hash
from autotransfer.transfer.config import TransferConfig
from autotransfer.transfer.evaluation import METRICS
from autotransfer.transfer.surgery import TransferModel, transfer
from autotransfer.transfer.training import (
    Data,
    EpochReport,
    log_loss,
    predict_probabilities,
    set_classifier,
    train,
)

CPU = torch.device("cpu")
CONFIG = TransferConfig(
    source="s",
    transferred_layers=4,
    upper_layers="drop",
    frozen_layers=0,
    learning_rate=3e-3,
    epochs=4,
    batch_size=8,
    image_size=32,
    augmentation="none",
)


@pytest.fixture
def make_model(get_source):
    def make(architecture: str = "test_convnext", k: int = 4, f: int = 0, upper: str = "drop") -> TransferModel:
        torch.manual_seed(0)
        return transfer(
            get_source(architecture), transferred_layers=k, upper_layers=upper, frozen_layers=f, num_classes=2
        )

    return make


def run(model: TransferModel, data: Data, config: TransferConfig = CONFIG, seed: int = 0, **options) -> float | None:
    return train(model, config, data, metric=METRICS["accuracy"], device=CPU, seed=seed, **options)


@pytest.mark.parametrize("architecture", ["test_convnext", "test_efficientnet"])
@pytest.mark.parametrize(("k", "f", "upper"), [(3, 0, "drop"), (3, 3, "drop"), (2, 1, "reinit"), (0, 0, "reinit")])
def test_a_separable_target_is_learnt(make_model, make_data, architecture, k, f, upper):
    model, data = make_model(architecture, k, f, upper), make_data(train=64)
    reports: list[EpochReport] = []
    score = run(model, data, CONFIG.replace(epochs=6), on_epoch=reports.append)
    assert score == reports[-1].score >= 0.9
    assert [report.epoch for report in reports] == [1, 2, 3, 4, 5, 6]
    assert reports[-1].train_loss < reports[0].train_loss
    assert all(report.seconds > 0 for report in reports)


def test_the_returned_score_is_that_of_the_model_as_it_is_left(make_model, make_data):
    model, data = make_model(), make_data()
    reports: list[EpochReport] = []
    score = run(model, data, on_epoch=reports.append)
    probabilities = predict_probabilities(model, data.images, data.val, data.preprocessing, CPU)
    assert score == METRICS["accuracy"](probabilities, data.codes[data.val])
    assert reports[-1].val_loss == pytest.approx(log_loss(probabilities, data.codes[data.val]))


@pytest.mark.parametrize("augmentation", ["none", "flip"])
def test_the_same_seed_gives_the_same_network(make_model, make_data, augmentation):
    config, data = CONFIG.replace(augmentation=augmentation, epochs=2, drop_rate=0.2), make_data()
    hashes = []
    for seed in (1, 1, 2):
        model = make_model("test_efficientnet")
        np.random.seed(len(hashes))  # global state must not matter
        run(model, data, config, seed=seed)
        hashes.append(weights_hash(model))
    assert hashes[0] == hashes[1] != hashes[2]


def test_validation_images_are_not_learnt_from(make_model, make_data):
    data, hashes = make_data(train=16, val=8), []
    for codes in (data.codes, np.concatenate([data.codes[:16], 1 - data.codes[16:]])):
        model = make_model("test_efficientnet")
        run(model, Data(data.images, codes, data.train, data.val, data.preprocessing))
        hashes.append(weights_hash(model))
    assert hashes[0] == hashes[1]


def test_frozen_levels_are_untouched_by_a_whole_training(make_model, make_data, get_source):
    model = make_model("test_efficientnet", k=5, f=3)
    frozen = get_source("test_efficientnet").levels[2]
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    run(model, make_data())
    for name, tensor in model.backbone.state_dict().items():
        if name in frozen.parameters or name.rpartition(".")[0] in frozen.modules:
            assert torch.equal(tensor, before[name]), name
    assert not torch.equal(model.backbone.state_dict()["conv_head.weight"], before["conv_head.weight"])


@pytest.mark.parametrize("count", [9, 17])
@pytest.mark.parametrize("architecture", ["resnet10t", "test_efficientnet"])
def test_a_last_batch_of_one_image_is_no_problem(make_model, make_data, architecture, count):
    data = make_data(train=count, val=8)
    reports: list[EpochReport] = []
    run(make_model(architecture, k=5), data, CONFIG.replace(epochs=1), on_epoch=reports.append)
    assert np.isfinite(reports[0].train_loss)


def test_every_training_image_is_seen_once_an_epoch(make_model, make_data, monkeypatch):
    data, model = make_data(train=17, val=0), make_model()
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    run(model, data, CONFIG.replace(epochs=3))
    assert sum(seen) == 3 * 17
    assert min(seen) >= 2


def test_without_validation_images_nothing_is_scored(make_model, make_data):
    reports: list[EpochReport] = []
    assert run(make_model(), make_data(val=0), CONFIG.replace(epochs=2), on_epoch=reports.append) is None
    assert [(report.score, report.val_loss) for report in reports] == [(None, None)] * 2


def test_no_epochs_leave_the_network_as_it_is(make_model, make_data):
    model = make_model()
    before = weights_hash(model)
    run(model, make_data(), CONFIG.replace(epochs=0))
    assert weights_hash(model) == before


def test_training_stops_when_asked(make_model, make_data):
    answers = iter([True] * 6 + [False])
    reports: list[EpochReport] = []
    with pytest.raises(InterruptedError, match="stopped"):
        run(make_model(), make_data(), on_epoch=reports.append, go_on=lambda: next(answers))
    assert len(reports) == 1


def test_a_listener_may_end_the_training(make_model, make_data):
    class EnoughError(Exception):
        pass

    def listen(report: EpochReport) -> None:
        if report.epoch == 2:
            raise EnoughError

    with pytest.raises(EnoughError):
        run(make_model(), make_data(), on_epoch=listen)


@pytest.mark.parametrize("learning_rate", [1e30, float("inf")])
def test_a_learning_rate_that_diverges_is_told(make_model, make_data, learning_rate):
    with pytest.raises(TrainingError, match=r"diverged in epoch \d: the loss is (nan|inf)"):
        run(make_model("test_vit"), make_data(size=64), CONFIG.replace(learning_rate=learning_rate, image_size=64))


def test_probabilities_are_softmax_of_the_logits_whatever_the_batches(make_model, make_data, monkeypatch):
    model, data = make_model("test_efficientnet"), make_data(train=20, val=10)
    rows = np.array([29, 3, 3, 12])
    whole = predict_probabilities(model, data.images, np.arange(30), data.preprocessing, CPU)
    assert whole.shape == (30, 2) and whole.dtype == np.float32
    pixels = torch.tensor((data.images / 255.0 - 0.5) / 0.25, dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = model.eval()(pixels).softmax(dim=1).numpy()
    np.testing.assert_allclose(whole, expected, atol=1e-5)
    monkeypatch.setattr("autotransfer.transfer.training.EVALUATION_BATCH", 3)
    chosen = predict_probabilities(model.train(), data.images, rows, data.preprocessing, CPU)
    np.testing.assert_allclose(chosen, whole[rows], atol=1e-5)
    assert predict_probabilities(model, data.images, rows[:0], data.preprocessing, CPU).shape == (0, 2)


def test_log_loss_is_that_of_scikit_learn():
    generator = np.random.default_rng(0)
    probabilities, codes = generator.dirichlet(np.ones(4), 50), generator.integers(0, 4, 50)
    assert log_loss(probabilities, codes) == pytest.approx(reference_log_loss(codes, probabilities, labels=range(4)))
    assert np.isfinite(log_loss(np.eye(2), np.array([1, 0])))


def test_a_solved_head_is_where_training_starts(make_model, make_data):
    model, data = make_model(), make_data()
    generator = np.random.default_rng(0)
    weight, bias = generator.standard_normal((2, 64)).astype(np.float32), np.array([1, -1], np.float32)
    set_classifier(model, weight, bias)
    assert all(parameter.requires_grad for parameter in model.classifier.parameters())
    with torch.inference_mode():
        features = model.eval().features(torch.zeros(1, 3, 32, 32)).numpy()
        logits = model(torch.zeros(1, 3, 32, 32)).numpy()
    np.testing.assert_allclose(logits, features @ weight.T + bias, rtol=1e-4)
    reports: list[EpochReport] = []
    run(model, data, CONFIG.replace(epochs=1, learning_rate=1e-12, label_smoothing=0.0), on_epoch=reports.append)
    np.testing.assert_allclose(model.classifier.weight.detach().numpy(), weight, atol=1e-6)


def test_weight_decay_leaves_norms_and_biases_alone(make_model, make_data):
    """With a rate of learning that only decay can make felt, one-dimensional parameters stay."""
    model = make_model("test_convnext")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    run(model, make_data(), CONFIG.replace(epochs=2, learning_rate=1e-6, weight_decay=1e4))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            assert parameter.norm() < 0.97 * before[name].norm(), name
        else:
            torch.testing.assert_close(parameter.detach(), before[name], rtol=0, atol=1e-4)
