"""Levels: the places where a source can be cut, found the same way for every timm architecture.

timm's `forward_intermediates` says what the levels are; which parameters and modules a level consists of is
read from what takes part in computing it: parameters from the autograd graph of the level's output, modules
from the calls that are made on the way. So nothing here depends on how an architecture names its parts.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autotransfer.errors import SourceError


@dataclass(frozen=True)
class Level:
    """One place where a source can be cut.

    Attributes:
        index: 1..K, counted from the input; the stem belongs to level 1.
        timm_index: the index that `forward_intermediates` knows the level by.
        channels: width of the pooled features.
        reduction: input pixels per output pixel along one side.
        parameters: names of the parameters that levels 1..index consist of.
        modules: names of the modules that levels 1..index consist of: those that run on the way and whose
            parameters all belong. Not only leaves: timm's `BatchNormAct2d` keeps norm statistics and has children.
        parameter_count: number of weights in levels 1..index.
        flops: floating-point operations of levels 1..index for one image (a multiply-add counts two).
    """

    index: int
    timm_index: int
    channels: int
    reduction: float
    parameters: frozenset[str]
    modules: frozenset[str]
    parameter_count: int
    flops: int


def find_levels(model: nn.Module, image_size: int, in_channels: int = 3) -> tuple[Level, ...]:
    """Find where `model` can be cut, with what each level consists of and costs.

    Levels nest: an output that is the same as the one before (an `Identity` stage), or that does not build on
    it (a parallel branch), is left out. The last level always stands for the whole network up to the pooled
    features that its own classifier reads.

    Args:
        model: any timm model with `forward_intermediates`, on any device; left in the mode it was in.
        image_size: side of the square input in pixels.
        in_channels: input channels.

    Raises:
        SourceError: the architecture has no `forward_intermediates`, so it cannot be cut.
    """
    if not hasattr(model, "forward_intermediates"):
        raise SourceError(
            f"{type(model).__name__} cannot be cut: timm gives it no forward_intermediates. "
            "Choose another source (`autotransfer sources` lists them)."
        )
    was_training = model.training
    _evaluation_mode(model)
    device = next(model.parameters()).device
    image = torch.zeros(1, in_channels, image_size, image_size, device=device)
    network: Any = model
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    try:
        with torch.enable_grad():
            outputs = network.forward_intermediates(image.requires_grad_(), intermediates_only=True)
        levels: list[Level] = []
        for timm_index, output in enumerate(outputs):
            parameters = frozenset(names[key] for key in parameters_behind(output) if key in names)
            if levels and (_same(output, outputs[timm_index - 1]) or not levels[-1].parameters <= parameters):
                continue
            called, flops = _modules_and_flops(model, image, timm_index)
            levels.append(
                Level(
                    index=len(levels) + 1,
                    timm_index=timm_index,
                    channels=_channels(output),
                    reduction=image_size / output.shape[-1],
                    parameters=parameters,
                    modules=_made_of(model, called, parameters),
                    parameter_count=sum(counts[name] for name in parameters),
                    flops=flops,
                )
            )
        last = len(outputs) - 1
        if levels[-1].timm_index == last or _same(outputs[last], outputs[levels[-1].timm_index]):
            del levels[-1]
        levels.append(_whole_network(model, image, len(levels) + 1, last, image_size / outputs[last].shape[-1]))
    finally:
        _evaluation_mode(model).train(was_training)
    return tuple(levels)


def whole_network(model: nn.Module, image_size: int, in_channels: int = 3) -> Level:
    """The one level of an architecture that cannot be cut: all that its own classifier reads from.

    Args:
        model: any timm model with `forward_features` and `forward_head`; left in the mode it was in.
        image_size: side of the square input in pixels.
        in_channels: input channels.
    """
    network: Any = model
    was_training = model.training
    _evaluation_mode(model)
    image = torch.zeros(1, in_channels, image_size, image_size, device=next(model.parameters()).device)
    try:
        with torch.no_grad():
            side = network.forward_features(image).shape[-1]
        return _whole_network(model, image, 1, -1, image_size / side)
    finally:
        model.train(was_training)


def _evaluation_mode(model: nn.Module) -> nn.Module:
    """Evaluation mode, by way of training mode: LeViT and its kin keep biases from pass to pass in between."""
    return model.train().eval()


def _whole_network(model: nn.Module, image: Tensor, index: int, timm_index: int, reduction: float) -> Level:
    """The last level: all that the source's own classifier reads from."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.enable_grad(), FlopCounterMode(display=False) as counter:  # see _modules_and_flops
        features = pooled_features(model, image)
    with torch.enable_grad():
        only_behind_logits = parameters_behind(model(image)) - parameters_behind(features)
    classifier = classifier_parameters(model)
    parameters = frozenset(
        name for name, p in model.named_parameters() if name not in classifier and id(p) not in only_behind_logits
    )
    return Level(
        index=index,
        timm_index=timm_index,
        channels=features.shape[1],
        reduction=reduction,
        parameters=parameters,
        modules=frozenset(name for name, _ in model.named_modules() if name),
        parameter_count=sum(p.numel() for name, p in model.named_parameters() if name in parameters),
        flops=counter.get_total_flops(),
    )


