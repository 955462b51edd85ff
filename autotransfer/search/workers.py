"""Who runs a trial, whether it still lives, and what becomes of the trials of those that do not."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from autotransfer.disk_cache import process_alive

PATIENCE_SECONDS = 90.0
_BEAT_SECONDS = 15.0
KILLED = "its process was killed"
STOPPED = "the user stopped the search"


def worker_name() -> str:
    """Machine and process."""
    return f"{_machine()}:{os.getpid()}"


@cache
def _machine() -> str:
    """The host's name and, where the system tells, what sets it apart from others that are called the same."""
    marks = [socket.gethostname()]
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        numbers = Path("/proc/self/ns/pid").readlink()  # containers number their processes for themselves
        marks.append(sha256(f"{boot} {numbers}".encode()).hexdigest()[:8])
    return "-".join(marks)


@contextmanager
def heartbeat(trial: optuna.Trial, every: float = _BEAT_SECONDS) -> Iterator[None]:
    """Note on a running trial, now and then, that its worker lives: other machines cannot see the process."""
    ended, storage, number = threading.Event(), trial.study._storage, trial._trial_id

    def beat() -> None:
        while not ended.wait(every):
            with suppress(Exception):  # a storage that is away for a moment, or a trial that was taken over
                # Not through the trial, whose own copy of its attributes the training reads at the same time.
                storage.set_trial_user_attr(number, "heartbeat", time.time())

    thread = threading.Thread(target=beat, daemon=True, name=f"heartbeat of trial {trial.number}")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Watch:
    """Which running trials have lost their worker, as one process sees it.

    A process of this machine is gone when it is gone. Of others it is known by what they write: nothing new for
    `patience` seconds, by this process's own clock, so that clocks of machines need not agree.
    """

    def __init__(self, patience: float = PATIENCE_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience, self._clock = patience, clock
        self._seen: dict[int, tuple[object, float]] = {}

    def lost(self, trial: FrozenTrial) -> bool:
        """Whether a running trial's worker is gone."""
        worker = str(trial.user_attrs.get("worker", ""))
        host, _, process = worker.rpartition(":")
        if host == _machine() and not (
            process.isdigit() and int(process) != os.getpid() and process_alive(int(process))
        ):
            return True
        sign = (worker, trial.user_attrs.get("heartbeat"), len(trial.user_attrs), len(trial.intermediate_values))
        before, since = self._seen.get(trial.number, (None, 0.0))
        if before != sign:
            self._seen[trial.number] = (sign, self._clock())
            return False
        return self._clock() - since > self._patience


def retry_lost_trials(study: optuna.Study, watch: Watch, *, stopped: bool = False) -> list[FrozenTrial]:
    """Close the trials whose worker is gone, and queue each once more (where asked, those too that the user stopped).

    Returns those that were closed.

    Any number of processes may do so at once, and each may be killed at any point: what another one has closed
    and not queued is queued here, and what two have queued `is_repeated` tells.
    """
    closed = []
    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if not watch.lost(trial):
            continue
        frozen: Any = trial
        try:
            study._storage.set_trial_user_attr(frozen._trial_id, "reason", KILLED)
            study.tell(trial.number, state=TrialState.FAIL)
        except (UpdateFinishedTrialError, ValueError):  # another process closed it first
            continue
        closed.append(trial)
    trials = study.get_trials(deepcopy=False)
    retried = {trial.user_attrs.get("retry_of") for trial in trials}
    for trial in trials:
        attrs = trial.user_attrs
        reasons = (KILLED, STOPPED) if stopped else (KILLED,)
        killed = trial.state == TrialState.FAIL and attrs.get("reason") in reasons
        # What it was queued with counts where it was killed before it had asked for all of its parameters.
        params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
        if killed and params and "retry_of" not in attrs and trial.number not in retried:
            again: dict[str, Any] = {name: attrs[name] for name in ("role", "continues") if name in attrs}
            again |= {"retry_of": trial.number, "origin": attrs.get("origin", trial.number)}
            study.enqueue_trial(params, user_attrs=again)
    return closed


def is_repeated(study: optuna.Study, trial: optuna.Trial) -> str:
    """Why a trial that was just asked for is another's work already, or an empty string.

    Two processes may queue the same retry, or choose at once to go on with the same pruned trial: the lower number
    stays.
    """
    mine = trial.user_attrs
    for name, what in (("retry_of", "retries"), ("continues", "goes on with")):
        if name not in mine:
            continue
        for other in study.get_trials(deepcopy=False)[: trial.number]:
            if other.user_attrs.get(name) != mine[name] or other.number == mine.get("retry_of"):
                continue
            if name == "retry_of" or other.state in (TrialState.RUNNING, TrialState.WAITING):
                return f"trial {other.number} {what} trial {mine[name]} already"
    return ""
