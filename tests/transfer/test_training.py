"""Training: repeatable, stoppable, and it learns what can be learnt."""

import contextlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from autotransfer.errors import TrainingError
from autotransfer.sources import weights_hash
from autotransfer.transfer.config import TransferConfig
from autotransfer.transfer.evaluation import Metric, get_metric, prediction_loss
from autotransfer.transfer.inputs import ImageInputs
from autotransfer.transfer.optimisation import balanced_weights, make_optimizer, make_schedule
from autotransfer.transfer.surgery import TransferModel, transfer
from autotransfer.transfer.training import (
    Data,
    EpochReport,
    Scale,
    predict,
    set_classifier,
    train,
)

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
    def make(
        architecture: str = "test_convnext", k: int = 4, f: int = 0, upper: str = "drop", outputs: int = 2
    ) -> TransferModel:
        source = get_source(architecture)
        torch.manual_seed(0)
        return transfer(source, transferred_layers=k, upper_layers=upper, frozen_layers=f, num_classes=outputs)

    return make


def loss_of(probabilities: np.ndarray, data: Data) -> float:
    return prediction_loss(probabilities, data.targets[data.val], data.task)


def run(model: TransferModel, data: Data, config: TransferConfig = CONFIG, seed: int = 0, **options) -> float | None:
    return train(model, config, data, metric=get_metric("accuracy"), seed=seed, **options)


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
    probabilities = predict(model, data.inputs, data.val)
    assert score == get_metric("accuracy")(probabilities, data.targets[data.val])
    assert reports[-1].val_loss == pytest.approx(loss_of(probabilities, data))


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
    for codes in (data.targets, np.concatenate([data.targets[:16], 1 - data.targets[16:]])):
        model = make_model("test_efficientnet")
        run(model, Data(data.inputs, codes, data.train, data.val))
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
    whole = predict(model, data.inputs, np.arange(30))
    assert whole.shape == (30, 2) and whole.dtype == np.float32
    pixels = torch.tensor((data.inputs.images / 255.0 - 0.5) / 0.25, dtype=torch.float32).permute(0, 3, 1, 2)
    with torch.inference_mode():
        expected = model.eval()(pixels).softmax(dim=1).numpy()
    np.testing.assert_allclose(whole, expected, atol=1e-5)
    monkeypatch.setattr("autotransfer.transfer.training.EVALUATION_BATCH", 3)
    chosen = predict(model.train(), data.inputs, rows)
    np.testing.assert_allclose(chosen, whole[rows], atol=1e-5)
    assert predict(model, data.inputs, rows[:0]).shape == (0, 2)


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


# Choices of the optimisation


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "sgd", "learning_rate": 0.05},
        {"layer_decay": 0.7},
        {"ema_decay": 0.9},
        {"mixup": 0.2},
        {"cutmix": 1.0},
        {"mixup": 0.2, "cutmix": 1.0},
        {"randaugment": 5},
        {"random_erasing": 0.5},
        {"imbalance": "sampler"},
        {"clip_grad": 0.0},
        {"warmup": 0.0},
        {"precision": "bfloat16"},
    ],
    ids=str,
)
def test_every_choice_learns_and_is_repeatable(make_model, make_data, changes):
    plain = CONFIG.replace(augmentation="light", learning_rate=1e-2)
    data, hashes = make_data(train=48), []
    for config in (plain.replace(**changes), plain.replace(**changes), plain):
        model = make_model("test_efficientnet", k=2)
        assert run(model, data, config) >= 0.9
        hashes.append(weights_hash(model))
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(make_model, make_data):
    models = [make_model("test_convnext"), make_model("test_convnext")]
    data = make_data()
    for model, compiled in zip(models, (True, False), strict=True):
        run(model, data, CONFIG.replace(epochs=1, compile=compiled))
    answers = [predict(model, data.inputs, data.val) for model in models]
    np.testing.assert_allclose(*answers, atol=1e-2)


