"""Kept activations: computed once, shared, whole or absent, and as good to train on as the images."""

import contextlib
import logging
import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from autotransfer.sources import weights_hash
from autotransfer.transfer.activations import ActivationInputs, ActivationStore
from autotransfer.transfer.augmentation import Augmentation
from autotransfer.transfer.config import TransferConfig
from autotransfer.transfer.evaluation import get_metric
from autotransfer.transfer.inputs import ImageInputs
from autotransfer.transfer.surgery import TransferModel, transfer
from autotransfer.transfer.training import predict, train

CONFIG = TransferConfig(
    source="s",
    transferred_layers=5,
    upper_layers="drop",
    frozen_layers=3,
    learning_rate=3e-3,
    epochs=3,
    batch_size=8,
    image_size=32,
    augmentation="none",
    cached_views=2,
)


@pytest.fixture
def make_model(get_source):
    def make(architecture: str = "test_efficientnet", k: int = 5, f: int = 3) -> TransferModel:
        source = get_source(architecture)
        torch.manual_seed(0)
        return transfer(source, transferred_layers=k, upper_layers="drop", frozen_layers=f, num_classes=2)

    return make


@pytest.fixture
def store(tmp_path) -> ActivationStore:
    return ActivationStore(tmp_path, 10**9, "these images", (np.arange(32), np.arange(32, 48)))


def files(store: ActivationStore) -> list:
    return sorted((store.cache_dir / "activations").glob("*")) if (store.cache_dir / "activations").is_dir() else []


def trained(model, store, data, config=CONFIG, seed: int = 0):
    with store.inputs(model, config, data.inputs) as inputs:
        score = train(model, config, replace(data, inputs=inputs), metric=get_metric("accuracy"), seed=seed)
    return score, predict(model, data.inputs, data.val)


@pytest.mark.parametrize(("largest_for_half", "tolerance"), [(0.0, 1e-5), (1e4, 0.02)], ids=["float32", "float16"])
def test_training_on_kept_activations_gives_the_network_of_training_on_images(
    make_model, make_data, store, monkeypatch, largest_for_half, tolerance
):
    monkeypatch.setattr("autotransfer.transfer.activations._LARGEST_FOR_HALF", largest_for_half)
    data = make_data()
    score, probabilities = trained(make_model(), store, data)
    expected_score, expected = trained(make_model(), store, data, CONFIG.replace(cached_views=0))
    assert len(files(store)) == 2  # one for the training images, one for the validation images
    assert score == expected_score
    np.testing.assert_allclose(probabilities, expected, atol=tolerance)


def test_the_second_training_computes_nothing_and_ends_alike(make_model, make_data, store, monkeypatch):
    data, config = make_data(), CONFIG.replace(augmentation="flip")
    hashes = []
    for _ in range(2):
        model = make_model()
        trained(model, store, data, config)
        hashes.append(weights_hash(model))
        monkeypatch.setattr(ImageInputs, "augmented", None)  # images are not augmented a second time
    assert hashes[0] == hashes[1]
    assert len(files(store)) == 3  # two views of the training images, the validation images as they are


def test_a_state_kept_with_activations_goes_on_without_and_the_other_way_round(make_model, make_data, store, tmp_path):
    data, config, found = make_data(), CONFIG.replace(epochs=4), []

    def stop_after_two(report) -> None:
        if report.epoch == 2:
            raise InterruptedError

    for before, after in ((2, 0), (0, 2), (0, 0)):
        state, model = tmp_path / f"{before}{after}.state", make_model()
        for views, listen in ((before, stop_after_two), (after, lambda report: None)):
            kept = ActivationStore(store.cache_dir, 10**9 if views else 0, store.images_id, store.splits)
            model = make_model()
            with contextlib.suppress(InterruptedError), kept.inputs(model, config, data.inputs) as inputs:
                options = {"metric": get_metric("accuracy"), "seed": 0, "on_epoch": listen, "state_file": state}
                train(model, config, replace(data, inputs=inputs), **options)
        found.append(predict(model, data.inputs, data.val))
    np.testing.assert_allclose(found[0], found[2], atol=0.02)
    np.testing.assert_allclose(found[1], found[2], atol=0.02)


def test_rows_that_are_not_kept_are_refused(make_model, make_data, store):
    data = make_data()
    with store.inputs(make_model(), CONFIG, data.inputs) as inputs, pytest.raises(ValueError, match="kept of the"):
        inputs.batch(np.array([0, 1000]))


