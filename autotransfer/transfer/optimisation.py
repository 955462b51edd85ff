"""Optimizer, schedule and loss of a configuration, by timm's and PyTorch's factories."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from timm.optim import create_optimizer_v2, param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import Tensor, nn
from torch.nn import functional

from autotransfer.transfer.config import TransferConfig
from autotransfer.transfer.surgery import TransferModel

_FIRST_OVER_PEAK = 0.04

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits [n, C], class codes [n] or class probabilities [n, C]) -> a loss for each sample, [n]."""

Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(images [n, 3, H, W], class codes [n]) -> mixed images, class probabilities [n, C]."""


def make_optimizer(model: TransferModel, config: TransferConfig) -> torch.optim.Optimizer:
    """AdamW or SGD over what trains; norms, biases and what timm names so are not decayed.

    With `layer_decay` d the classifier and the last group of layers learn at the full rate, each group below
    at d times the rate of the one above (Bao et al., BEiT, 2022; the groups are timm's).
    """
    backbone: Any = model.backbone
    excluded: set[str] = getattr(backbone, "no_weight_decay", set)()
    if config.layer_decay < 1:
        groups = param_groups_layer_decay(
            backbone, config.weight_decay, no_weight_decay_list=excluded, layer_decay=config.layer_decay
        )
    else:
        groups = param_groups_weight_decay(backbone, config.weight_decay, no_weight_decay_list=excluded)
    if model.head is not None:
        groups += param_groups_weight_decay(model.head, config.weight_decay)
    optimizer: torch.optim.Optimizer = create_optimizer_v2(
        groups, config.optimizer, lr=config.learning_rate, momentum=0.9, fused=True
    )
    return optimizer


def make_schedule(optimizer: torch.optim.Optimizer, config: TransferConfig, steps: int) -> CosineLRScheduler:
    """A linear rise over the first part of all `steps`, then a cosine to zero; told the number of the step."""
    return CosineLRScheduler(
        optimizer,
        t_initial=max(2, steps),
        warmup_t=round(config.warmup * steps),
        warmup_lr_init=_FIRST_OVER_PEAK * config.learning_rate,
        t_in_epochs=False,
    )


def make_loss(config: TransferConfig, class_weights: Tensor | None) -> Loss:
    """Cross-entropy with label smoothing, each class at its weight."""

    def loss(logits: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(
            logits, targets, weight=class_weights, label_smoothing=config.label_smoothing, reduction="none"
        )

    return loss


def balanced_weights(codes: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.float64]:
    """What makes all classes that are there count alike: n / (present classes * count), [classes]."""
    counts = np.bincount(codes, minlength=classes)
    present = counts > 0
    return np.where(present, len(codes) / (present.sum() * np.maximum(counts, 1)), 0.0)


def make_mixing(config: TransferConfig, classes: int) -> Mixing | None:
    """A function that mixes each image and its class code with its neighbour's; None where nothing is mixed."""
    from torchvision.transforms import v2

    ways: list[nn.Module] = []
    if config.mixup:
        ways.append(v2.MixUp(alpha=config.mixup, num_classes=classes))
    if config.cutmix:
        ways.append(v2.CutMix(alpha=config.cutmix, num_classes=classes))
    if not ways:
        return None
    mix: Mixing = v2.RandomChoice(ways)
    return mix
