"""Trials: from what the sampler chooses to a configuration, to a score."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
import torch
from optuna.trial import TrialState

from autotransfer.datasets import Dataset, DecodedImages
from autotransfer.errors import AutotransferError, TrainingError
from autotransfer.probing import fit_linear_head
from autotransfer.search.candidates import Pool
from autotransfer.search.events import EpochFinished, Listener, TrialFinished, TrialStarted
from autotransfer.search.events import TrialState as TrialOutcome
from autotransfer.search.forecast import Forecast, refit_seconds
from autotransfer.search.space import IntRange, Space
from autotransfer.search.study import Budget, ask, complete_trials, trained_trials
from autotransfer.sources import Source
from autotransfer.transfer.config import TransferConfig, canonical
from autotransfer.transfer.evaluation import Metric
from autotransfer.transfer.surgery import TransferModel, transfer
from autotransfer.transfer.training import Data, EpochReport, predict_probabilities, set_classifier, train

logger = logging.getLogger(__name__)

_DEFAULT_LEARNING_RATE = 1e-3
_ASKED_PER_TRAINED = 10
_MAX_ASKED = 1000
_MAX_IN_VAIN = 50
_ALWAYS_RUN = ("best by proxies", "from scratch")
_SHARE_OF_ALWAYS_RUN = 0.2
_LARGEST_SHARE_OF_ALWAYS_RUN = 0.3
_SHARE_BESIDE_FINAL = 0.45  # a trial that turns out best is trained once more, on more images


@dataclass(frozen=True)
class Workshop:
    """All that a trial needs and that does not change between trials."""

    dataset: Dataset
    space: Space
    pool: Pool
    metric: Metric
    device: torch.device
    cache_dir: Path
    checkpoints: Path
    seed: int
    max_parameters: int | None
    max_latency_ms: float | None
    latencies_ms: dict[tuple[str, int], float]
    go_on: Callable[[], bool]

    def images(self, source: Source) -> npt.NDArray[np.uint8]:
        """The target's decoded images at the size that `source` is used at."""
        size = self.pool.image_sizes[source.name]
        return DecodedImages(self.dataset, size, source.data_config.interpolation, cache_dir=self.cache_dir).array

    def source(self, name: str) -> Source:
        """The source of that name."""
        return next(source for source in self.pool.sources() if source.name == name)

    def start(self, config: TransferConfig, fit_rows: npt.NDArray[np.int64] | None = None) -> TransferModel:
        """The network of `config`, its classifier at the linear probe's solution where it says so."""
        torch.manual_seed(self.seed)
        source = self.source(config.source)
        model = transfer(
            source,
            transferred_layers=config.transferred_layers,
            upper_layers=config.upper_layers,
            frozen_layers=config.frozen_layers,
            num_classes=len(self.dataset.classes),
            drop_rate=config.drop_rate,
        )
        intact = config.upper_layers == "drop" and config.transferred_layers > 0
        if config.head == "linear_probe" and intact:
            head = self.pool.get(config.source, config.transferred_layers).head
            if fit_rows is not None:
                made = self.pool.probes[config.source]
                known = fit_rows[np.isin(fit_rows, made.rows)]
                features = made.at(config.transferred_layers, known)
                codes = self.dataset.codes[known]
                head = fit_linear_head(features, codes, len(self.dataset.classes), head.strength)
            set_classifier(model, head.weight, head.bias)
        return model


def linear_probe_config(workshop: Workshop, source: str, level: int) -> TransferConfig:
    """The configuration that means: the linear probe of that (source, level), nothing trained."""
    return _with_training(
        workshop,
        TransferConfig(
            source=source,
            transferred_layers=level,
            upper_layers="drop",
            frozen_layers=level,
            learning_rate=0.0,
            epochs=0,
        ),
    )


