"""Trials: from what the sampler chooses to a configuration, to a score."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import optuna
import torch
from optuna.trial import TrialState

from autotransfer.errors import AutotransferError, TrainingError
from autotransfer.search.candidates import Candidate
from autotransfer.search.events import EpochFinished, Listener, Notice, TrialFinished, TrialStarted
from autotransfer.search.events import TrialState as TrialOutcome
from autotransfer.search.forecast import Forecast, refit_seconds
from autotransfer.search.sampler import CurvePruner
from autotransfer.search.strategy import Strategy
from autotransfer.search.study import Budget, ask, complete_trials, trained_trials
from autotransfer.search.workshop import Workshop, exceeds_limits, linear_probe_config, with_training
from autotransfer.sources import Source
from autotransfer.transfer.config import TransferConfig, canonical
from autotransfer.transfer.evaluation import Metric
from autotransfer.transfer.surgery import TransferModel
from autotransfer.transfer.training import Data, EpochReport, predict, train

logger = logging.getLogger(__name__)

# AdamW's peak in the trials that are queued: networks with batch norms gain from more than the others bear.
_BATCH_NORM_LEARNING_RATE = 2e-3
_OTHER_LEARNING_RATE = 5e-4
_ASKED_PER_TRAINED = 10
_MAX_ASKED = 1000
_MAX_IN_VAIN = 20
_ALWAYS_RUN = ("best by proxies", "from scratch")
_SHARE_OF_ALWAYS_RUN = 0.2
_LARGEST_SHARE_OF_ALWAYS_RUN = 0.3
_SHARE_BESIDE_ITS_FINAL = 0.42
_SHARE_TOO_SHORT_FOR_A_TRIAL = 0.05
_MOST_STATES = 8


def queue_first_trials(study: optuna.Study, strategy: Strategy, seconds: float | None = None) -> None:
    """Queue what is tried first: the best candidate and from scratch, which the answer is judged by.

    Samplers that know nothing of the proxies also start from the best of the next sources.

    Where `seconds` limit the search, candidates that could train less than half of the epochs stand back: a
    smaller network trained properly beats a larger one that is not.
    """
    workshop = strategy.workshop
    parameters = workshop.space.parameters
    rates = parameters.learning_rate
    best_of: dict[str, Candidate] = {}
    for candidate in _worth_training(study, workshop, seconds):
        best_of.setdefault(candidate.source.name, candidate)
    best, *others = best_of.values()

    def queue(source: Source, level: int, frozen: int, role: str) -> None:
        params = {
            "source": source.name,
            "transferred_layers": level,
            "upper_layers": parameters.upper_layers[0],
            "frozen_layers": frozen,
            "learning_rate": min(max(usual_learning_rate(source), rates.min), rates.max),
        }
        study.enqueue_trial(params, user_attrs={"role": role})

    queue(best.source, best.level, 0, "best by proxies")
    whole = (c.source for c in (best, *others) if not _exceeds(workshop, c.source, len(c.source.levels)))
    queue(next(whole, best.source), 0, 0, "from scratch")
    if strategy.by_proxy:
        return
    for other in others[:3]:
        queue(other.source, other.level, 0, "best of its source")
    queue(best.source, best.level, best.level // 2, "half frozen")


def _worth_training(study: optuna.Study, workshop: Workshop, seconds: float | None) -> list[Candidate]:
    """Candidates within the hard limits (all, where none is) by their expectation.

    Where time is short, times the part of half the epochs that one trial's share of it allows.
    """
    within = [c for c in workshop.pool.candidates if not _exceeds(workshop, c.source, c.level)]
    candidates = within or workshop.pool.candidates
    if seconds is None:
        return candidates
    forecast = Forecast.of(study, workshop)
    wanted = workshop.space.parameters.epochs.largest() / 2

    def worth(candidate: Candidate) -> float:
        probed = linear_probe_config(workshop, candidate.source.name, candidate.level)
        config = probed.replace(frozen_layers=0, cached_views=0, epochs=1)
        epochs = seconds * _SHARE_OF_ALWAYS_RUN / max(1e-9, forecast.seconds(config))
        return candidate.expected * min(1.0, epochs / wanted)

    return sorted(candidates, key=worth, reverse=True)


def _exceeds(workshop: Workshop, source: Source, level: int) -> bool:
    return bool(exceeds_limits(linear_probe_config(workshop, source.name, level), workshop))


def usual_learning_rate(source: Source) -> float:
    """AdamW's peak in the trials that are queued."""
    norms = (isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in source.load().modules())
    return _BATCH_NORM_LEARNING_RATE if any(norms) else _OTHER_LEARNING_RATE


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


