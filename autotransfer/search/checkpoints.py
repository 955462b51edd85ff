"""What trials leave on the disk: states to go on from, and the weights of the best."""

from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from autotransfer.disk_cache import replacing
from autotransfer.search.study import complete_trials
from autotransfer.search.workshop import Workshop
from autotransfer.transfer.evaluation import Metric
from autotransfer.transfer.surgery import TransferModel

_MOST_STATES = 8


def origin_of(trial: optuna.Trial | FrozenTrial) -> int:
    """The number of the trial, or of the first of those that it goes on with."""
    return int(trial.user_attrs.get("origin", trial.number))


def state_file(trial: optuna.Trial | FrozenTrial, workshop: Workshop) -> Path:
    """Where the state of a training lies while it runs, and after it was pruned."""
    return workshop.checkpoints / f"trial-{origin_of(trial)}.state"


def weights_file(number: int, workshop: Workshop) -> Path:
    """Where the weights that a trial ended with lie, if it is one of the best and ran on this machine."""
    return workshop.checkpoints / f"trial-{number}.safetensors"


def keep_weights(model: TransferModel, trial: optuna.Trial, workshop: Workshop) -> None:
    """Keep the weights: what is answered with when there is no time to train again."""
    from safetensors.torch import save_file

    with replacing(weights_file(trial.number, workshop)) as temporary:
        save_file({n: t.detach().cpu().contiguous() for n, t in model.state_dict().items()}, temporary)


def drop_states(study: optuna.Study, workshop: Workshop) -> None:
    """Keep the states of the trials that run and of the latest pruned ones: others would start again."""
    unfinished = (TrialState.RUNNING, TrialState.WAITING)
    running = {state_file(trial, workshop) for trial in study.get_trials(deepcopy=False, states=unfinished)}
    states = [path for path in workshop.checkpoints.glob("trial-*.state") if path not in running]
    for path in sorted(states, key=_last_change)[:-_MOST_STATES]:
        path.unlink(missing_ok=True)


def drop_weights(study: optuna.Study, workshop: Workshop) -> None:
    """Keep the weights only of the best trial that transfers and of the best from scratch."""
    best = (best_trial(study, workshop.metric, from_scratch=scratch) for scratch in (True, False))
    kept = {trial.number for trial in best if trial is not None}
    for trial in complete_trials(study):
        if trial.number not in kept:
            weights_file(trial.number, workshop).unlink(missing_ok=True)


def best_trial(study: optuna.Study, metric: Metric, *, from_scratch: bool) -> FrozenTrial | None:
    """The best complete trial among those from scratch, or among those that transfer."""
    best = best_trials(study, metric, from_scratch=from_scratch)
    return best[0] if best else None


def best_trials(study: optuna.Study, metric: Metric, *, from_scratch: bool) -> list[FrozenTrial]:
    """The complete trials from scratch, or those that transfer, best first; of equal ones the earlier."""
    trials = complete_trials(study)
    chosen = [t for t in trials if (t.user_attrs["config"]["transferred_layers"] == 0) == from_scratch]
    sign = -1 if metric.greater_is_better else 1
    return sorted(chosen, key=lambda trial: sign * (trial.value or 0.0))


def _last_change(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # another process has removed it
        return 0.0