def queue_first_trials(study: optuna.Study, workshop: Workshop) -> None:
    """Queue what is tried first: the best candidate, from scratch, then the best of the next sources."""
    parameters = workshop.space.parameters
    rates = parameters.learning_rate
    sources = workshop.pool.sources()

    def queue(source: str, level: int, frozen: int, role: str) -> None:
        params = {
            "source": source,
            "transferred_layers": level,
            "upper_layers": parameters.upper_layers[0],
            "frozen_layers": frozen,
            "learning_rate": min(max(_DEFAULT_LEARNING_RATE, rates.min), rates.max),
        }
        study.enqueue_trial(params, user_attrs={"role": role})

    best = workshop.pool.candidates[0]
    queue(best.source.name, best.level, 0, "best by proxies")
    queue(best.source.name, 0, 0, "from scratch")
    for source in sources[1:4]:
        queue(source.name, workshop.pool.best_of(source.name).level, 0, "best of its source")
    queue(best.source.name, best.level, best.level // 2, "half frozen")


def run_trials(study: optuna.Study, workshop: Workshop, budget: Budget, listener: Listener) -> None:
    """Run trials until the budget is spent (less what the final training takes) or told to stop."""
    limit = budget.trials
    in_vain = 0
    for _ in range(_MAX_ASKED if limit is None else limit * _ASKED_PER_TRAINED):
        left = _left(study, workshop, budget)
        if not workshop.go_on() or in_vain >= _MAX_IN_VAIN or (left is not None and left < 1.0):
            break
        trained = len(trained_trials(study))
        if limit is not None and trained >= limit:
            break
        _run_one(ask(study, workshop.seed), study, workshop, budget, listener)
        in_vain = 0 if len(trained_trials(study)) > trained else in_vain + 1


def _left(study: optuna.Study, workshop: Workshop, budget: Budget) -> float | None:
    """Seconds left for the search: all but the final training's, which is given up where it no longer fits."""
    left = budget.left()
    best = best_trial(study, workshop.metric, from_scratch=False)
    if left is None or best is None:
        return left
    final = refit_seconds(best, workshop.dataset)
    return left - final if final < left else left


def _run_one(
    trial: optuna.Trial,
    study: optuna.Study,
    workshop: Workshop,
    budget: Budget,
    listener: Listener,
) -> None:
    started = time.perf_counter()
    role = str(trial.user_attrs.get("role", ""))
    forecast = Forecast.of(study, workshop.pool, len(workshop.dataset.rows("train")))
    left = _left(study, workshop, budget)
    config = _suggest(trial, workshop, forecast, left, role)
    trial.set_user_attr("config", config.to_dict())
    proxies = {}
    if config.transferred_layers:
        candidate = workshop.pool.get(config.source, config.transferred_layers)
        proxies = {name: proxy.value for name, proxy in candidate.proxies.items()}
    listener(TrialStarted(trial.number, config, proxies, role))
    reason = _hopeless(config, workshop, role)
    if not reason and config.epochs == 0:
        reason = "over budget: there is no time for it and its final training"
    state, value = TrialState.PRUNED, None
    if not reason:
        trial.set_user_attr("trained", True)
        state, value, reason = _train_trial(trial, config, workshop, budget, left, role, listener)
    seconds = time.perf_counter() - started
    trial.set_user_attr("seconds", seconds)
    if state == TrialState.COMPLETE and not reason:
        trial.set_user_attr("train_over_forward", forecast.train_over_forward_of(config, seconds))
    if reason:
        trial.set_user_attr("reason", reason)
    study.tell(trial, value, state=state)
    best = _best_of(complete_trials(study), workshop.metric)
    outcomes: dict[TrialState, TrialOutcome] = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}
    listener(
        TrialFinished(
            number=trial.number,
            state=outcomes.get(state, "failed"),
            value=value,
            reason=reason,
            seconds=seconds,
            best_value=best.value if best else None,
            best_number=best.number if best else None,
            time_left=budget.left(),
            trained=bool(trial.user_attrs.get("trained", False)),
        )
    )


