"""The final training and the one evaluation on the test split."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from optuna.trial import FrozenTrial
from safetensors.torch import load_file

from autotransfer.errors import TrainingError
from autotransfer.probing import fit_linear_head
from autotransfer.recommendation.recommendation import Score
from autotransfer.search.budget import Budget
from autotransfer.search.candidates import Candidate
from autotransfer.search.checkpoints import origin_of, weights_file
from autotransfer.search.forecast import refit_seconds, train_seconds
from autotransfer.search.workshop import Workshop, linear_probe_config
from autotransfer.task import Task
from autotransfer.transfer.config import TransferConfig
from autotransfer.transfer.evaluation import Metric, bootstrap_interval
from autotransfer.transfer.inputs import Rows
from autotransfer.transfer.surgery import TransferModel
from autotransfer.transfer.training import Data, set_classifier, train


@dataclass(frozen=True)
class Finalist:
    """A configuration with its trained network and what it says about the test images.

    Attributes:
        config: the configuration.
        model: trained on train + validation where `refitted`, else on train.
        val_score: the score that selected it.
        predictions: [n_test, outputs].
        train_only: the same by weights that were trained on the train split alone, so that two finalists
            can be compared on equal terms.
        refitted: whether the validation images were used for the final training.
    """

    config: TransferConfig
    model: TransferModel
    val_score: float
    predictions: npt.NDArray[np.float32]
    train_only: npt.NDArray[np.float32]
    refitted: bool


def keep_best(trials: Sequence[FrozenTrial], workshop: Workshop, budget: Budget) -> tuple[Finalist, FrozenTrial] | None:
    """The first of `trials` that can be answered with, and what it is; None where there is none.

    Its weights are on this machine, or there is time to train them again: another machine has run the trial.
    """
    for trial in trials:
        if weights_file(trial.number, workshop).exists():
            return keep_trial(trial, workshop), trial
        if workshop.go_on() and budget.fits(train_seconds(trial), workers=1):
            try:
                return _train_again(trial, workshop), trial
            except (InterruptedError, TrainingError):
                continue
    return None


def keep_trial(trial: FrozenTrial, workshop: Workshop) -> Finalist:
    """A trial's configuration with the weights that the trial ended with."""
    config = TransferConfig.from_dict(trial.user_attrs["config"])
    model = workshop.build(config)
    model.load_state_dict(load_file(weights_file(trial.number, workshop)))
    return _trained_on_train(trial, config, model, workshop)


def _train_again(trial: FrozenTrial, workshop: Workshop) -> Finalist:
    config = TransferConfig.from_dict(trial.user_attrs["config"])
    rows, until = workshop.dataset.rows("train"), trial.user_attrs.get("best_epoch")
    model = _train(config, workshop, rows, workshop.seed + origin_of(trial), until)
    return _trained_on_train(trial, config, model, workshop)


def _trained_on_train(trial: FrozenTrial, config: TransferConfig, model: TransferModel, workshop: Workshop) -> Finalist:
    predictions = workshop.predict(model, config, "test")
    return Finalist(config, model, float(trial.value or 0.0), predictions, predictions, False)


def finish_trial(kept: Finalist, trial: FrozenTrial, workshop: Workshop, budget: Budget) -> Finalist:
    """Train a trial's configuration again on train + validation, or keep its weights where time is short."""
    if not workshop.go_on() or not budget.fits(refit_seconds(trial, workshop.dataset), workers=1):
        return kept
    try:
        rows, until = workshop.dataset.rows("train", "val"), trial.user_attrs.get("best_epoch")
        model = _train(kept.config, workshop, rows, workshop.seed, until)
    except InterruptedError:
        return kept
    predictions = workshop.predict(model, kept.config, "test")
    return dataclasses.replace(kept, model=model, predictions=predictions, refitted=True)


def finish_linear_probe(candidate: Candidate, workshop: Workshop) -> Finalist:
    """Solve the linear probe of a candidate again on the probed train + validation images."""
    config = linear_probe_config(workshop, candidate.source.name, candidate.level)
    made = workshop.pool.probes[candidate.source.name]
    head = fit_linear_head(
        made.features[candidate.level - 1],
        workshop.dataset.targets[made.rows],
        len(workshop.dataset.classes),
        candidate.head.strength,
        workshop.dataset.task,
    )
    model = workshop.build(config)
    set_classifier(model, candidate.head.weight, candidate.head.bias)
    train_only = workshop.predict(model, config, "test")
    set_classifier(model, head.weight, head.bias)
    predictions = workshop.predict(model, config, "test")
    return Finalist(config, model, candidate.linear_probe, predictions, train_only, True)


CONSTANT_BASELINES: dict[Task, str] = {
    "classification": "majority_class",
    "multilabel": "label_frequencies",
    "regression": "mean_value",
}


def constant_predictions(workshop: Workshop) -> npt.NDArray[np.float32]:
    """What says the same of all test images: the frequencies of classes or labels, or the mean of the numbers."""
    dataset = workshop.dataset
    targets = dataset.targets[dataset.rows("train", "val")]
    if dataset.task == "classification":
        share = np.bincount(targets, minlength=len(dataset.classes)) / len(targets)
    else:
        share = targets.mean(axis=0)
    return np.tile(share.astype(np.float32), (len(dataset.rows("test")), 1))


def score_on_test(metric: Metric, predictions: npt.NDArray[np.float32], workshop: Workshop) -> Score:
    """The metric on the test split with its bootstrap interval."""
    targets = workshop.dataset.targets[workshop.dataset.rows("test")]
    low, high = bootstrap_interval(metric, predictions, targets, seed=workshop.seed)
    return Score(metric.name, metric(predictions, targets), low, high, len(targets))


def _train(config: TransferConfig, workshop: Workshop, rows: Rows, seed: int, until: int | None) -> TransferModel:
    """Train on all of `rows`; with early stopping until the epoch that was best on validation."""
    dataset = workshop.dataset
    nothing: npt.NDArray[np.int64] = np.empty(0, np.int64)
    with workshop.started(config, rows) as (model, inputs):
        data = Data(inputs, dataset.targets, rows, nothing, dataset.task)
        train(model, config, data, metric=workshop.metric, seed=seed, go_on=workshop.go_on, until=until)
    return model
