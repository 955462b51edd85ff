"""Trials: from what the sampler chooses to a configuration, to a score."""

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import optuna
import torch
from filelock import FileLock, Timeout
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from autotransfer.errors import AutotransferError, TrainingError
from autotransfer.search.budget import Budget
from autotransfer.search.checkpoints import best_trial, drop_states, drop_weights, keep_weights, origin_of, state_file
from autotransfer.search.events import EpochFinished, Event, Listener, TrialFinished, TrialStarted
from autotransfer.search.events import TrialState as TrialOutcome
from autotransfer.search.first_trials import ALWAYS_RUN, SHARE_OF_ALWAYS_RUN
from autotransfer.search.forecast import Forecast, refit_seconds
from autotransfer.search.sampler import CurvePruner
from autotransfer.search.strategy import Strategy
from autotransfer.search.study import ask, trained_trials
from autotransfer.search.workers import STOPPED, Watch, heartbeat, is_repeated, retry_lost_trials
from autotransfer.search.workshop import Workshop, exceeds_limits, with_training
from autotransfer.transfer.config import TransferConfig, canonical
from autotransfer.transfer.training import Data, EpochReport, predict, train

logger = logging.getLogger(__name__)

_ASKED_PER_TRAINED = 10
_MAX_ASKED = 1000
_MAX_IN_VAIN = 20
_WAIT_SECONDS = 0.2
_LONGEST_CHOICE_SECONDS = 60.0
_LARGEST_SHARE_OF_ALWAYS_RUN = 0.3
_SHARE_BESIDE_ITS_FINAL = 0.42
_SHARE_TOO_SHORT_FOR_A_TRIAL = 0.05


@dataclass(frozen=True)
class _Time:
    """What one trial may take.

    Attributes:
        wanted: seconds that its epochs are chosen for; None without a limit.
        allowed: seconds after which it is stopped.
    """

    wanted: float | None
    allowed: float | None


@dataclass(frozen=True)
class _Outcome:
    state: TrialState
    value: float | None = None
    reason: str = ""


def run_trials(study: optuna.Study, strategy: Strategy, budget: Budget, listener: Listener) -> str:
    """Run trials until the budget is spent (less what the final training takes) or told to stop.

    Any number of processes may do so on one study at once.

    Returns:
        Why it ended early, or an empty string.
    """
    workshop, watch = strategy.workshop, Watch()
    limit, in_vain, asked = budget.trials, 0, 0
    budget.begin_search()
    most = _MAX_ASKED if limit is None else limit * _ASKED_PER_TRAINED
    while asked < most and in_vain < _MAX_IN_VAIN and workshop.go_on() and budget.fits(1.0):
        for lost in retry_lost_trials(study, watch):
            listener(_ended(study, lost, budget, workshop))
        trained = len(trained_trials(study))
        if (limit is not None and trained >= limit) or _time_for_final(study, workshop, budget):
            break
        forecast = Forecast.of(study, workshop)
        with _alone(workshop):
            strategy.prepare(study, forecast, _time_for("", study, workshop, budget).wanted)
            if limit is None and (reason := strategy.nothing_to_gain(study)):
                return reason
            try:
                chosen = None if _all_taken(study, limit) else _choose(study, strategy, forecast, budget)
            except UpdateFinishedTrialError:  # this process slept, and its trial was taken for lost
                continue
        if chosen is None:  # others run the last trials: they may yet fail
            time.sleep(_WAIT_SECONDS)
            continue
        asked += 1
        trial, config, limits = chosen
        if config is not None:
            _run_one(trial, config, study, strategy, forecast, budget, limits, listener)
        in_vain = 0 if len(trained_trials(study)) > trained else in_vain + 1
    if in_vain >= _MAX_IN_VAIN:
        return f"the last {in_vain} configurations that were chosen were not worth training, or not within the limits"
    return f"{asked} configurations were chosen, as many as may be" if asked >= most else ""


@contextmanager
def _alone(workshop: Workshop) -> Iterator[None]:
    """One process of this machine at a time chooses, so that each knows what the others are at.

    Where one that sleeps holds the lock, the others choose without it after a while.
    """
    workshop.checkpoints.mkdir(parents=True, exist_ok=True)
    lock = FileLock(workshop.checkpoints / "choosing.lock")
    with suppress(Timeout):
        lock.acquire(timeout=_LONGEST_CHOICE_SECONDS)
    try:
        yield
    finally:
        lock.release()


def _all_taken(study: optuna.Study, limit: int | None) -> bool:
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    return limit is not None and len(trained_trials(study)) + len(running) >= limit


def _choose(
    study: optuna.Study, strategy: Strategy, forecast: Forecast, budget: Budget
) -> tuple[optuna.Trial, TransferConfig | None, "_Time"]:
    """Ask for a trial and its configuration; None where it is another's work."""
    trial = ask(study)
    role = str(trial.user_attrs.get("role", ""))
    limits = _time_for(role, study, strategy.workshop, budget)
    if reason := is_repeated(study, trial):
        trial.set_user_attr("reason", reason)
        study.tell(trial, state=TrialState.FAIL)
        return trial, None, limits
    config = _suggest(trial, strategy.workshop, forecast, limits.wanted, role)
    trial.set_user_attr("config", config.to_dict())
    return trial, config, limits


