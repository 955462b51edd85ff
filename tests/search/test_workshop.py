"""What the workshop promises: networks that start where the probe ended, and limits that hold."""

import numpy as np
import pytest
import torch
from small_study import CONVNEXT, MOBILENET, config_of, small_space

from autotransfer.datasets import decode_image
from autotransfer.probing import fit_linear_head
from autotransfer.search.workshop import exceeds_limits, linear_probe_config, with_training
from autotransfer.transfer.surgery import build_network
from autotransfer.transfer.training import predict

LEVELS = [(CONVNEXT, 1), (CONVNEXT, 3), (CONVNEXT, 4), (MOBILENET, 2), (MOBILENET, 5)]


def accuracy(workshop, model, source: str) -> float:
    val = workshop.dataset.rows("val")
    probabilities = predict(model, workshop.inputs(source), val)
    return float((probabilities.argmax(axis=1) == workshop.dataset.codes[val]).mean())


def test_images_are_the_targets_at_the_size_of_the_source(workshop, digits):
    images = workshop.inputs(MOBILENET).images
    assert images.shape == (len(digits), 64, 64, 3)
    expected = decode_image(digits.samples["image"].iloc[17], 64, "bilinear")
    assert np.array_equal(images[17], expected)


# Where networks start


def started(workshop, config, rows):
    """The network as its training on `rows` begins."""
    with workshop.started(config, rows) as (model, _):
        pass
    return model


@pytest.fixture
def start(workshop, digits):
    """`start(config)`: the network as its training on the train split begins."""
    return lambda config: started(workshop, config, digits.rows("train"))


@pytest.mark.parametrize(("source", "level"), [(CONVNEXT, 1), (CONVNEXT, 3), (CONVNEXT, 4)])
def test_untrained_a_network_answers_as_its_linear_probe_does(start, workshop, pool, source, level):
    untrained = accuracy(workshop, start(config_of(source, level)), source)
    assert untrained == pytest.approx(pool.get(source, level).linear_probe, abs=1.01 / 30)  # one image of 30


@pytest.mark.parametrize(("source", "level"), [(MOBILENET, 2), (MOBILENET, 5)])
def test_with_its_batch_norms_frozen_a_network_does_so_too(start, workshop, pool, source, level):
    untrained = accuracy(workshop, start(config_of(source, level, frozen_layers=level)), source)
    assert untrained == pytest.approx(pool.get(source, level).linear_probe, abs=1.01 / 30)


def test_batch_norms_that_train_start_with_the_targets_statistics_and_frozen_ones_keep_the_sources(start, workshop):
    level = workshop.source(MOBILENET).levels[1]
    before = workshop.source(MOBILENET).load().state_dict()
    model = start(config_of(MOBILENET, 5, frozen_layers=2))
    means = {name: value for name, value in model.backbone.state_dict().items() if name.endswith("running_mean")}
    frozen = {name for name in means if name.rpartition(".")[0] in level.modules}
    assert frozen
    assert {name for name, mean in means.items() if torch.equal(mean, before[name])} == frozen
    assert accuracy(workshop, model, MOBILENET) > 0.5  # five classes: chance is 0.2


def test_freezing_does_not_change_where_a_network_without_batch_norms_starts(start):
    free, frozen = (start(config_of(CONVNEXT, 3, frozen_layers=f)) for f in (0, 3))
    for name, tensor in free.state_dict().items():
        assert torch.equal(tensor, frozen.state_dict()[name])
    assert [name for name, p in frozen.named_parameters() if p.requires_grad] == ["head.weight", "head.bias"]


@pytest.mark.parametrize(
    "changes",
    [{"head": "random"}, {"upper_layers": "reinit"}, {"transferred_layers": 0, "upper_layers": "reinit"}],
    ids=["random head", "reinitialised above", "from scratch"],
)
def test_the_head_is_not_solved_where_the_probes_features_are_not_there_or_not_wanted(start, workshop, changes):
    config = config_of(CONVNEXT, 2, **changes)
    assert torch.equal(start(config).classifier.weight, workshop.build(config).classifier.weight)


