"""The frozen prefix: what runs once and is replayed says what the whole network says, in every family."""

import numpy as np
import pytest
import torch
from random_sources import MORE_FAMILIES, SMALL_FAMILIES
from torch import nn

from autotransfer.sources import Source
from autotransfer.transfer.prefix import FrozenPrefix, find_prefix
from autotransfer.transfer.surgery import TransferModel, transfer

PASSES_ON_MORE = {"pit_ti_224"}  # from stage to stage it hands its class token beside the images
ALL_FAMILIES = [
    *SMALL_FAMILIES,
    *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_FAMILIES),
]


@pytest.fixture(params=ALL_FAMILIES)
def source(request, get_source) -> Source:
    return get_source(request.param)


def images(count: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def cut(source: Source, k: int, f: int, upper: str = "drop") -> TransferModel:
    torch.manual_seed(7)
    model = transfer(source, transferred_layers=k, upper_layers=upper, frozen_layers=f, num_classes=3)
    nn.init.normal_(model.classifier.weight)
    return model


def depths(source: Source) -> list[tuple[int, int, str]]:
    top = len(source.levels)
    middle = max(1, top // 2)
    return [(top, 1, "drop"), (top, middle, "drop"), (middle, middle, "reinit"), (middle, middle, "drop")]


def found(model: TransferModel) -> FrozenPrefix:
    prefix = find_prefix(model, images())
    assert prefix is not None
    return prefix


def test_replayed_activations_give_the_logits_of_the_whole_network(source):
    if source.architecture in PASSES_ON_MORE:
        pytest.skip("cannot be replayed")
    for k, f, upper in depths(source):
        model = cut(source, k, f, upper).eval()
        prefix, batch = found(model), images(5, seed=1)
        with torch.inference_mode():
            expected = model(batch)
            activations = prefix.activations(batch)
            assert activations.shape == (5, *prefix.shape)
            with prefix.replaying():
                logits = model(prefix.feed(activations))
                swapped = model(prefix.feed(activations.flip(0)))
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(swapped, expected.flip(0), rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(model(batch), expected)


def test_training_on_activations_gives_the_gradients_of_training_on_images(source):
    if source.architecture in PASSES_ON_MORE:
        pytest.skip("cannot be replayed")
    for k, f, upper in depths(source):
        model, targets = cut(source, k, f, upper), torch.tensor([0, 1, 2, 0])
        prefix = found(model)
        for module in model.modules():  # what is random in training would differ between the two
            if isinstance(module, nn.Dropout) or type(module).__name__ == "DropPath":
                module.p = module.drop_prob = 0.0

        def gradients(inputs: torch.Tensor, model=model, targets=targets) -> dict[str, torch.Tensor]:
            model.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

        model.train()
        expected = gradients(images())
        activations = prefix.activations(images())
        assert model.training
        with prefix.replaying():
            replayed = gradients(prefix.feed(activations))
        assert replayed.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(replayed[name], gradient, rtol=1e-3, atol=1e-4, msg=name)


def test_the_frozen_modules_are_out_of_the_network_only_while_it_replays(get_source):
    source = get_source("resnet10t")
    model = cut(source, 5, 3)
    prefix = found(model)
    before = [name for name, _ in model.named_parameters()]
    with prefix.replaying():
        during = [name for name, _ in model.named_parameters()]
        activations = prefix.activations(images())  # the frozen part still runs where it is asked to
    assert [name for name, _ in model.named_parameters()] == before
    assert set(before) - set(during) == {f"backbone.{name}" for name in source.levels[2].parameters}
    torch.testing.assert_close(activations, prefix.activations(images()))


def test_an_exception_brings_the_network_back_whole(get_source):
    model = cut(get_source("resnet10t"), 5, 3).eval()
    prefix, expected = found(model), model(images())
    with pytest.raises(KeyboardInterrupt), prefix.replaying():
        raise KeyboardInterrupt
    torch.testing.assert_close(model(images()), expected)


def test_where_all_but_the_classifier_is_frozen_the_features_are_kept(get_source):
    model = cut(get_source("test_vit"), 6, 6)
    prefix = found(model)
    assert (prefix.boundary, prefix.shape) == ("", (64,))


def test_without_frozen_levels_there_is_no_prefix(get_source):
    assert find_prefix(cut(get_source("resnet10t"), 5, 0), images()) is None


def test_what_hands_on_more_than_its_output_is_not_replayed(get_source):
    """The features depend on more than the boundary says: noticed by trying."""
    model = cut(get_source("resnet10t"), 5, 2)
    original = model.backbone.forward_features
    model.backbone.forward_features = lambda x: original(x) + x.mean()
    assert find_prefix(model, images()) is None


@pytest.mark.slow
def test_pit_is_not_replayed(get_source):
    assert find_prefix(cut(get_source("pit_ti_224"), 3, 1), images()) is None


def test_the_identity_is_that_of_the_frozen_part_alone(get_source):
    source = get_source("resnet10t")
    identities = []
    for k, f, upper in [(5, 3, "drop"), (4, 3, "drop"), (3, 3, "reinit"), (5, 2, "drop")]:
        prefix = found(cut(source, k, f, upper))
        identities.append(prefix.identity())
        with prefix.replaying():
            assert prefix.identity() == identities[-1]
    assert len(set(identities[:3])) == 1
    assert identities[3] != identities[0]
    changed = cut(source, 5, 3)
    changed.backbone.bn1.running_mean += 1e-3
    assert found(changed).identity() != identities[0]


def test_another_number_of_images_than_was_tried_is_no_problem(get_source):
    model = cut(get_source("swin_tiny_patch4_window7_224"), 4, 2).eval()
    prefix = found(model)
    for count in (1, 7):
        with torch.inference_mode():
            activations = prefix.activations(images(count))
            with prefix.replaying():
                replayed = model(prefix.feed(activations)).numpy()
            np.testing.assert_allclose(replayed, model(images(count)).numpy(), rtol=1e-3, atol=1e-4)
