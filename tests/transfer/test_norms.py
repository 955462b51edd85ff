"""Norm statistics: measured on the target, where a norm will train."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from autotransfer.sources import weights_hash
from autotransfer.transfer.norms import extract_features, recalibrate
from autotransfer.transfer.surgery import TransferModel, transfer


@pytest.fixture
def make_model(get_source):
    def make(architecture: str, k: int, f: int = 0) -> TransferModel:
        source = get_source(architecture)
        torch.manual_seed(0)
        return transfer(source, transferred_layers=k, upper_layers="drop", frozen_layers=f, num_classes=2)

    return make


def normalised(data) -> torch.Tensor:
    return torch.tensor((data.inputs.images / 255.0 - 0.5) / 0.25, dtype=torch.float32).permute(0, 3, 1, 2)


def test_the_first_norm_gets_mean_and_variance_of_its_inputs(make_model, make_data):
    model, data = make_model("resnet10t", 2), make_data(train=40)
    assert recalibrate(model, data.inputs, data.train)
    norm = model.backbone.bn1
    seen: list[torch.Tensor] = []
    norm.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        model.eval().features(normalised(data)[data.train])
    torch.testing.assert_close(norm.running_mean, seen[0].mean(dim=(0, 2, 3)), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(norm.running_var, seen[0].var(dim=(0, 2, 3)), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("architecture", ["resnet10t", "test_efficientnet", "regnety_002"])
def test_afterwards_training_and_evaluation_see_the_same_features(make_model, make_data, architecture):
    model, data = make_model(architecture, 4), make_data(train=32, size=64)
    images = normalised(data)[data.train]

    def difference() -> float:
        with torch.no_grad():
            trained, evaluated = model.train().features(images), model.eval().features(images)
        return ((trained - evaluated).norm() / trained.norm()).item()

    before = difference()  # also moves the statistics a tenth of the way, which is not enough
    recalibrate(model, data.inputs, data.train)
    assert difference() < 0.1 * before


def test_frozen_levels_keep_the_sources_statistics(make_model, make_data, get_source):
    model, data = make_model("test_efficientnet", 5, 3), make_data()
    frozen = get_source("test_efficientnet").levels[2].modules
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    assert recalibrate(model, data.inputs, data.train)
    for name, tensor in model.backbone.state_dict().items():
        if "running_" in name:
            assert torch.equal(tensor, before[name]) == (name.rpartition(".")[0] in frozen), name
        elif "num_batches" not in name:
            assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize(("architecture", "k", "f"), [("test_convnext", 3, 0), ("test_efficientnet", 5, 5)])
def test_where_no_norm_trains_nothing_changes(make_model, make_data, architecture, k, f):
    model, data = make_model(architecture, k, f), make_data()
    before = weights_hash(model)
    assert not recalibrate(model, data.inputs, data.train)
    assert weights_hash(model) == before


def test_one_image_is_not_enough(make_model, make_data):
    model, data = make_model("resnet10t", 2), make_data()
    before = weights_hash(model)
    assert not recalibrate(model, data.inputs, data.train[:1])
    assert weights_hash(model) == before


def test_training_goes_on_with_the_momentum_it_had(make_model, make_data):
    model, data = make_model("resnet10t", 5), make_data()
    recalibrate(model, data.inputs, data.train)
    assert {module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm2d)} == {0.1}


def test_only_the_given_rows_are_looked_at_and_the_seed_draws_them(make_model, make_data, monkeypatch):
    monkeypatch.setattr("autotransfer.transfer.norms._ENOUGH_IMAGES", 8)
    data, hashes = make_data(), []
    others = replace(data.inputs, images=data.inputs.images.copy())
    others.images[data.val] = 0
    for inputs, seed in ((data.inputs, 0), (others, 0), (data.inputs, 1)):
        model = make_model("resnet10t", 2)
        recalibrate(model, inputs, data.train, seed=seed)
        hashes.append(weights_hash(model))
    assert hashes[0] == hashes[1] != hashes[2]


def test_extracted_features_are_what_the_classifier_reads(make_model, make_data):
    model, data = make_model("test_efficientnet", 3), make_data(train=70)
    rows = np.array([69, 0, 5, 5])
    with torch.inference_mode():
        expected = model.eval().features(normalised(data)).numpy()
    everything = extract_features(model.train(), data.inputs, np.arange(len(data.targets)))
    np.testing.assert_allclose(everything, expected, rtol=1e-4, atol=1e-5)
    chosen = extract_features(model, data.inputs, rows)
    np.testing.assert_allclose(chosen, expected[rows], rtol=1e-4, atol=1e-5)
    assert extract_features(model, data.inputs, rows[:0]).shape == (0, 32)