def test_the_same_configuration_starts_the_same_and_another_seed_does_not(make_workshop):
    config = config_of(CONVNEXT, 2, upper_layers="reinit")
    torch.manual_seed(123)
    first = make_workshop(seed=1).build(config).state_dict()
    torch.manual_seed(456)
    same, other = make_workshop(seed=1).build(config).state_dict(), make_workshop(seed=2).build(config).state_dict()
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("splits", [("train",), ("train", "val")])
def test_the_head_is_solved_on_the_rows_that_training_will_see(workshop, digits, pool, splits):
    rows = digits.rows(*splits)
    features = pool.probes[CONVNEXT].at(2, rows)
    strength = pool.get(CONVNEXT, 2).head.strength
    expected = fit_linear_head(features, digits.codes[rows], len(digits.classes), strength)
    model = started(workshop, config_of(CONVNEXT, 2), rows)
    assert np.array_equal(model.classifier.weight.detach().numpy(), expected.weight)
    assert np.array_equal(model.classifier.bias.detach().numpy(), expected.bias)


def test_the_head_is_solved_on_probed_rows_alone(workshop, digits):
    every_row = started(workshop, config_of(CONVNEXT, 2), digits.rows("train", "val", "test"))  # test is never probed
    probed = started(workshop, config_of(CONVNEXT, 2), digits.rows("train", "val"))
    assert torch.equal(every_row.classifier.weight, probed.classifier.weight)


# Configurations


def test_the_space_sets_what_is_the_same_for_every_trial(make_workshop):
    training = {"batch_size": 8, "augmentation": "flip", "label_smoothing": 0.3, "drop_rate": 0.2, "head": "random"}
    workshop = make_workshop(space=small_space(training=training))
    config = with_training(workshop, config_of(MOBILENET, image_size=999))
    assert {key: getattr(config, key) for key in training} == training
    assert config.image_size == 64


def test_a_linear_probe_is_a_configuration_that_trains_nothing(workshop):
    config = linear_probe_config(workshop, MOBILENET, 3)
    assert config.linear_probe
    assert (config.source, config.transferred_layers, config.image_size) == (MOBILENET, 3, 64)


# Limits


def parameters(workshop, config) -> int:
    """Counted in the network that the configuration means."""
    network = build_network(
        workshop.source(config.source),
        transferred_layers=config.transferred_layers,
        upper_layers=config.upper_layers,
        num_classes=len(workshop.dataset.classes),
    )
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("upper_layers", ["drop", "reinit"])
@pytest.mark.parametrize(("source", "level"), [*LEVELS, (CONVNEXT, 0)])
def test_a_network_may_have_as_many_parameters_as_the_limit_and_not_one_more(
    make_workshop, source, level, upper_layers
):
    config = config_of(source, level, upper_layers=upper_layers)
    count = parameters(make_workshop(), config)
    assert exceeds_limits(config, make_workshop(max_parameters=count)) == ""
    refused = exceeds_limits(config, make_workshop(max_parameters=count - 1))
    assert refused == f"{count:,} parameters are more than --max-params {count - 1:,}"


def test_latency_is_limited_by_what_was_measured_for_the_depth_that_is_used(make_workshop):
    latencies = {(CONVNEXT, level): 2.0 * level for level in (1, 2, 3, 4)}
    workshop = make_workshop(max_latency_ms=4.0, latencies_ms=latencies)
    assert exceeds_limits(config_of(CONVNEXT, 2), workshop) == ""
    assert exceeds_limits(config_of(CONVNEXT, 3), workshop) == "6.0 ms an image are more than --max-latency 4"
    assert "8.0 ms" in exceeds_limits(config_of(CONVNEXT, 1, upper_layers="reinit"), workshop)
    assert "8.0 ms" in exceeds_limits(config_of(CONVNEXT, 0, upper_layers="reinit"), workshop)


def test_without_limits_everything_is_allowed(make_workshop):
    assert exceeds_limits(config_of(CONVNEXT, 4), make_workshop(latencies_ms={(CONVNEXT, 4): 1e9})) == ""
