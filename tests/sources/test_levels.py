"""Levels: what they promise of any architecture that timm can take apart."""

from itertools import pairwise

import pytest
import timm
import torch
from random_sources import MORE_FAMILIES, SMALL_FAMILIES, random_network
from torch import nn

from autotransfer.errors import SourceError
from autotransfer.sources import Level, find_levels

SIZE = 64
ALL_FAMILIES = [
    *SMALL_FAMILIES,
    *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_FAMILIES),
]

Case = tuple[nn.Module, tuple[Level, ...]]


@pytest.fixture(scope="module", params=ALL_FAMILIES)
def case(request) -> Case:
    model_args = {**SMALL_FAMILIES, **MORE_FAMILIES}[request.param]
    model = random_network(request.param, **model_args)
    return model, find_levels(model, SIZE)


def outputs_of(model: nn.Module, images: torch.Tensor, levels: tuple[Level, ...]) -> list[torch.Tensor]:
    """Each level's output, computed by the whole network; the last one as its own classifier reads it."""
    model.train().eval()  # LeViT keeps its biases from the last pass in evaluation mode
    final, outputs = model.forward_intermediates(images)
    lower = [outputs[level.timm_index] for level in levels[:-1]]
    return [*lower, model.forward_head(final, pre_logits=True).flatten(1)]


def batch(seed: int = 1) -> torch.Tensor:
    return torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def test_levels_are_counted_from_the_input(case: Case):
    _, levels = case
    assert len(levels) >= 2
    assert [level.index for level in levels] == list(range(1, len(levels) + 1))
    timm_indices = [level.timm_index for level in levels]
    assert timm_indices == sorted(set(timm_indices))


def test_levels_nest_and_grow(case: Case):
    _, levels = case
    for lower, upper in pairwise(levels):
        assert lower.parameters < upper.parameters
        assert lower.modules < upper.modules
        assert 0 < lower.parameter_count < upper.parameter_count
        assert 0 < lower.flops <= upper.flops
    assert levels[0].flops < levels[-1].flops


def test_channels_and_reduction_are_those_of_the_features(case: Case):
    model, levels = case
    with torch.inference_mode():
        found = outputs_of(model, batch(), levels)
    assert [level.channels for level in levels] == [output.shape[1] for output in found]
    for level, output in zip(levels[:-1], found, strict=False):
        assert level.reduction == SIZE / output.shape[-1]


def test_a_level_has_the_parameters_that_its_output_has_gradients_for(case: Case):
    model, levels = case
    named = dict(model.named_parameters())
    for level, output in zip(levels[:-1], outputs_of(model, batch(), levels), strict=False):
        gradients = torch.autograd.grad(output.sum(), list(named.values()), allow_unused=True, retain_graph=True)
        used = {name for name, gradient in zip(named, gradients, strict=True) if gradient is not None}
        assert level.parameters == used
        assert level.parameter_count == sum(named[name].numel() for name in used)


def test_the_last_level_is_the_whole_network_without_its_classifier(case: Case):
    model, levels = case
    classifier = model.get_classifier()
    heads = classifier if isinstance(classifier, tuple) else [classifier]
    in_classifier = {id(parameter) for head in heads for parameter in head.parameters()}
    model.train().eval()
    named = dict(model.named_parameters())
    behind_features, behind_logits = (
        torch.autograd.grad(output.sum(), list(named.values()), allow_unused=True, retain_graph=True)
        for output in (outputs_of(model, batch(), levels)[-1], model.train().eval()(batch()))
    )
    expected = {
        name
        for (name, parameter), feature, logit in zip(named.items(), behind_features, behind_logits, strict=True)
        if id(parameter) not in in_classifier and not (feature is None and logit is not None)
    }
    assert levels[-1].parameters == expected
    assert levels[-1].parameter_count == sum(named[name].numel() for name in expected)


def test_norm_statistics_belong_to_the_level_of_their_weights(case: Case):
    model, levels = case
    for name, module in model.named_modules():
        if getattr(module, "running_mean", None) is not None and getattr(module, "weight", None) is not None:
            for level in levels[:-1]:
                assert (name in level.modules) == (f"{name}.weight" in level.parameters), (name, level.index)
            assert name in levels[-1].modules


def test_nothing_outside_of_a_level_changes_its_output(case: Case):
    model, levels = case
    saved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.inference_mode():
        expected = outputs_of(model, batch(), levels)
    try:
        for level in levels[:-1]:
            disturb_all_but(model, level)
            with torch.inference_mode():
                actual = outputs_of(model, batch(), levels)
            assert torch.equal(actual[level.index - 1], expected[level.index - 1])
            assert not torch.equal(actual[-1], expected[-1])
            model.load_state_dict(saved)
    finally:
        model.load_state_dict(saved)


@torch.no_grad()
def disturb_all_but(model: nn.Module, level: Level) -> None:
    for name, parameter in model.named_parameters():
        if name not in level.parameters:
            parameter.add_(0.01 * torch.randn_like(parameter))
    for name, module in model.named_modules():
        if name not in level.modules and getattr(module, "running_var", None) is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)


def test_finding_levels_leaves_the_network_as_it_was():
    model = random_network("test_efficientnet").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    find_levels(model, SIZE)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("architecture", ["resnet10t", "mobilenetv3_small_050", "test_byobnet"])
def test_operations_are_two_for_each_multiplication(architecture):
    model = random_network(architecture)
    counted = 0

    def count(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal counted
        counted += 2 * output[0].numel() * module.weight[0].numel()

    hooks = [
        module.register_forward_hook(count) for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.inference_mode():
        model.forward_head(model.forward_features(batch()[:1]), pre_logits=True)
    for hook in hooks:
        hook.remove()
    assert find_levels(model, SIZE)[-1].flops == counted


def test_an_empty_stage_is_no_level():
    model = random_network("resnet10t")
    assert len(find_levels(model, SIZE)) == 5
    model.layer4, model.fc = nn.Identity(), nn.Linear(256, 5)
    levels = find_levels(model, SIZE)
    assert [level.channels for level in levels] == [64, 64, 128, 256]
    assert levels[-1].reduction == 16


def test_parallel_branches_do_not_break_the_nesting():
    levels = find_levels(random_network("hrnet_w18_small"), SIZE)
    assert len(levels) >= 3
    assert all(lower.parameters < upper.parameters for lower, upper in pairwise(levels))


def test_larger_images_cost_more_and_change_nothing_else():
    model = random_network("test_convnext")
    for small, large in zip(find_levels(model, 32), find_levels(model, 64), strict=True):
        assert large.flops > 3 * small.flops
        assert (large.parameters, large.modules, large.channels) == (small.parameters, small.modules, small.channels)


def test_a_model_that_cannot_be_cut_is_told():
    class Plain(nn.Sequential):
        pass

    with pytest.raises(SourceError, match=r"Plain cannot be cut: .*forward_intermediates.*another source"):
        find_levels(Plain(nn.Conv2d(3, 4, 1)), SIZE)


def test_levels_are_found_for_one_channel():
    model = timm.create_model("test_convnext", in_chans=1)
    assert len(find_levels(model, SIZE, in_channels=1)) == 4