def _train_trial(
    trial: optuna.Trial,
    config: TransferConfig,
    workshop: Workshop,
    budget: Budget,
    left: float | None,
    role: str,
    listener: Listener,
) -> tuple[TrialState, float | None, str]:
    source = workshop.source(config.source)
    name = workshop.metric.name
    allowed = None if left is None else left * (_LARGEST_SHARE_OF_ALWAYS_RUN if role in _ALWAYS_RUN else 1.0)
    started = budget.elapsed()

    def on_epoch(report: EpochReport) -> None:
        metrics = {"train.loss": report.train_loss}
        if report.score is not None and report.val_loss is not None:
            metrics |= {f"val.{name}": report.score, "val.loss": report.val_loss}
            trial.report(report.score, report.epoch)
        listener(EpochFinished(trial.number, report.epoch, metrics, report.seconds))
        if report.epoch < config.epochs and role not in _ALWAYS_RUN and trial.should_prune():
            raise optuna.TrialPruned(f"its learning curve is below the median at epoch {report.epoch}")

    def go_on() -> bool:
        return workshop.go_on() and (allowed is None or budget.elapsed() - started < allowed)

    reason = ""
    try:
        model = workshop.start(config)
        data = Data(
            workshop.images(source),
            workshop.dataset.codes,
            workshop.dataset.rows("train"),
            workshop.dataset.rows("val"),
            source.data_config,
        )
        seed = workshop.seed + trial.number
        try:
            value = train(
                model,
                config,
                data,
                metric=workshop.metric,
                device=workshop.device,
                seed=seed,
                on_epoch=on_epoch,
                go_on=go_on,
            )
        except InterruptedError as stopped:
            if role not in _ALWAYS_RUN or not workshop.go_on():
                raise
            # Slower than forecast: what it has learnt is still the baseline, and the search must go on.
            probabilities = predict_probabilities(model, data.images, data.val, data.preprocessing, workshop.device)
            value = workshop.metric(probabilities, data.codes[data.val])
            reason = f"{stopped}: its share of the budget was used"
    except optuna.TrialPruned as pruned:
        return TrialState.PRUNED, None, str(pruned)
    except InterruptedError:
        cause = "the user stopped the search" if not workshop.go_on() else "the budget ran out"
        return TrialState.FAIL, None, cause
    except torch.OutOfMemoryError:
        return TrialState.FAIL, None, f"out of memory at batch size {config.batch_size}"
    except TrainingError as error:
        return TrialState.FAIL, None, str(error)
    except (AutotransferError, RuntimeError, ValueError, OSError) as error:  # one trial fails alone
        logger.warning("trial %d failed", trial.number, exc_info=True)
        return TrialState.FAIL, None, f"{type(error).__name__}: {error}"
    _keep(model, trial, workshop)
    return TrialState.COMPLETE, value, reason


def _keep(model: TransferModel, trial: optuna.Trial, workshop: Workshop) -> None:
    """Keep the weights: what is answered with when there is no time to train again."""
    from safetensors.torch import save_file

    workshop.checkpoints.mkdir(parents=True, exist_ok=True)
    path = workshop.checkpoints / f"trial-{trial.number}.safetensors"
    temporary = path.with_suffix(".tmp")
    save_file({n: t.detach().cpu().contiguous() for n, t in model.state_dict().items()}, temporary)
    temporary.replace(path)


def _suggest(
    trial: optuna.Trial, workshop: Workshop, forecast: Forecast, left: float | None, role: str
) -> TransferConfig:
    """The sampler's choice, with no more epochs than there is time for (0 where there is none at all)."""
    parameters = workshop.space.parameters
    source = trial.suggest_categorical("source", sorted(source.name for source in workshop.pool.sources()))
    levels = len(workshop.source(str(source)).levels)
    transferred = trial.suggest_int("transferred_layers", 0, levels)
    upper: Any = trial.suggest_categorical("upper_layers", list(parameters.upper_layers))
    frozen = trial.suggest_int("frozen_layers", 0, transferred)
    rates, decays = parameters.learning_rate, parameters.weight_decay
    config = TransferConfig(
        source=str(source),
        transferred_layers=transferred,
        upper_layers=upper,
        frozen_layers=frozen,
        learning_rate=trial.suggest_float("learning_rate", rates.min, rates.max, log=rates.log),
        weight_decay=trial.suggest_float("weight_decay", decays.min, decays.max, log=decays.log),
    )
    config = canonical(_with_training(workshop, config), levels)
    return config.replace(epochs=_suggest_epochs(trial, config, parameters.epochs, forecast, left, role))


