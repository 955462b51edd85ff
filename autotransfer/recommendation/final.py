"""The final training and the one evaluation on the test split."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import optuna
import torch

from autotransfer.probing import fit_linear_head
from autotransfer.recommendation.recommendation import Score
from autotransfer.search.candidates import Candidate
from autotransfer.search.study import Budget
from autotransfer.search.trials import Workshop, linear_probe_config
from autotransfer.transfer.config import TransferConfig
from autotransfer.transfer.evaluation import Metric, bootstrap_interval
from autotransfer.transfer.surgery import TransferModel
from autotransfer.transfer.training import (
    Data,
    predict_probabilities,
    set_classifier,
    train,
)


@dataclass(frozen=True)
class Finalist:
    """A configuration with its trained network and what it says about the test images.

    Attributes:
        config: the configuration.
        model: trained on train + validation where `refitted`, else on train.
        val_score: the score that selected it.
        probabilities: [n_test, num_classes].
        refitted: whether the validation images were used for the final training.
        seconds: of the final training.
    """

    config: TransferConfig
    model: TransferModel
    val_score: float
    probabilities: npt.NDArray[np.float32]
    refitted: bool
    seconds: float


def finish_trial(trial: optuna.trial.FrozenTrial, workshop: Workshop, budget: Budget) -> Finalist:
    """Train a trial's configuration again on train + validation, or take its kept weights where time is short."""
    config = TransferConfig.from_dict(trial.user_attrs["config"])
    started = time.perf_counter()
    model = workshop.start(config)
    refitted = workshop.go_on() and budget.fits(refit_seconds(trial, workshop))
    if refitted:
        try:
            model = _refit(config, workshop)
        except InterruptedError:
            refitted = False
    if not refitted:
        _load_checkpoint(model, trial.number, workshop)
    probabilities = _test_probabilities(model, config, workshop)
    seconds = time.perf_counter() - started
    return Finalist(config, model, float(trial.value or 0.0), probabilities, refitted, seconds)


def finish_linear_probe(candidate: Candidate, workshop: Workshop) -> Finalist:
    """Solve the linear probe of a candidate again on the probed train + validation images."""
    started = time.perf_counter()
    config = linear_probe_config(workshop, candidate.source.name, candidate.level)
    made = workshop.pool.probes[candidate.source.name]
    head = fit_linear_head(
        made.features[candidate.level - 1],
        workshop.dataset.codes[made.rows],
        len(workshop.dataset.classes),
        candidate.head.strength,
    )
    model = workshop.start(config)
    set_classifier(model, head.weight, head.bias)
    probabilities = _test_probabilities(model, config, workshop)
    seconds = time.perf_counter() - started
    return Finalist(config, model, candidate.linear_probe, probabilities, True, seconds)


def refit_seconds(trial: optuna.trial.FrozenTrial, workshop: Workshop) -> float:
    """How long the final training of a trial will take, from what the trial took."""
    train_rows, all_rows = workshop.dataset.rows("train"), workshop.dataset.rows("train", "val")
    return float(trial.user_attrs.get("seconds", 0.0)) * len(all_rows) / len(train_rows) * 1.1


def majority_probabilities(workshop: Workshop) -> npt.NDArray[np.float32]:
    """What always answering with the class frequencies of the training images says about the test images."""
    codes = workshop.dataset.codes
    counts = np.bincount(codes[workshop.dataset.rows("train", "val")], minlength=len(workshop.dataset.classes))
    share = (counts / counts.sum()).astype(np.float32)
    return np.tile(share, (len(workshop.dataset.rows("test")), 1))


def score_on_test(metric: Metric, probabilities: npt.NDArray[np.float32], workshop: Workshop) -> Score:
    """The metric on the test split with its bootstrap interval."""
    codes = workshop.dataset.codes[workshop.dataset.rows("test")]
    low, high = bootstrap_interval(metric, probabilities, codes, seed=workshop.seed)
    return Score(metric.name, metric(probabilities, codes), low, high, len(codes))


def measure_latency_ms(model: TransferModel, image_size: int, *, repeats: int = 9) -> float:
    """The median time of one image on the CPU in milliseconds, after two warm-up passes."""
    model = model.to("cpu").eval()
    image = torch.zeros(1, 3, image_size, image_size).contiguous(memory_format=torch.channels_last)
    times = []
    with torch.inference_mode():
        for index in range(repeats + 2):
            started = time.perf_counter()
            model(image)
            if index >= 2:
                times.append(time.perf_counter() - started)
    return float(np.median(times)) * 1e3


def _refit(config: TransferConfig, workshop: Workshop) -> TransferModel:
    source = workshop.source(config.source)
    rows = workshop.dataset.rows("train", "val")
    model = workshop.start(config, fit_rows=rows)
    empty: npt.NDArray[np.int64] = np.empty(0, np.int64)
    go_on: Callable[[], bool] = workshop.go_on
    train(
        model,
        config,
        Data(workshop.images(source), workshop.dataset.codes, rows, empty, source.data_config),
        metric=workshop.metric,
        device=workshop.device,
        seed=workshop.seed,
        go_on=go_on,
    )
    return model


def _load_checkpoint(model: TransferModel, number: int, workshop: Workshop) -> None:
    from safetensors.torch import load_file

    model.load_state_dict(load_file(workshop.checkpoints / f"trial-{number}.safetensors"))


def _test_probabilities(model: TransferModel, config: TransferConfig, workshop: Workshop) -> npt.NDArray[np.float32]:
    source = workshop.source(config.source)
    rows = workshop.dataset.rows("test")
    return predict_probabilities(model, workshop.images(source), rows, source.data_config, workshop.device)
