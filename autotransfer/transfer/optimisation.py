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

from autotransfer.errors import TrainingError
from autotransfer.task import Task
from autotransfer.transfer.config import TransferConfig
from autotransfer.transfer.surgery import TransferModel

_FIRST_OVER_PEAK = 0.04
_RAREST = 0.01  # a label that is rarer weighs no more than this one

Loss = Callable[[Tensor, Tensor], Tensor]
"""(outputs [n, outputs], class codes [n] or what each output should be [n, outputs]) -> a loss a sample, [n]."""

Mixing = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(images [n, 3, H, W], class codes [n] or targets [n, outputs]) -> mixed images, mixed targets [n, outputs]."""


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


def make_loss(
    config: TransferConfig, targets: npt.NDArray[Any], outputs: int, task: Task, device: torch.device
) -> Loss:
    """Cross-entropy of classes, binary cross-entropy of labels, squared error of (standardised) numbers.

    Args:
        config: its label smoothing, and whether rare classes or labels weigh more.
        targets: of the training images, which say what is rare.
        outputs: classes, labels or numbers.
        task: what the targets are.
        device: where the loss is computed.

    Raises:
        TrainingError: rare numbers are to weigh more.
    """
    if task == "regression":
        if config.imbalance != "none":
            raise TrainingError(f"imbalance: {config.imbalance} needs classes or labels; numbers have none.")
        return lambda predicted, numbers: functional.mse_loss(predicted, numbers, reduction="none").mean(dim=1)
    smoothing = config.label_smoothing
    if task == "multilabel":
        positive = torch.from_numpy(targets.mean(axis=0)).float().clamp(_RAREST, 1 - _RAREST).to(device)
        rarity = (1 - positive) / positive if config.imbalance == "loss" else None

        def of_labels(logits: Tensor, labels: Tensor) -> Tensor:
            smooth = labels * (1 - smoothing) + smoothing / 2
            losses = functional.binary_cross_entropy_with_logits(logits, smooth, pos_weight=rarity, reduction="none")
            return losses.mean(dim=1)

        return of_labels
    weights = None
    if config.imbalance == "loss":
        weights = torch.from_numpy(balanced_weights(targets, outputs)).float().to(device)

    def of_classes(logits: Tensor, codes: Tensor) -> Tensor:
        return functional.cross_entropy(logits, codes, weight=weights, label_smoothing=smoothing, reduction="none")

    return of_classes


def sampling_weights(
    config: TransferConfig, targets: npt.NDArray[Any], outputs: int, task: Task
) -> npt.NDArray[np.float64] | None:
    """How often each training image is drawn, None where each is drawn once.

    Raises:
        TrainingError: images are to be drawn by class, and have none.
    """
    if config.imbalance != "sampler":
        return None
    if task != "classification":
        raise TrainingError(f"imbalance: sampler needs one class an image, not {task}. Choose loss or none.")
    drawn: npt.NDArray[np.float64] = balanced_weights(targets, outputs)[targets]
    return drawn


def balanced_weights(codes: npt.NDArray[np.int64], classes: int) -> npt.NDArray[np.float64]:
    """What makes all classes that are there count alike: n / (present classes * count), [classes]."""
    counts = np.bincount(codes, minlength=classes)
    present = counts > 0
    return np.where(present, len(codes) / (present.sum() * np.maximum(counts, 1)), 0.0)


def make_mixing(config: TransferConfig, outputs: int, task: Task) -> Mixing | None:
    """A function that mixes each image and its target with its neighbour's; None where nothing is mixed."""
    from torchvision.transforms import v2

    classes = outputs if task == "classification" else None
    ways: list[nn.Module] = []
    if config.mixup:
        ways.append(v2.MixUp(alpha=config.mixup, num_classes=classes))
    if config.cutmix:
        ways.append(v2.CutMix(alpha=config.cutmix, num_classes=classes))
    if not ways:
        return None
    mix: Mixing = v2.RandomChoice(ways)
    return mix
