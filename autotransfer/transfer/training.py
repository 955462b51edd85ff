"""Training one transfer configuration, epoch by epoch."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from autotransfer.errors import TrainingError
from autotransfer.sources import DataConfig
from autotransfer.transfer.config import TransferConfig
from autotransfer.transfer.evaluation import Metric
from autotransfer.transfer.preprocessing import augmenter, normalise, to_batch
from autotransfer.transfer.surgery import TransferModel

EVALUATION_BATCH = 128
_WARM_UP = 0.1


@dataclass(frozen=True)
class Data:
    """Decoded images and labels, and which rows are for what.

    Attributes:
        images: uint8 [n, H, W, 3], memory-mapped.
        codes: int64 [n].
        train, val: row positions.
        preprocessing: mean and standard deviation that the network wants.
    """

    images: npt.NDArray[np.uint8]
    codes: npt.NDArray[np.int64]
    train: npt.NDArray[np.int64]
    val: npt.NDArray[np.int64]
    preprocessing: DataConfig


@dataclass(frozen=True)
class EpochReport:
    """One epoch: `epoch` counts from 1; `score` is the metric on the validation rows, None without any."""

    epoch: int
    train_loss: float
    score: float | None
    val_loss: float | None
    seconds: float


def train(
    model: TransferModel,
    config: TransferConfig,
    data: Data,
    *,
    metric: Metric,
    device: torch.device,
    seed: int,
    on_epoch: Callable[[EpochReport], None] = lambda report: None,
    go_on: Callable[[], bool] = lambda: True,
) -> float | None:
    """Train `model` in place with AdamW and a one-cycle schedule.

    Args:
        model: from `transfer`, its classifier already where it shall start.
        config: the configuration being evaluated.
        data: images and rows; where `val` is empty nothing is evaluated.
        metric: the objective.
        device: where it runs; the model is moved there.
        seed: of order and augmentation: same seed, same device, same result.
        on_epoch: told after every epoch; may raise to end the training.
        go_on: asked before every step; where it says False, `InterruptedError` is raised.

    Returns:
        The metric on the validation rows after the last epoch, None without validation rows.

    Raises:
        TrainingError: the loss is no longer a finite number.
    """
    torch.manual_seed(seed)
    generator = np.random.default_rng(seed)
    model.to(device).to(memory_format=torch.channels_last)
    optimizer = _optimizer(model, config)
    steps = len(list(_batches(data.train, config.batch_size, generator=None)))
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=max(2, steps * config.epochs), pct_start=_WARM_UP
    )
    loss_function = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    change = augmenter(config.augmentation, config.image_size)
    score: float | None = None
    for epoch in range(1, config.epochs + 1):
        started = time.perf_counter()
        model.train()
        losses = []
        for rows in _batches(data.train, config.batch_size, generator):
            if not go_on():
                raise InterruptedError(f"stopped in epoch {epoch} of {config.epochs}")
            batch = to_batch(data.images[rows], device)
            batch = normalise(change(batch) if change else batch, data.preprocessing.mean, data.preprocessing.std)
            loss = loss_function(model(batch), torch.as_tensor(data.codes[rows], device=device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        train_loss = float(torch.stack(losses).mean())
        if not np.isfinite(train_loss):
            raise TrainingError(f"diverged in epoch {epoch}: the loss is {train_loss}")
        val_loss = None
        if len(data.val):
            probabilities = predict_probabilities(model, data.images, data.val, data.preprocessing, device)
            score = metric(probabilities, data.codes[data.val])
            val_loss = log_loss(probabilities, data.codes[data.val])
        on_epoch(EpochReport(epoch, train_loss, score, val_loss, time.perf_counter() - started))
    return score


@torch.inference_mode()
def predict_probabilities(
    model: TransferModel,
    images: npt.NDArray[np.uint8],
    rows: npt.NDArray[np.int64],
    preprocessing: DataConfig,
    device: torch.device,
) -> npt.NDArray[np.float32]:
    """Class probabilities [len(rows), num_classes] of decoded images, in evaluation mode."""
    model.to(device).eval()
    parts = []
    for start in range(0, len(rows), EVALUATION_BATCH):
        batch = to_batch(images[rows[start : start + EVALUATION_BATCH]], device)
        logits: Tensor = model(normalise(batch, preprocessing.mean, preprocessing.std))
        parts.append(logits.float().softmax(dim=1).cpu().numpy())
    return np.concatenate(parts) if parts else np.empty((0, model.classifier.out_features), np.float32)


def log_loss(probabilities: npt.NDArray[np.floating], codes: npt.NDArray[np.int64]) -> float:
    """The mean negative log-likelihood of the true classes."""
    picked = probabilities[np.arange(len(codes)), codes]
    return float(-np.log(np.maximum(picked, 1e-12)).mean())


@torch.no_grad()
def set_classifier(model: TransferModel, weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]) -> None:
    """Start the classifier from solved values: [num_classes, D] and [num_classes]."""
    model.classifier.weight.copy_(torch.from_numpy(weight))
    model.classifier.bias.copy_(torch.from_numpy(bias))


def _batches(
    rows: npt.NDArray[np.int64], size: int, generator: np.random.Generator | None
) -> Iterator[npt.NDArray[np.int64]]:
    """Shuffled batches of at least two rows (batch norm needs two): a last single row joins its neighbour."""
    order = rows if generator is None else generator.permutation(rows)
    starts = list(range(0, len(order), size))
    if len(starts) > 1 and len(order) - starts[-1] == 1:
        starts.pop()
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        yield order[start:end]


def _optimizer(model: TransferModel, config: TransferConfig) -> torch.optim.AdamW:
    """AdamW; norms and biases (one-dimensional parameters) are not decayed."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": config.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
    )