def learning_rates(model: TransferModel, config: TransferConfig, steps: int) -> np.ndarray:
    """Of the last group of parameters, at every step."""
    optimizer = make_optimizer(model, config)
    schedule = make_schedule(optimizer, config, steps)
    found = []
    for step in range(steps):
        schedule.step_update(step)
        found.append(optimizer.param_groups[-1]["lr"])
    return np.array(found)


def test_the_learning_rate_rises_then_falls_as_a_cosine(make_model):
    rates = learning_rates(make_model(), CONFIG.replace(learning_rate=0.1, warmup=0.2), 100)
    assert rates[0] == pytest.approx(0.004)
    np.testing.assert_allclose(np.diff(rates[:20], 2), 0, atol=1e-6)
    assert rates.argmax() == 19
    np.testing.assert_allclose(rates[20:], 0.05 * (1 + np.cos(np.pi * np.arange(20, 100) / 100)), rtol=1e-6)
    assert rates[-1] < 1e-3 * 0.1


def test_lower_layers_learn_slower_with_layer_decay(make_model):
    model = make_model("test_vit", k=6)
    optimizer = make_optimizer(model, CONFIG.replace(layer_decay=0.5))
    scale = {id(p): group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    by_block = [scale[id(block.attn.qkv.weight)] for block in model.backbone.blocks]
    np.testing.assert_allclose(np.divide(by_block[1:], by_block[:-1]), 2)
    assert scale[id(model.classifier.weight)] == 1
    assert scale[id(model.backbone.patch_embed.proj.weight)] < by_block[0]
    schedule = make_schedule(optimizer, CONFIG, 10)
    schedule.step_update(3)
    rates = {group["lr"] / group["lr_scale"] for group in optimizer.param_groups}
    assert max(rates) == pytest.approx(min(rates))


def test_the_moving_average_is_what_is_scored_and_kept(make_model, make_data):
    """With a decay that hardly lets anything in, the weights stay near those after the first step."""
    data, kept = make_data(), {}
    for decay in (0.0, 0.9999):
        model = make_model("test_convnext")
        reports: list[EpochReport] = []
        run(model, data, CONFIG.replace(ema_decay=decay), on_epoch=reports.append)
        probabilities = predict(model, data.inputs, data.val)
        assert reports[-1].val_loss == pytest.approx(loss_of(probabilities, data), abs=1e-5)
        kept[decay] = model.classifier.weight.detach().clone()
    assert not torch.equal(kept[0.0], kept[0.9999])


def test_rare_classes_count_alike_where_that_is_asked_for():
    codes = np.array([0] * 90 + [2] * 10)
    weights = balanced_weights(codes, 3)
    assert weights[1] == 0
    assert weights[0] * 90 == pytest.approx(weights[2] * 10) == pytest.approx(50)


@pytest.mark.parametrize(("imbalance", "expected"), [("none", 0.1), ("sampler", 0.5)])
def test_a_sampler_draws_rare_classes_more_often(make_model, make_data, imbalance, expected):
    data, seen = make_data(train=200, val=0), []
    codes = (np.arange(200) < 20).astype(np.int64)

    class Watched(ImageInputs):
        def augmented(self, rows, augmentation):
            seen.extend(codes[rows])
            return super().augmented(rows, augmentation)

    inputs = Watched(data.inputs.images, data.inputs.preprocessing, data.inputs.device)
    run(
        make_model("test_convnext", k=1), Data(inputs, codes, data.train, data.val), CONFIG.replace(imbalance=imbalance)
    )
    assert len(seen) == 4 * 200
    assert np.mean(seen) == pytest.approx(expected, abs=0.06)


def test_a_weighted_loss_favours_the_rare_class(make_model, make_data):
    data = make_data(train=64)
    noise = np.random.default_rng(0).integers(0, 255, data.inputs.images.shape, dtype=np.uint8)
    inputs = ImageInputs(noise, data.inputs.preprocessing, data.inputs.device)  # nothing to learn but frequencies
    codes = (np.arange(80) % 8 == 0).astype(np.int64)
    found = {}
    for imbalance in ("none", "loss"):
        model = make_model("test_convnext", k=2)
        run(model, Data(inputs, codes, data.train, data.val), CONFIG.replace(imbalance=imbalance, epochs=2))
        found[imbalance] = predict(model, inputs, data.val)[:, 1].mean()
    assert found["none"] < 0.3 < found["loss"]


def test_early_stopping_leaves_the_best_epochs_weights(make_model, make_data):
    scores = iter([0.5, 0.8, 0.6, 0.7, 0.1, 0.9])
    metric = Metric("made up", True, lambda probabilities, codes: torch.tensor(next(scores)))
    model, data, seen = make_model(), make_data(), []

    def listen(report: EpochReport) -> None:
        seen.append((report.score, weights_hash(model)))

    config = CONFIG.replace(epochs=20, early_stopping=3)
    assert train(model, config, data, metric=metric, seed=0, on_epoch=listen) == pytest.approx(0.8)
    assert [round(score, 1) for score, _ in seen] == [0.5, 0.8, 0.6, 0.7, 0.1]
    assert weights_hash(model) == seen[1][1]


def test_a_training_may_end_early_on_the_same_schedule(make_model, make_data):
    reports: list[list[EpochReport]] = [[], []]
    for told, until in zip(reports, (None, 2), strict=True):
        run(make_model(), make_data(), CONFIG, on_epoch=told.append, until=until)
    whole, part = [[(r.epoch, r.train_loss, r.score) for r in told] for told in reports]
    assert part == whole[:2]


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_weights_that_are_no_numbers_are_told_though_the_last_loss_was_one(make_model, make_data, task):
    """With one step an epoch, the loss is that of the weights before they were ruined."""
    data = make_data(train=8)
    targets = data.targets if task == "classification" else data.targets[:, None].astype(float)
    model = make_model(outputs=2 if task == "classification" else 1)
    config = CONFIG.replace(learning_rate=1e30, epochs=1, warmup=0.0, clip_grad=0.0)
    metric = get_metric("auto", task)
    with pytest.raises(TrainingError, match="diverged in epoch 1"):
        train(model, config, with_targets(data, targets, task), metric=metric, seed=0)


def test_a_score_that_is_no_number_is_told(make_model, make_data):
    metric = Metric("made up", True, lambda probabilities, codes: torch.tensor(float("nan")))
    with pytest.raises(TrainingError, match="made up is nan in epoch 1: it says nothing about these validation images"):
        train(make_model(), CONFIG, make_data(), metric=metric, seed=0)


# Memory


class Small(ImageInputs):
    """A device that holds few images at once."""

    largest = 4

    def augmented(self, rows, augmentation):
        if len(rows) > self.largest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().augmented(rows, augmentation)


def test_a_batch_that_does_not_fit_goes_through_in_parts(make_model, make_data):
    """Without batch norm, the gradient of the parts together is that of the whole batch."""
    data, answers = make_data(), []
    for kind in (ImageInputs, Small):
        model = make_model("test_convnext")
        inputs = kind(data.inputs.images, data.inputs.preprocessing, data.inputs.device)
        config = CONFIG.replace(batch_size=16, epochs=1, optimizer="sgd", learning_rate=0.01)
        run(model, Data(inputs, data.targets, data.train, data.val), config)
        answers.append(predict(model, data.inputs, data.val))
    np.testing.assert_allclose(*answers, atol=1e-4)


def test_predictions_that_do_not_fit_are_made_in_parts(make_model, make_data):
    class Tiny(ImageInputs):
        def batch(self, rows):
            if len(rows) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().batch(rows)

    data, model = make_data(), make_model()
    small = Tiny(data.inputs.images, data.inputs.preprocessing, data.inputs.device)
    np.testing.assert_allclose(predict(model, small, data.val), predict(model, data.inputs, data.val), atol=1e-5)


def test_where_not_even_two_images_fit_the_training_says_so(make_model, make_data, monkeypatch):
    monkeypatch.setattr(Small, "largest", 1)
    data = make_data()
    inputs = Small(data.inputs.images, data.inputs.preprocessing, data.inputs.device)
    with pytest.raises(torch.OutOfMemoryError):
        run(make_model(), Data(inputs, data.targets, data.train, data.val))


def test_other_errors_are_not_taken_for_a_lack_of_memory(make_model, make_data, monkeypatch):
    monkeypatch.setattr(ImageInputs, "augmented", lambda *_: (_ for _ in ()).throw(RuntimeError("shape mismatch")))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        run(make_model(), make_data())


# Going on after a kill


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.9}, {"optimizer": "sgd"}, {"early_stopping": 2}], ids=str)
def test_a_training_that_was_killed_goes_on_to_the_same_end(make_model, make_data, tmp_path, changes):
    config = CONFIG.replace(augmentation="flip", drop_rate=0.2, epochs=4, **changes)
    data, state_file = make_data(), tmp_path / "trial" / "0.state"
    whole, told_of_whole = make_model("test_efficientnet"), []
    expected = run(whole, data, config, on_epoch=told_of_whole.append)

    class KilledError(Exception):
        pass

    def kill(report: EpochReport) -> None:
        if report.epoch == 2:
            raise KilledError

    with pytest.raises(KilledError):
        run(make_model("test_efficientnet"), data, config, on_epoch=kill, state_file=state_file)
    torch.manual_seed(99)  # another process
    model, told = make_model("test_efficientnet"), []
    assert run(model, data, config, on_epoch=told.append, state_file=state_file) == expected
    assert weights_hash(model) == weights_hash(whole)
    assert [(r.epoch, r.train_loss, r.score) for r in told] == [(r.epoch, r.train_loss, r.score) for r in told_of_whole]
    assert [path.name for path in state_file.parent.iterdir()] == ["0.state"]


