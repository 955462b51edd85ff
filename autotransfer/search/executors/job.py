"""What a worker needs to take part in a search: a value that travels to other processes and machines."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

import optuna
from optuna.trial import TrialState

from autotransfer.search.budget import Budget
from autotransfer.search.events import Listener
from autotransfer.search.history import kept_past
from autotransfer.search.strategy import Strategy
from autotransfer.search.study import FINISHED, open_storage
from autotransfer.search.trials import run_trials
from autotransfer.search.workshop import Workshop
from autotransfer.sources import load_plugins


@dataclass(frozen=True)
class SearchJob:
    """One search.

    Attributes:
        storage, study: where the study lies, and its name.
        workshop: what its trials need.
        sampler: who chooses the trials.
        plugins: modules that register architectures.
        trials: limit on trained trials.
        ends: unix time at which the budget ends, None without a limit.
        for_search: seconds that were left when the search began.
        gpu_seconds, gpu_spent: limit on the seconds of GPUs, and those used before the search.
        jobs: trials that run at once, each on a GPU of its own where GPUs are used.
    """

    storage: str
    study: str
    workshop: Workshop
    sampler: str
    plugins: tuple[str, ...] = ()
    trials: int | None = None
    ends: float | None = None
    for_search: float | None = None
    gpu_seconds: float | None = None
    gpu_spent: float = 0.0
    jobs: int = 1

    def run(self, go_on: Callable[[], bool], listener: Listener) -> str:
        """Run trials until the search ends, as one of its workers; why it ended early, or an empty string."""
        load_plugins(self.plugins)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.load_study(study_name=self.study, storage=open_storage(self.storage))
        seconds = None if self.ends is None else self.ends - time.time()
        budget = Budget(seconds, self.trials, gpu_seconds=self.gpu_seconds)
        budget.begin_search(lambda: self.gpu_spent + trial_seconds(study), self.jobs, self.for_search)
        strategy = Strategy(self.sampler, replace(self.workshop, go_on=go_on))
        strategy = replace(strategy, past=kept_past(study, strategy.landscape))
        return run_trials(study, strategy, budget, listener)

    def portable(self) -> "SearchJob":
        """The same for another process: it asks somebody else whether to go on."""
        return replace(self, workshop=replace(self.workshop, go_on=_always))


def trial_seconds(study: optuna.Study) -> float:
    """Seconds that the trials of a study have taken together so far: by the clock where a trial has not told."""
    total = 0.0
    for trial in study.get_trials(deepcopy=False, states=(*FINISHED, TrialState.RUNNING)):
        if "seconds" in trial.user_attrs:
            total += float(trial.user_attrs["seconds"])
        elif trial.user_attrs.get("trained", False) and trial.datetime_start is not None:
            until = trial.datetime_complete or datetime.now(trial.datetime_start.tzinfo)
            total += max(0.0, (until - trial.datetime_start).total_seconds())
    return total


def _always() -> bool:
    return True
