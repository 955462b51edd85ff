"""Training one transfer configuration, epoch by epoch.

A training is a value that can be written down after any epoch and gone on with in another process: weights,
optimizer, moving average, best epoch, and the state of every generator of random numbers.
"""

import contextlib
import copy
import hashlib
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from autotransfer.disk_cache import replacing
from autotransfer.errors import TrainingError
from autotransfer.task import Task
from autotransfer.transfer.augmentation import Augmentation
from autotransfer.transfer.config import TransferConfig
from autotransfer.transfer.evaluation import Metric, Targets, prediction_loss
from autotransfer.transfer.inputs import Inputs, Rows
from autotransfer.transfer.memory import in_batches, is_out_of_memory
from autotransfer.transfer.optimisation import (
    make_loss,
    make_mixing,
    make_optimizer,
    make_schedule,
    sampling_weights,
)
from autotransfer.transfer.surgery import TransferModel

logger = logging.getLogger(__name__)

EVALUATION_BATCH = 128
_SHARE_OF_WRITING = 0.05
_SMALLEST_PART = 2  # images that go through the network together: batch norm needs two


@dataclass(frozen=True)
class Data:
    """Where batches come from, what is to be predicted, and which rows are for what.

    Attributes:
        inputs: images, or activations of a frozen part.
        targets: class indices int64 [n], labels 0 or 1 int64 [n, L], or numbers float64 [n, T].
        train, val: row positions.
        task: what the targets are.
    """

    inputs: Inputs
    targets: Targets
    train: Rows
    val: Rows
    task: Task = "classification"


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
    seed: int,
    on_epoch: Callable[[EpochReport], None] = lambda report: None,
    go_on: Callable[[], bool] = lambda: True,
    state_file: Path | None = None,
    until: int | None = None,
) -> float | None:
    """Train `model` in place.

    Args:
        model: from `transfer`, its classifier already where it shall start (for numbers: on their scale, see
            `Scale.give`); it is moved to the inputs' device.
        config: the configuration being evaluated.
        data: inputs, labels and rows; where `val` is empty nothing is evaluated.
        metric: the objective.
        seed: of order and augmentation: same seed, same device, same result.
        on_epoch: told after every epoch; may raise to end the training. Epochs that an earlier process has
            trained are told again.
        go_on: asked before every step; where it says False, `InterruptedError` is raised.
        state_file: where the state is kept after an epoch (not so often that writing takes more than 5% of the
            time); if it is there already and belongs to the same configuration and seed, training goes on from
            it, with the result that it would have had.

        until: end after this epoch, on the schedule of all of the configuration's epochs.

    Returns:
        The metric on the validation rows of the weights that are left in `model`: those of the last epoch (of
        the best one with early stopping); None without validation rows.

    Raises:
        TrainingError: the loss, a prediction or the score is no longer a finite number; or the configuration asks
            for what the task lacks.
        torch.OutOfMemoryError: not even two images fit into memory, or the optimizer does not.
    """
    scale = Scale.of(data.targets[data.train], data.task)
    with scale.standardised(model):
        training = _Training(model, config, data, metric, seed, scale)
        if state_file is not None:
            training.read(state_file)
        for report in training.reports:
            on_epoch(report)
        last = config.epochs if until is None else min(until, config.epochs)
        while training.epoch < last and not training.stalled:
            started = time.perf_counter()
            train_loss = training.run_epoch(go_on)
            score, val_loss = training.evaluate()
            report = EpochReport(training.epoch, train_loss, score, val_loss, time.perf_counter() - started)
            training.reports.append(report)
            if state_file is not None:
                training.write_now_and_then(state_file)
            try:
                on_epoch(report)
            except Exception:
                if state_file is not None:  # one that was pruned may go on later
                    training.write(state_file)
                raise
        return training.finish()


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of the numbers to be predicted, [T]: networks learn them standardised.

    For other tasks 0 and 1.
    """

    centre: npt.NDArray[np.float64]
    spread: npt.NDArray[np.float64]

    @classmethod
    def of(cls, targets: Targets, task: Task) -> "Scale":
        """That of the training images' targets."""
        if task != "regression":
            return cls(np.zeros(1), np.ones(1))
        spread = targets.std(axis=0)
        return cls(targets.mean(axis=0), np.where(spread > 0, spread, 1.0))

    def give(self, model: TransferModel) -> None:
        """Bring a fresh classifier, which says 0 give or take 1, to this scale."""
        self._change(model, lambda weight, bias, c, s: (weight * s[:, None], bias * s + c))

    @contextlib.contextmanager
    def standardised(self, model: TransferModel) -> Iterator[None]:
        """The model's outputs on this scale for a while, whatever ends it."""
        self._change(model, lambda weight, bias, c, s: (weight / s[:, None], (bias - c) / s))
        try:
            yield
        finally:
            self.give(model)

    @torch.no_grad()
    def _change(self, model: TransferModel, change: Callable[..., tuple[Tensor, Tensor]]) -> None:
        if len(self.spread) == 1 and self.spread[0] == 1 and self.centre[0] == 0:
            return
        head = model.classifier
        centre, spread = (torch.from_numpy(v).to(head.weight.device) for v in (self.centre, self.spread))
        weight, bias = change(head.weight.double(), head.bias.double(), centre, spread)
        head.weight.copy_(weight)
        head.bias.copy_(bias)