@pytest.mark.parametrize(
    "state",
    [b"", b"half a file", b"other targets", None],
    ids=["empty", "damaged", "of other targets", "of another training"],
)
def test_a_state_that_does_not_fit_is_left_aside(make_model, make_data, tmp_path, state):
    data, state_file = make_data(), tmp_path / "0.state"
    if state == b"other targets":
        run(make_model(), replace(data, targets=1 - data.targets), state_file=state_file)
    elif state is None:
        run(make_model(), data, CONFIG.replace(learning_rate=0.1), state_file=state_file)
    else:
        state_file.write_bytes(state)
    models = [make_model(), make_model()]
    run(models[0], data, state_file=state_file)
    run(models[1], data)
    assert weights_hash(models[0]) == weights_hash(models[1])


# Label sets and numbers


def with_targets(data: Data, targets: np.ndarray, task: str) -> Data:
    return Data(data.inputs, targets, data.train, data.val, task)


def test_labels_are_learnt_each_on_its_own(make_model, make_data):
    data = make_data(train=64)
    labels = np.stack([data.targets, 1 - data.targets, data.targets], axis=1)
    torch.manual_seed(0)
    model = make_model("test_convnext", outputs=3)
    config = CONFIG.replace(epochs=6)
    metric = get_metric("accuracy", "multilabel")
    assert train(model, config, with_targets(data, labels, "multilabel"), metric=metric, seed=0) >= 0.9
    probabilities = predict(model, data.inputs, data.val, "multilabel")
    logits = np.log(probabilities / (1 - probabilities))
    np.testing.assert_allclose(logits, model.eval()(data.inputs.batch(data.val)).detach().numpy(), atol=1e-3)


