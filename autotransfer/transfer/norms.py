"""Batch-norm statistics: from those of the source's images to those of the target's.

A network that trains normalises with the statistics of its batches, which are the target's; a head that was
solved on features normalised with the source's statistics does not fit them, and the first steps of training
would be spent on mending that. So the statistics of the levels that will train are measured on the target
first (adaptive batch normalisation: Li et al., "Revisiting Batch Normalization For Practical Domain
Adaptation", 2017), and the head is solved on the features that follow.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from autotransfer.transfer.inputs import Inputs, Rows
from autotransfer.transfer.memory import in_batches
from autotransfer.transfer.surgery import TransferModel

_BATCH_SIZE = 64
_ENOUGH_IMAGES = 512


@torch.no_grad()
def recalibrate(model: TransferModel, inputs: Inputs, rows: Rows, *, seed: int = 0) -> bool:
    """Set the running statistics of the batch norms that train to those of at most 512 of the target's images.

    Args:
        model: changed in place; norms of frozen levels keep their statistics.
        inputs: where batches come from; the model is moved to their device.
        rows: which images may be looked at, at least two.
        seed: which images are drawn, where there are more.

    Returns:
        False where no batch norm trains (nothing was changed).
    """
    model.to(inputs.device).train()
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    norms = [norm for norm in norms if norm.track_running_stats]
    chosen = np.random.default_rng(seed).permutation(rows)[:_ENOUGH_IMAGES]
    if not norms or len(chosen) < 2:
        return False
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean over batches instead of a moving one

    def run(part: Rows) -> None:
        if len(part) > 1:
            model.features(inputs.batch(part))

    for _ in in_batches(chosen, _BATCH_SIZE, run, smallest=2):
        pass
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return True


@torch.inference_mode()
def extract_features(model: TransferModel, inputs: Inputs, rows: Rows) -> npt.NDArray[np.float32]:
    """What the classifier reads, in evaluation mode: [len(rows), D]."""
    model.to(inputs.device).eval()

    def run(part: Rows) -> npt.NDArray[np.float32]:
        features: npt.NDArray[np.float32] = model.features(inputs.batch(part)).float().cpu().numpy()
        return features

    parts = list(in_batches(rows, _BATCH_SIZE, run))
    return np.concatenate(parts) if parts else np.empty((0, model.classifier.in_features), np.float32)