def _time_for_final(study: optuna.Study, workshop: Workshop, budget: Budget) -> bool:
    """True where little more than the final training's time is left: one more trial would cost that training."""
    left, for_search = budget.left(), budget.for_search
    best = best_trial(study, workshop.metric, from_scratch=False)
    if left is None or for_search is None or best is None:
        return False
    return 0 < left - refit_seconds(best, workshop.dataset) < for_search * _SHARE_TOO_SHORT_FOR_A_TRIAL


def _time_for(role: str, study: optuna.Study, workshop: Workshop, budget: Budget) -> _Time:
    """Both trials that always run get the same share; others what the final training leaves."""
    left, for_search = budget.left(), budget.for_search
    if left is None or for_search is None:
        return _Time(None, None)
    if role in ALWAYS_RUN:
        share, largest = for_search * SHARE_OF_ALWAYS_RUN, for_search * _LARGEST_SHARE_OF_ALWAYS_RUN
        return _Time(min(left, share), min(left, largest))
    best = best_trial(study, workshop.metric, from_scratch=False)
    final = refit_seconds(best, workshop.dataset) if best is not None else 0.0
    beside_final = left - final if final < left else left  # a final training that no longer fits is given up
    # One that turns out best is trained once more, on more images.
    return _Time(min(beside_final, left * _SHARE_BESIDE_ITS_FINAL), beside_final)


def _run_one(
    trial: optuna.Trial,
    config: TransferConfig,
    study: optuna.Study,
    strategy: Strategy,
    forecast: Forecast,
    budget: Budget,
    limits: _Time,
    listener: Listener,
) -> None:
    started, workshop, training = perf_counter(), strategy.workshop, 0.0

    def tell(event: Event) -> None:
        nonlocal training
        training += event.seconds if isinstance(event, EpochFinished) else 0.0
        listener(event)

    role = str(trial.user_attrs.get("role", ""))
    proxies = {}
    if config.transferred_layers:
        candidate = workshop.pool.get(config.source, config.transferred_layers)
        proxies = {name: proxy.value for name, proxy in candidate.proxies.items()}
    listener(TrialStarted(trial.number, config, proxies, role))
    reason = exceeds_limits(config, workshop) if strategy.by_proxy else _hopeless(config, workshop, role)
    if not reason and config.epochs == 0:
        reason = "over budget: there is no time for it and its final training"
    outcome = _Outcome(TrialState.PRUNED, reason=reason)
    try:
        if not reason:
            trial.set_user_attr("trained", True)
            with heartbeat(trial):
                outcome = _train_trial(trial, config, workshop, limits, role, forecast, tell)
        seconds = perf_counter() - started
        trial.set_user_attr("seconds", seconds)
        if training:
            trial.set_user_attr("overhead_seconds", max(0.0, seconds - training))
        if outcome.reason:
            trial.set_user_attr("reason", outcome.reason)
        study.tell(trial, outcome.value, state=outcome.state)
    except (UpdateFinishedTrialError, ValueError) as error:
        if study.get_trials(deepcopy=False)[trial.number].state == TrialState.RUNNING:
            raise
        logger.warning("trial %d was taken for lost, and is another worker's now: %s", trial.number, error)
        return
    may_go_on = outcome.reason == STOPPED or (strategy.by_proxy and outcome.state == TrialState.PRUNED)
    if not may_go_on:
        state_file(trial, workshop).unlink(missing_ok=True)
    drop_states(study, workshop)
    drop_weights(study, workshop)
    listener(_ended(study, study.get_trials(deepcopy=False)[trial.number], budget, workshop))


def _ended(study: optuna.Study, trial: FrozenTrial, budget: Budget, workshop: Workshop) -> TrialFinished:
    """What listeners are told of a finished trial."""
    trial = study.get_trials(deepcopy=False)[trial.number]
    names: dict[TrialState, TrialOutcome] = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}
    best = [b for scratch in (True, False) if (b := best_trial(study, workshop.metric, from_scratch=scratch))]
    sign = -1 if workshop.metric.greater_is_better else 1
    first = min(best, key=lambda t: (sign * (t.value or 0.0), t.number), default=None)
    return TrialFinished(
        number=trial.number,
        state=names.get(trial.state, "failed"),
        value=trial.value if trial.state == TrialState.COMPLETE else None,
        reason=str(trial.user_attrs.get("reason", "")),
        seconds=float(trial.user_attrs.get("seconds", 0.0)),
        best_value=first.value if first else None,
        best_number=first.number if first else None,
        time_left=budget.left(),
        trained=bool(trial.user_attrs.get("trained", False)),
    )