def run_trials(study: optuna.Study, strategy: Strategy, budget: Budget, listener: Listener) -> None:
    """Run trials until the budget is spent (less what the final training takes) or told to stop."""
    workshop = strategy.workshop
    limit, at_start = budget.trials, budget.left()
    in_vain = 0
    for _ in range(_MAX_ASKED if limit is None else limit * _ASKED_PER_TRAINED):
        if not workshop.go_on() or not budget.fits(1.0) or in_vain >= _MAX_IN_VAIN:
            break
        trained = len(trained_trials(study))
        if (limit is not None and trained >= limit) or _time_for_final(study, workshop, budget, at_start):
            break
        forecast = Forecast.of(study, workshop)
        strategy.prepare(study, forecast, _time_for("", study, workshop, budget, at_start).wanted)
        if limit is None and (reason := strategy.nothing_to_gain(study)):
            listener(Notice(f"Stopping early: {reason}."))
            break
        trial = ask(study)
        time = _time_for(str(trial.user_attrs.get("role", "")), study, workshop, budget, at_start)
        _run_one(trial, study, strategy, forecast, budget, time, listener)
        in_vain = 0 if len(trained_trials(study)) > trained else in_vain + 1


def _time_for_final(study: optuna.Study, workshop: Workshop, budget: Budget, at_start: float | None) -> bool:
    """True where little more than the final training's time is left: one more trial would cost that training."""
    left = budget.left()
    best = best_trial(study, workshop.metric, from_scratch=False)
    if left is None or at_start is None or best is None:
        return False
    return 0 < left - refit_seconds(best, workshop.dataset) < at_start * _SHARE_TOO_SHORT_FOR_A_TRIAL


def _time_for(role: str, study: optuna.Study, workshop: Workshop, budget: Budget, at_start: float | None) -> _Time:
    """Both trials that always run get the same share; others what the final training leaves."""
    left = budget.left()
    if left is None or at_start is None:
        return _Time(None, None)
    if role in _ALWAYS_RUN:
        return _Time(min(left, at_start * _SHARE_OF_ALWAYS_RUN), min(left, at_start * _LARGEST_SHARE_OF_ALWAYS_RUN))
    best = best_trial(study, workshop.metric, from_scratch=False)
    final = refit_seconds(best, workshop.dataset) if best is not None else 0.0
    beside_final = left - final if final < left else left  # a final training that no longer fits is given up
    # One that turns out best is trained once more, on more images.
    return _Time(min(beside_final, left * _SHARE_BESIDE_ITS_FINAL), beside_final)