class _Training:
    """A training between two epochs."""

    def __init__(
        self, model: TransferModel, config: TransferConfig, data: Data, metric: Metric, seed: int, scale: Scale
    ) -> None:
        torch.manual_seed(seed)
        self._scale = scale
        self.model, self._config, self._data, self._metric, self._seed = model, config, data, metric, seed
        self._device = data.inputs.device
        self._generator = np.random.default_rng(seed)
        model.to(self._device).to(memory_format=torch.channels_last)
        self._network: Callable[[Tensor], Tensor] = torch.compile(model) if config.compile else model
        outputs, targets = model.classifier.out_features, data.targets[data.train]
        self._targets = (data.targets - scale.centre) / scale.spread if data.task == "regression" else data.targets
        self._sampling = sampling_weights(config, targets, outputs, data.task)
        self._loss = make_loss(config, targets, outputs, data.task, self._device)
        self._mix = make_mixing(config, outputs, data.task)
        self._augmentation = Augmentation.of(config)
        self._optimizer = make_optimizer(model, config)
        self._steps_an_epoch = len(_starts(len(data.train), config.batch_size))
        self._schedule = make_schedule(self._optimizer, config, self._steps_an_epoch * config.epochs)
        self._autocast = autocast_type(config, self._device)
        self._scaler = torch.amp.GradScaler(enabled=self._autocast == torch.float16)
        self._ema = ModelEmaV3(model, config.ema_decay, use_warmup=True) if config.ema_decay else None
        self._step, self._parts = 0, 1
        self._next_write = 0.0
        self._best: tuple[float, dict[str, Tensor]] | None = None
        self._since_best = 0
        self.epoch = 0
        self.reports: list[EpochReport] = []

    @property
    def stalled(self) -> bool:
        """True where early stopping has seen enough."""
        return 0 < self._config.early_stopping <= self._since_best

    def run_epoch(self, go_on: Callable[[], bool]) -> float:
        """Train on every training row once; the mean loss."""
        self.epoch += 1
        self.model.train()
        losses = []
        for rows in self._batches():
            if not go_on():
                raise InterruptedError(f"stopped in epoch {self.epoch} of {self._config.epochs}")
            self._schedule.step_update(self._step)
            losses.append(self._take_step(rows))
            self._step += 1
        loss = float(torch.stack(losses).mean())
        if not np.isfinite(loss):
            raise TrainingError(f"diverged in epoch {self.epoch}: the loss is {loss}")
        return loss

    def evaluate(self) -> tuple[float | None, float | None]:
        """The metric and the loss on the validation rows, by the averaged weights where there are any."""
        data = self._data
        if not len(data.val):
            return None, None
        with self._averaged():
            with torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None):
                predictions = predict(self.model, data.inputs, data.val, data.task)
            if not np.isfinite(predictions).all():
                raise TrainingError(f"diverged in epoch {self.epoch}: what it predicts are no longer finite numbers")
            if data.task == "regression":
                predictions = (predictions * self._scale.spread + self._scale.centre).astype(np.float32)
            targets = data.targets[data.val]
            score, loss = self._metric(predictions, targets), prediction_loss(predictions, targets, data.task)
            if not np.isfinite(score):
                raise TrainingError(
                    f"{self._metric.name} is {score} in epoch {self.epoch}: it says nothing about these validation "
                    "images; choose another metric or more of them"
                )
            self._since_best += 1
            if self._best is None or self._metric.better(score, self._best[0]):
                self._since_best = 0
                kept = copy.deepcopy(self.model.state_dict()) if self._config.early_stopping else {}
                self._best = (score, kept)
        return score, loss

    def finish(self) -> float | None:
        """Leave the weights in the model that are to be kept; their score."""
        if self._best is not None and self._config.early_stopping:
            self.model.load_state_dict(self._best[1])
            return self._best[0]
        if self._ema is not None and self.epoch:
            self.model.load_state_dict(self._ema.module.state_dict())
        return self.reports[-1].score if self.reports else None

    def _take_step(self, rows: Rows) -> Tensor:
        """One step of the optimizer; where the batch does not fit into memory, in as many parts as fit."""
        while True:
            try:
                loss = self._gradients(rows)
                break
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if len(rows) // (2 * self._parts) < _SMALLEST_PART:
                    raise torch.OutOfMemoryError(str(error)) from error
            self._parts *= 2
            logger.info("out of memory: batches of %d go through in %d parts", len(rows), self._parts)
            self._optimizer.zero_grad(set_to_none=True)
            if self._device.type == "cuda":
                torch.cuda.empty_cache()
        if self._config.clip_grad:
            self._scaler.unscale_(self._optimizer)
            trained = [p for group in self._optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(trained, self._config.clip_grad)
        try:
            self._scaler.step(self._optimizer)
        except RuntimeError as error:  # half a step cannot be taken back
            if is_out_of_memory(error):
                raise torch.OutOfMemoryError(f"the optimizer's own state does not fit: {error}") from error
            raise
        self._scaler.update()
        if self._ema is not None:
            self._ema.update(self.model, step=self._step)
        return loss

    def _gradients(self, rows: Rows) -> Tensor:
        """Accumulate the gradient of the mean loss over `rows`; the loss."""
        self._optimizer.zero_grad(set_to_none=True)
        inputs, total = self._data.inputs, torch.zeros((), device=self._device)
        for part in np.array_split(rows, min(self._parts, max(1, len(rows) // _SMALLEST_PART))):
            batch = inputs.augmented(part, self._augmentation)
            targets = torch.from_numpy(self._targets[part]).to(self._device)
            targets = targets if targets.ndim == 1 else targets.float()
            if self._mix is not None:
                batch, targets = self._mix(batch, targets)
            with torch.autocast(self._device.type, self._autocast, enabled=self._autocast is not None):
                loss = self._loss(self._network(batch), targets).sum() / len(rows)
            scaled: Any = self._scaler.scale(loss)
            scaled.backward()
            total += loss.detach()
        return total

    def _batches(self) -> Iterator[Rows]:
        rows = self._data.train
        if self._sampling is None:
            order = self._generator.permutation(rows)
        else:
            order = self._generator.choice(rows, len(rows), p=self._sampling / self._sampling.sum())
        starts = _starts(len(order), self._config.batch_size)
        for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
            yield order[start:end]

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """The moving average of the weights in place of the weights, for a while."""
        if self._ema is None:
            yield
            return
        own = copy.deepcopy(self.model.state_dict())
        self.model.load_state_dict(self._ema.module.state_dict())
        try:
            yield
        finally:
            self.model.load_state_dict(own)

    def write_now_and_then(self, path: Path) -> None:
        """Write the state, unless it was written a moment ago."""
        started = time.perf_counter()
        if started >= self._next_write:
            self.write(path)
            ended = time.perf_counter()
            self._next_write = ended + (ended - started) / _SHARE_OF_WRITING

    def write(self, path: Path) -> None:
        """Write the whole state to a file: all of it or nothing."""
        state = {
            "belongs_to": self._identity(),
            "epoch": self.epoch,
            "step": self._step,
            "parts": self._parts,
            "reports": [vars(report) for report in self.reports],
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "ema": self._ema.module.state_dict() if self._ema is not None else {},
            "best": self._best,
            "since_best": self._since_best,
            "order": self._generator.bit_generator.state,
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self._device) if self._device.type == "cuda" else None,
        }
        with replacing(path) as temporary:
            torch.save(state, temporary)

    def read(self, path: Path) -> None:
        """Go on from a file that `write` wrote; a file of another training, or a damaged one, is left aside."""
        try:
            state: dict[str, Any] = torch.load(path, map_location=self._device, weights_only=True)
        except FileNotFoundError:
            return
        except Exception as error:  # whatever torch raises on half a file: training starts anew
            logger.warning("%s cannot be read (%s): training starts anew", path, error)
            return
        if state.get("belongs_to") != self._identity():
            return
        self.model.load_state_dict(self._with_frozen(state["model"]))
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        if self._ema is not None:
            self._ema.module.load_state_dict(self._with_frozen(state["ema"]))
        self.epoch, self._step, self._parts = state["epoch"], state["step"], state["parts"]
        self.reports = [EpochReport(**report) for report in state["reports"]]
        self._best, self._since_best = state["best"], state["since_best"]
        self._generator.bit_generator.state = state["order"]
        torch.set_rng_state(state["torch"].cpu())
        if state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"].cpu(), self._device)

    def _with_frozen(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """Kept weights with the frozen ones that the network has now: replayed ones are in neither."""

        def frozen(name: str) -> bool:
            return name.rpartition(".")[0].removeprefix("backbone.") in self.model.frozen_modules

        own = self.model.state_dict()
        kept = {name: tensor for name, tensor in weights.items() if name in own or not frozen(name)}
        return {**{name: tensor for name, tensor in own.items() if frozen(name)}, **kept}

    def _identity(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for part in (self._data.train, self._data.val, self._data.targets):
            digest.update(np.ascontiguousarray(part).tobytes())
        return f"{self._config.to_dict()} seed {self._seed} on {digest.hexdigest()}"


@torch.inference_mode()
def predict(model: TransferModel, inputs: Inputs, rows: Rows, task: Task = "classification") -> npt.NDArray[np.float32]:
    """Probabilities of classes or labels, or numbers, [len(rows), outputs], in evaluation mode."""
    model.to(inputs.device).eval()

    def run(part: Rows) -> npt.NDArray[np.float32]:
        outputs: Tensor = model(inputs.batch(part)).float()
        if task == "classification":
            outputs = outputs.softmax(dim=1)
        elif task == "multilabel":
            outputs = outputs.sigmoid()
        predictions: npt.NDArray[np.float32] = outputs.cpu().numpy()
        return predictions

    parts = list(in_batches(rows, EVALUATION_BATCH, run))
    return np.concatenate(parts) if parts else np.empty((0, model.classifier.out_features), np.float32)


@torch.no_grad()
def set_classifier(model: TransferModel, weight: npt.NDArray[np.float32], bias: npt.NDArray[np.float32]) -> None:
    """Start the classifier from solved values: [num_classes, D] and [num_classes]."""
    model.classifier.weight.copy_(torch.from_numpy(weight))
    model.classifier.bias.copy_(torch.from_numpy(bias))


def autocast_type(config: TransferConfig, device: torch.device) -> torch.dtype | None:
    """The type of mixed precision, None for float32 throughout."""
    if config.precision == "auto":
        if device.type != "cuda":
            return None  # few CPUs compute in bfloat16 faster than in float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[config.precision]


def _starts(count: int, size: int) -> list[int]:
    """Where batches of at least two rows start (batch norm needs two): a last single row joins its neighbour."""
    starts = list(range(0, count, size))
    if len(starts) > 1 and count - starts[-1] == 1:
        starts.pop()
    return starts