@pytest.mark.parametrize("imbalance", ["none", "loss"])
def test_rare_labels_weigh_more_where_that_is_asked_for(make_model, make_data, imbalance):
    data = make_data(train=64)
    noise = np.random.default_rng(0).integers(0, 255, data.inputs.images.shape, dtype=np.uint8)
    inputs = ImageInputs(noise, data.inputs.preprocessing, data.inputs.device)  # nothing to learn but frequencies
    labels = (np.arange(80) % 8 == 0).astype(np.int64)[:, None]
    model = make_model("test_convnext", k=2, outputs=1)
    config = CONFIG.replace(imbalance=imbalance, epochs=2)
    data = Data(inputs, labels, data.train, data.val, "multilabel")
    train(model, config, data, metric=get_metric("auto", "multilabel"), seed=0)
    predicted = predict(model, inputs, data.val, "multilabel").mean()
    assert predicted < 0.3 if imbalance == "none" else predicted > 0.35


NUMBERS = {"large": (5000.0, 300.0), "small": (-2e-4, 1e-5)}


@pytest.mark.parametrize("kind", NUMBERS)
def test_numbers_of_any_size_are_learnt_in_their_own_units(make_model, make_data, kind):
    centre, spread = NUMBERS[kind]
    data = make_data(train=64)
    numbers = np.stack([centre + spread * data.targets, 7.0 - data.targets], axis=1)
    model, reports = make_model("test_convnext", outputs=2), []
    data = with_targets(data, numbers, "regression")
    Scale.of(numbers, "regression").give(model)
    config = CONFIG.replace(epochs=8)
    score = train(model, config, data, metric=get_metric("r2", "regression"), seed=0, on_epoch=reports.append)
    assert score == reports[-1].score > 0.8
    predicted = predict(model, data.inputs, data.val, "regression")
    assert get_metric("r2", "regression")(predicted, numbers[data.val]) == pytest.approx(score, abs=1e-3)
    assert np.abs(predicted[:, 0] - numbers[data.val, 0]).mean() < 0.4 * spread