def pooled_features(model: nn.Module, images: Tensor) -> Tensor:
    """What the source's own classifier reads: [n, D], by the family's own pooling and norm."""
    network: Any = model
    features: Tensor = network.forward_head(network.forward_features(images), pre_logits=True)
    return features.flatten(1)


def classifier_parameters(model: nn.Module) -> frozenset[str]:
    """Names of the parameters of the source's own classifier (none where it has no classifier)."""
    classifiers = _classifiers(model)
    owned = {id(parameter) for module in classifiers for parameter in module.parameters()}
    return frozenset(name for name, parameter in model.named_parameters() if id(parameter) in owned)


def _classifiers(model: nn.Module) -> list[nn.Module]:
    network: Any = model
    classifier = network.get_classifier()
    modules = classifier if isinstance(classifier, tuple | list) else [classifier]
    return [module for module in modules if isinstance(module, nn.Module)]


def parameters_behind(output: Tensor) -> set[int]:
    """Identities of the leaf tensors that `output` was computed from (with gradients on)."""
    leaves: set[int] = set()
    seen: set[Any] = set()
    stack: list[Any] = [output.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            leaves.add(id(variable))
        stack.extend(parent for parent, _ in node.next_functions)
    return leaves


def _made_of(model: nn.Module, called: frozenset[str], parameters: frozenset[str]) -> frozenset[str]:
    """The called modules that have no parameter outside of `parameters`."""
    outside = {id(parameter) for name, parameter in model.named_parameters() if name not in parameters}
    modules = dict(model.named_modules())
    return frozenset(name for name in called if not any(id(p) in outside for p in modules[name].parameters()))


def _modules_and_flops(model: nn.Module, image: Tensor, timm_index: int) -> tuple[frozenset[str], int]:
    """The modules called on the way to a level, and the cost of that way.

    Counted with gradients on: the counter stumbles over views of parameters (class tokens) that have none.
    """
    from torch.utils.flop_counter import FlopCounterMode

    network: Any = model
    called: set[str] = set()
    hooks = [
        module.register_forward_pre_hook(lambda _module, _args, name=name: called.add(name))
        for name, module in model.named_modules()
        if name
    ]
    try:
        with torch.enable_grad(), FlopCounterMode(display=False) as counter:
            network.forward_intermediates(image, indices=[timm_index], stop_early=True, intermediates_only=True)
    finally:
        for hook in hooks:
            hook.remove()
    return frozenset(called), counter.get_total_flops()


def _same(output: Tensor, previous: Tensor) -> bool:
    return output is previous or (output.shape == previous.shape and output.grad_fn is previous.grad_fn)


def _channels(output: Tensor) -> int:
    return int(output.shape[1])