def _run_one(
    trial: optuna.Trial,
    study: optuna.Study,
    strategy: Strategy,
    forecast: Forecast,
    budget: Budget,
    time: _Time,
    listener: Listener,
) -> None:
    started, workshop = perf_counter(), strategy.workshop
    role = str(trial.user_attrs.get("role", ""))
    config = _suggest(trial, workshop, forecast, time.wanted, role)
    trial.set_user_attr("config", config.to_dict())
    proxies = {}
    if config.transferred_layers:
        candidate = workshop.pool.get(config.source, config.transferred_layers)
        proxies = {name: proxy.value for name, proxy in candidate.proxies.items()}
    listener(TrialStarted(trial.number, config, proxies, role))
    reason = exceeds_limits(config, workshop) if strategy.by_proxy else _hopeless(config, workshop, role)
    if not reason and config.epochs == 0:
        reason = "over budget: there is no time for it and its final training"
    outcome = _Outcome(TrialState.PRUNED, reason=reason)
    if not reason:
        trial.set_user_attr("trained", True)
        outcome = _train_trial(trial, config, workshop, time, role, forecast, listener)
        if not (strategy.by_proxy and outcome.state == TrialState.PRUNED):  # one that was pruned may go on later
            _state_file(trial, workshop).unlink(missing_ok=True)
        _drop_states(workshop)
    seconds = perf_counter() - started
    trial.set_user_attr("seconds", seconds)
    if outcome.reason:
        trial.set_user_attr("reason", outcome.reason)
    study.tell(trial, outcome.value, state=outcome.state)
    best = _best_of(complete_trials(study), workshop.metric)
    _drop_weights(study, workshop)
    names: dict[TrialState, TrialOutcome] = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned"}
    listener(
        TrialFinished(
            number=trial.number,
            state=names.get(outcome.state, "failed"),
            value=outcome.value,
            reason=outcome.reason,
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
    time: _Time,
    role: str,
    forecast: Forecast,
    listener: Listener,
) -> _Outcome:
    """Train, report every epoch, and keep the weights; whatever goes wrong fails this trial alone."""
    name = workshop.metric.name
    started = perf_counter()
    origin = _origin(trial)
    best: list[float] = []  # epoch and score

    def on_epoch(report: EpochReport) -> None:
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
        if report.epoch < config.epochs and role not in _ALWAYS_RUN and trial.should_prune():
            why = "its learning curve is below the median"
            if isinstance(trial.study.pruner, CurvePruner):
                why = "what it may still gain is worth less than trying something else"
            raise optuna.TrialPruned(f"{why}, after epoch {report.epoch}")

    def go_on() -> bool:
        return workshop.go_on() and (time.allowed is None or perf_counter() - started < time.allowed)

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
                    state_file=_state_file(trial, workshop),
                )
            except InterruptedError as stopped:
                if role not in _ALWAYS_RUN or not workshop.go_on():
                    raise
                # Slower than forecast: what it has learnt is still the baseline, and the search must go on.
                value = workshop.metric(predict(model, inputs, val_rows, data.task), data.targets[val_rows])
                if not math.isfinite(value):
                    raise TrainingError(f"diverged: {workshop.metric.name} is {value}") from stopped
                reason = f"{stopped}: its share of the budget was used"
    except optuna.TrialPruned as pruned:
        return _Outcome(TrialState.PRUNED, reason=str(pruned))
    except InterruptedError:
        cause = "the user stopped the search" if not workshop.go_on() else "the budget ran out"
        return _Outcome(TrialState.FAIL, reason=cause)
    except torch.OutOfMemoryError as error:
        return _Outcome(TrialState.FAIL, reason=f"out of memory: {str(error).splitlines()[0][:200]}")
    except TrainingError as error:
        return _Outcome(TrialState.FAIL, reason=str(error))
    except (AutotransferError, RuntimeError, ValueError, OSError) as error:  # one trial fails alone
        logger.warning("trial %d failed", trial.number, exc_info=True)
        return _Outcome(TrialState.FAIL, reason=f"{type(error).__name__}: {error}")
    if config.early_stopping and best:
        trial.set_user_attr("best_epoch", int(best[0]))
    _keep(model, trial, workshop)
    return _Outcome(TrialState.COMPLETE, value, reason)


def _origin(trial: optuna.Trial) -> int:
    """The number of the trial, or of the first of those that it goes on with."""
    return int(trial.user_attrs.get("origin", trial.number))


def _state_file(trial: optuna.Trial, workshop: Workshop) -> Path:
    """Where the state of a training lies while it runs."""
    return workshop.checkpoints / f"trial-{_origin(trial)}.state"


def weights_file(number: int, workshop: Workshop) -> Path:
    """Where the weights that a trial ended with lie, if it is one of the best."""
    return workshop.checkpoints / f"trial-{number}.safetensors"


def _keep(model: TransferModel, trial: optuna.Trial, workshop: Workshop) -> None:
    """Keep the weights: what is answered with when there is no time to train again."""
    from safetensors.torch import save_file

    workshop.checkpoints.mkdir(parents=True, exist_ok=True)
    path = weights_file(trial.number, workshop)
    temporary = path.with_suffix(".tmp")
    save_file({n: t.detach().cpu().contiguous() for n, t in model.state_dict().items()}, temporary)
    temporary.replace(path)


def _drop_states(workshop: Workshop) -> None:
    """Keep the states of the latest pruned trials only: others would start again."""
    states = sorted(workshop.checkpoints.glob("trial-*.state"), key=lambda path: path.stat().st_mtime)
    for path in states[:-_MOST_STATES]:
        path.unlink(missing_ok=True)


def _drop_weights(study: optuna.Study, workshop: Workshop) -> None:
    """Keep the weights only of the best trial that transfers and of the best from scratch."""
    kept = {
        best.number for scratch in (True, False) if (best := best_trial(study, workshop.metric, from_scratch=scratch))
    }
    for trial in complete_trials(study):
        if trial.number not in kept:
            weights_file(trial.number, workshop).unlink(missing_ok=True)


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
    if role in _ALWAYS_RUN:
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