def test_the_head_is_in_the_targets_units_before_and_after_whatever_ends_the_training(make_model, make_data):
    data = make_data()
    numbers = 1000.0 + 50 * data.targets[:, None]
    weight, bias = np.full((1, 64), 0.3, np.float32), np.array([990], np.float32)
    for go_on in (lambda: False, lambda: True):
        model = make_model("test_convnext", outputs=1)
        set_classifier(model, weight, bias)
        with contextlib.suppress(InterruptedError):
            train(
                model,
                CONFIG.replace(epochs=1, learning_rate=1e-12, weight_decay=0),
                with_targets(data, numbers, "regression"),
                metric=get_metric("r2", "regression"),
                seed=0,
                go_on=go_on,
            )
        np.testing.assert_allclose(model.classifier.weight.detach().numpy(), weight, rtol=1e-4)
        np.testing.assert_allclose(model.classifier.bias.detach().numpy(), bias, rtol=1e-5)


@pytest.mark.parametrize(
    ("task", "imbalance"), [("regression", "loss"), ("regression", "sampler"), ("multilabel", "sampler")]
)
def test_balancing_what_has_no_classes_is_refused(make_model, make_data, task, imbalance):
    data = make_data()
    targets = data.targets[:, None] if task == "multilabel" else data.targets[:, None].astype(float)
    with pytest.raises(TrainingError, match=f"imbalance: {imbalance} needs"):
        train(
            make_model(outputs=1),
            CONFIG.replace(imbalance=imbalance),
            with_targets(data, targets, task),
            metric=get_metric("auto", task),
            seed=0,
        )


@pytest.mark.parametrize("task", ["multilabel", "regression"])
def test_images_with_labels_or_numbers_are_mixed_too(make_model, make_data, task):
    data = make_data(train=48)
    targets = data.targets[:, None] if task == "multilabel" else data.targets[:, None].astype(float)
    config = CONFIG.replace(mixup=0.2, cutmix=0.5, epochs=6)
    metric = get_metric("auto", task)
    assert train(make_model(outputs=1), config, with_targets(data, targets, task), metric=metric, seed=0) > 0.6