def _train_trial(
    trial: optuna.Trial,
    config: TransferConfig,
    workshop: Workshop,
    limits: _Time,
    role: str,
    forecast: Forecast,
    listener: Listener,
) -> _Outcome:
    """Train, report every epoch, and keep the weights; whatever goes wrong fails this trial alone."""
    name = workshop.metric.name
    started = perf_counter()
    origin = origin_of(trial)
    best: list[float] = []  # epoch and score
    whole = [0.0]  # seconds of all epochs, those before it was interrupted too

    def on_epoch(report: EpochReport) -> None:
        whole[0] += report.seconds
        metrics = {"train.loss": report.train_loss}
        if report.score is not None and report.val_loss is not None:
            metrics |= {f"val.{name}": report.score, "val.loss": report.val_loss}
            trial.report(report.score, report.epoch)
            if not best or workshop.metric.better(report.score, best[1]):
                best[:] = report.epoch, report.score
        seconds = perf_counter() - started
        ratio = forecast.ratio(config, report.epoch, seconds)
        if ratio is not None and origin == trial.number:  # one that goes on has trained its first epochs before
            trial.set_user_attr("train_over_forward", ratio)
        listener(EpochFinished(trial.number, report.epoch, metrics, report.seconds))
        if report.epoch < config.epochs and role not in ALWAYS_RUN and trial.should_prune():
            why = "its learning curve is below the median"
            if isinstance(trial.study.pruner, CurvePruner):
                why = "what it may still gain is worth less than trying something else"
            raise optuna.TrialPruned(f"{why}, after epoch {report.epoch}")

    def go_on() -> bool:
        return workshop.go_on() and (limits.allowed is None or perf_counter() - started < limits.allowed)

    reason = ""
    try:
        train_rows, val_rows = workshop.dataset.rows("train"), workshop.dataset.rows("val")
        with workshop.started(config, train_rows) as (model, inputs):
            if origin == trial.number:
                trial.set_user_attr("start_seconds", perf_counter() - started)
            dataset = workshop.dataset
            data = Data(inputs, dataset.targets, train_rows, val_rows, dataset.task)
            try:
                value = train(
                    model,
                    config,
                    data,
                    metric=workshop.metric,
                    seed=workshop.seed + origin,
                    on_epoch=on_epoch,
                    go_on=go_on,
                    state_file=state_file(trial, workshop),
                )
            except InterruptedError as stopped:
                if role not in ALWAYS_RUN or not workshop.go_on():
                    raise
                # Slower than forecast: what it has learnt is still the baseline, and the search must go on.
                value = workshop.metric(predict(model, inputs, val_rows, data.task), data.targets[val_rows])
                if not math.isfinite(value):
                    raise TrainingError(f"diverged: {workshop.metric.name} is {value}") from stopped
                reason = f"{stopped}: its share of the budget was used"
    except UpdateFinishedTrialError:
        raise
    except optuna.TrialPruned as pruned:
        return _Outcome(TrialState.PRUNED, reason=str(pruned))
    except InterruptedError:
        cause = STOPPED if not workshop.go_on() else "the budget ran out"
        return _Outcome(TrialState.FAIL, reason=cause)
    except torch.OutOfMemoryError as error:
        return _Outcome(TrialState.FAIL, reason=f"out of memory: {str(error).splitlines()[0][:200]}")
    except TrainingError as error:
        return _Outcome(TrialState.FAIL, reason=str(error))
    except (AutotransferError, RuntimeError, ValueError, OSError) as error:  # one trial fails alone
        logger.warning("trial %d failed", trial.number, exc_info=True)
        return _Outcome(TrialState.FAIL, reason=f"{type(error).__name__}: {error}")
    before = float(trial.user_attrs.get("start_seconds", 0.0))
    trial.set_user_attr("whole_seconds", max(before + whole[0], perf_counter() - started))
    if config.early_stopping and best:
        trial.set_user_attr("best_epoch", int(best[0]))
    keep_weights(model, trial, workshop)
    return _Outcome(TrialState.COMPLETE, value, reason)


def _suggest(
    trial: optuna.Trial, workshop: Workshop, forecast: Forecast, seconds: float | None, role: str
) -> TransferConfig:
    """The sampler's choice, with no more epochs than there are seconds for (0 where not even the fewest fit)."""
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
    config = canonical(with_training(workshop, config), levels)
    epochs = parameters.epochs
    fitting = epochs.max if seconds is None else forecast.most_epochs(config, seconds)
    if (before := trial.user_attrs.get("continues")) is not None:
        same = int(trial.study.get_trials(deepcopy=False)[before].params["epochs"])
        return config.replace(epochs=trial.suggest_int("epochs", same, same))
    if role in ALWAYS_RUN:
        most = max(1, min(fitting, epochs.largest()))
        return config.replace(epochs=trial.suggest_int("epochs", most, most))
    if fitting < epochs.min:
        return config.replace(epochs=0)
    return config.replace(epochs=trial.suggest_int("epochs", epochs.min, epochs.largest(fitting), step=epochs.step))


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