def test_other_heads_and_depths_share_what_the_same_frozen_levels_say(make_model, make_data, store):
    data = make_data()
    for k in (5, 4):
        trained(make_model(k=k), store, data)
    assert len(files(store)) == 2
    trained(make_model(f=2), store, data, CONFIG.replace(frozen_layers=2))
    assert len(files(store)) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"images_id": "other images"},
        {"splits": (np.arange(31), np.arange(32, 48))},
        {"splits": (np.arange(1, 33), np.arange(33, 48))},
    ],
)
def test_other_images_have_other_activations(make_model, make_data, store, change):
    data = make_data()
    rows = {"train": np.arange(1, 31), "val": np.arange(33, 48)}
    trained(make_model(), store, replace(data, **rows))
    before = set(files(store))
    trained(make_model(), replace(store, **change), replace(data, **rows))
    assert set(files(store)) - before


def test_each_epoch_draws_one_of_the_views_of_each_image(make_model, make_data, store):
    model, data, config = make_model(), make_data(), CONFIG.replace(augmentation="light", cached_views=3)
    rows = np.arange(32)
    with store.inputs(model, config, data.inputs) as inputs:
        assert isinstance(inputs, ActivationInputs)
        boundary = model.backbone.get_submodule(inputs.activations.prefix.boundary)

        def replayed(augmentation: Augmentation, seed: int) -> np.ndarray:
            torch.manual_seed(seed)
            inputs.augmented(rows, augmentation)
            return boundary.value.numpy().copy()

        light = Augmentation.of(config)
        draws = [replayed(light, seed) for seed in range(30)]
        plain = replayed(Augmentation(), 0)
    assert len({draw[0].tobytes() for draw in draws}) == 3
    assert len({draw.tobytes() for draw in draws}) == 30
    assert plain[0].tobytes() not in {draw[0].tobytes() for draw in draws}


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-1], lambda data: data + b"x"])
def test_a_damaged_file_is_noticed_and_built_again(make_model, make_data, store, caplog, damage):
    data, hashes = make_data(), []
    model = make_model()
    trained(model, store, data)
    before = {path: path.read_bytes() for path in files(store)}
    for path, content in before.items():
        path.unlink()
        path.write_bytes(damage(content))
    again = make_model()
    with caplog.at_level(logging.WARNING):
        trained(again, store, data)
    hashes = [weights_hash(model), weights_hash(again)]
    assert hashes[0] == hashes[1]
    assert "is damaged and is built again" in caplog.text
    assert {path: path.read_bytes() for path in files(store)} == before


def test_stopping_while_they_are_computed_leaves_nothing(make_model, make_data, store):
    model, data = make_model(), make_data()
    with (
        pytest.raises(InterruptedError, match="frozen layers"),
        store.inputs(model, CONFIG, data.inputs, lambda: False) as inputs,
    ):
        predict(model, inputs, data.val)
    assert files(store) == []


@pytest.mark.parametrize("changes", [{"cached_views": 0}, {"frozen_layers": 0}])
def test_without_views_or_frozen_levels_the_images_are_trained_on(make_model, make_data, store, changes):
    data = make_data()
    with store.inputs(make_model(), CONFIG.replace(**changes), data.inputs) as inputs:
        assert inputs is data.inputs


def test_what_would_take_more_than_half_the_cache_is_not_kept(make_model, make_data, store):
    data = make_data()
    with replace(store, limit_bytes=10_000).inputs(make_model(), CONFIG, data.inputs) as inputs:
        assert inputs is data.inputs


def test_values_too_large_for_float16_are_kept_whole(make_model, make_data, store, get_source):
    model, data = make_model("resnet10t"), make_data()
    with torch.no_grad():
        for parameter in model.backbone.layer2.parameters():
            parameter.mul_(40)
    with store.inputs(model, CONFIG, data.inputs) as inputs:
        probabilities = predict(model, inputs, data.val)
    np.testing.assert_allclose(probabilities, predict(model, data.inputs, data.val), atol=1e-4)
    assert {np.load(path).dtype for path in files(store)} == {np.dtype(np.float32)}


def test_a_full_cache_makes_room(make_model, make_data, store):
    data = make_data()
    trained(make_model(), store, data)
    (first, second), size = files(store), sum(path.stat().st_size for path in files(store))
    for age, path in enumerate((second, first)):
        os.utime(path, (age, age))
    small = replace(store, limit_bytes=2 * size + 1000)
    trained(make_model(f=2), small, data, CONFIG.replace(frozen_layers=2, cached_views=1))
    assert sum(path.stat().st_size for path in files(store)) <= small.limit_bytes
