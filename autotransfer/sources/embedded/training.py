"""Supervised pretraining on generated images: an endless stream, AdamW, one warm-up and one cosine."""

import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import timm
import torch
from torch import nn
from torch.nn import functional as F

from autotransfer.sources.embedded.tasks import Task, batch_generator
from autotransfer.sources.embedded.zoo import ZooEntry

_logger = logging.getLogger(__name__)

MEAN = (0.5, 0.5, 0.5)
STD = (0.5, 0.5, 0.5)
_WARM_UP = 0.05
_WEIGHT_DECAY = 0.05
_LOG_EVERY = 100
_TEMPERATURE = 3.0
_SMALLEST = 1e-12


@dataclass(frozen=True)
class TrainingRun:
    """What training left behind.

    Attributes:
        model: the network, in evaluation mode, on the CPU.
        steps_done: optimizer steps taken so far, over all stretches.
        steps: optimizer steps of the whole run.
        seconds: wall-clock seconds of training so far, over all stretches.
        device: where it ran.
    """

    model: nn.Module
    steps_done: int
    steps: int
    seconds: float
    device: str

    @property
    def is_complete(self) -> bool:
        """Whether every step has been taken."""
        return self.steps_done >= self.steps


def train(
    entry: ZooEntry,
    task: Task,
    *,
    steps: int,
    seed: int = 0,
    device: str = "cpu",
    checkpoint: Path | None = None,
    max_seconds: float = math.inf,
) -> TrainingRun:
    """Train an entry's architecture from scratch on its task.

    Args:
        entry: what to train.
        task: the generator of images and labels.
        steps: optimizer steps; the learning rate ends at zero after the last.
        seed: of initial weights and of all images.
        device: `cpu` or `cuda`.
        checkpoint: file to continue from when it exists, and to leave behind at the end of a stretch.
        max_seconds: stop after this long even if steps are left.
    """
    torch.manual_seed(seed)
    model = timm.create_model(entry.architecture, num_classes=len(task.class_names), **entry.model_args)
    model.to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(_parameter_groups(model), lr=entry.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _one_cycle(step, steps))
    done, seconds_before = 0, 0.0
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if state["steps"] == steps and state["seed"] == seed:
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            schedule.load_state_dict(state["schedule"])
            done, seconds_before = state["done"], state["seconds"]
            _logger.info("%s: continuing after step %d", entry.name, done)
    model.train()
    began = time.perf_counter()
    while done < steps and time.perf_counter() - began < max_seconds:
        generator = batch_generator(seed, f"{task.name}/train", done, device)
        difficulty = min(1.0, done / max(1, steps * entry.curriculum)) if entry.curriculum else 1.0
        images, labels = task.batch(generator, entry.batch_size, entry.image_size, difficulty=difficulty)
        with torch.autocast(device, torch.bfloat16):
            loss = loss_of(model(normalise(images)).float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        done += 1
        if done % _LOG_EVERY == 0 or done == steps:
            rate = (time.perf_counter() - began) + seconds_before
            _logger.info("%s: step %d of %d, loss %.3f, %.0f s", entry.name, done, steps, loss.item(), rate)
    seconds = seconds_before + time.perf_counter() - began
    if checkpoint is not None:
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "done": done,
            "steps": steps,
            "seed": seed,
            "seconds": seconds,
        }
        partial = checkpoint.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(checkpoint)
    return TrainingRun(cast(nn.Module, model.to("cpu").eval()), done, steps, seconds, device)


def normalise(images: torch.Tensor) -> torch.Tensor:
    """Bring images from 0..1 to what the networks were trained on, see `MEAN` and `STD`."""
    mean, std = (torch.tensor(value, device=images.device).view(1, 3, 1, 1) for value in (MEAN, STD))
    return ((images - mean) / std).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def held_out_accuracy(model: nn.Module, task: Task, *, image_size: int, images: int = 4096, seed: int = 0) -> float:
    """Return top-1 accuracy (a teacher's first choice counts as right) on images never trained on, 0..1."""
    model.eval()
    hits = total = index = 0
    while total < images:
        generator = batch_generator(seed, f"{task.name}/held-out", index)
        batch, labels = task.batch(generator, min(256, images - total), image_size)
        classes = labels.argmax(1) if labels.is_floating_point() else labels
        hits += int((model(normalise(batch)).argmax(1) == classes).sum())
        total += len(labels)
        index += 1
    return hits / total


def loss_of(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy; against a teacher's probabilities both sides are softened (Hinton et al., 2015)."""
    if not labels.is_floating_point():
        return F.cross_entropy(logits, labels)
    softened = torch.softmax(labels.clamp_min(_SMALLEST).log() / _TEMPERATURE, 1)
    return F.cross_entropy(logits / _TEMPERATURE, softened) * _TEMPERATURE**2


def _parameter_groups(model: nn.Module) -> list[dict[str, object]]:
    """Spare vectors (biases, norms, embeddings of one token) the weight decay."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": _WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]


def _one_cycle(step: int, steps: int) -> float:
    """Return the learning rate at a step relative to its peak: linear warm-up, then half a cosine to zero."""
    warm_up = max(1, round(steps * _WARM_UP))
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm_up) / max(1, steps - warm_up))))