def _suggest_epochs(
    trial: optuna.Trial, config: TransferConfig, epochs: IntRange, forecast: Forecast, left: float | None, role: str
) -> int:
    """Both trials that always run get the same: as many epochs as the space allows and a fifth of the time."""
    if role in _ALWAYS_RUN:
        fitting = forecast.most_epochs(config, left, share=_SHARE_OF_ALWAYS_RUN)
        most = epochs.largest() if fitting is None else max(1, min(fitting, epochs.largest()))
        return trial.suggest_int("epochs", most, most)
    fitting = forecast.most_epochs(config, left, share=_SHARE_BESIDE_FINAL)
    if fitting is not None and fitting < epochs.min:
        return 0
    most = epochs.largest() if fitting is None else epochs.largest(fitting)
    return trial.suggest_int("epochs", epochs.min, most, step=epochs.step)


def _with_training(workshop: Workshop, config: TransferConfig) -> TransferConfig:
    training = workshop.space.training
    return config.replace(
        batch_size=training.batch_size,
        augmentation=training.augmentation,
        label_smoothing=training.label_smoothing,
        drop_rate=training.drop_rate,
        head=training.head,
        image_size=workshop.pool.image_sizes[config.source],
    )


def _hopeless(config: TransferConfig, workshop: Workshop, role: str) -> str:
    """Why a configuration is not worth training, or an empty string."""
    reason = exceeds_limits(config, workshop)
    if reason or role or config.from_scratch:
        return reason
    candidates = workshop.pool.candidates
    kept = candidates[: max(1, round(len(candidates) * workshop.space.pruning.proxy_keep))]
    names = {(c.source.name, c.level) for c in kept}
    if config.upper_layers == "reinit":  # its full depth is used: judged by the best level of the source
        hopeful = config.source in {name for name, _ in names}
    else:
        hopeful = (config.source, config.transferred_layers) in names
    if hopeful:
        return ""
    level = config.transferred_layers
    return f"proxies rank level {level} of this source outside the best {len(kept)} of {len(candidates)}"


def exceeds_limits(config: TransferConfig, workshop: Workshop) -> str:
    """Which hard limit a configuration breaks, or an empty string."""
    source = workshop.source(config.source)
    cut = config.upper_layers == "drop" and config.transferred_layers
    level = source.levels[(config.transferred_layers if cut else len(source.levels)) - 1]
    count = level.parameter_count + (level.channels + 1) * len(workshop.dataset.classes)
    if workshop.max_parameters is not None and count > workshop.max_parameters:
        return f"{count:,} parameters are more than --max-params {workshop.max_parameters:,}"
    latency = workshop.latencies_ms.get((source.name, level.index))
    if workshop.max_latency_ms is not None and latency is not None and latency > workshop.max_latency_ms:
        return f"{latency:.1f} ms an image are more than --max-latency {workshop.max_latency_ms:g}"
    return ""


def best_trial(study: optuna.Study, metric: Metric, *, from_scratch: bool) -> optuna.trial.FrozenTrial | None:
    """The best complete trial among those from scratch, or among those that transfer."""
    chosen = [
        trial
        for trial in complete_trials(study)
        if (trial.user_attrs["config"]["transferred_layers"] == 0) == from_scratch
    ]
    return _best_of(chosen, metric)


def _best_of(trials: list[optuna.trial.FrozenTrial], metric: Metric) -> optuna.trial.FrozenTrial | None:
    best = None
    for trial in trials:
        if best is None or metric.better(trial.value or 0.0, best.value or 0.0):
            best = trial
    return best
