"""What happens in a study, told to listeners: progress bars, MLflow, a service's status.

The search knows no listener by name. Events are plain values; a listener is any callable that takes one.
Times are seconds, scores are in the metric's own unit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from autotransfer.transfer.config import TransferConfig

Phase = Literal["data", "probing", "search", "final"]
TrialState = Literal["complete", "pruned", "failed"]


@dataclass(frozen=True)
class StudyStarted:
    """The study exists; nothing has been computed yet.

    Attributes:
        study: name of the study.
        resumed: True where it continues an earlier one.
        params: what the study is about, flat and JSON-able (space, seed, budget, dataset, sources, ...).
        tags: dataset fingerprint, space, versions.
        metric: name of the objective.
        joined: True where another process leads it, and this one only runs trials.
    """

    study: str
    resumed: bool
    metric: str
    params: Mapping[str, str | int | float | bool | None] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    joined: bool = False


@dataclass(frozen=True)
class PhaseStarted:
    """A phase begins; `total` is the number of steps where it is known (sources to probe, trials to run)."""

    phase: Phase
    total: int | None = None
    detail: str = ""


@dataclass(frozen=True)
class SourceProbed:
    """One source has been probed: levels, seconds, whether it came from the cache."""

    source: str
    levels: int
    seconds: float
    cached: bool


@dataclass(frozen=True)
class SourceSkipped:
    """A source cannot be used, and why."""

    source: str
    reason: str


@dataclass(frozen=True)
class TrialStarted:
    """A trial has its configuration; `proxies` are those of its (source, level), empty for k = 0."""

    number: int
    config: TransferConfig
    proxies: Mapping[str, float] = field(default_factory=dict)
    role: str = ""


@dataclass(frozen=True)
class EpochFinished:
    """One epoch: `epoch` counts from 1; `metrics` have names like `train.loss`, `val.accuracy`."""

    number: int
    epoch: int
    metrics: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class TrialFinished:
    """A trial has ended.

    `value` is its score where it has one, `reason` why it was pruned or failed, `trained` False where it was
    pruned before any training.
    """

    number: int
    state: TrialState
    value: float | None
    reason: str
    seconds: float
    best_value: float | None
    best_number: int | None
    time_left: float | None
    trained: bool = True


@dataclass(frozen=True)
class Notice:
    """A sentence that the user should see."""

    message: str


@dataclass(frozen=True)
class StudyFinished:
    """The study has its answer: summary metrics (`test.accuracy`, ...), and the folder that holds it."""

    study: str
    folder: str
    metrics: Mapping[str, float]
    tags: Mapping[str, str] = field(default_factory=dict)
    input_example: str = ""


@dataclass(frozen=True)
class StudyFailed:
    """The study ended without an answer."""

    study: str
    reason: str


Event = (
    StudyStarted
    | PhaseStarted
    | SourceProbed
    | SourceSkipped
    | TrialStarted
    | EpochFinished
    | TrialFinished
    | Notice
    | StudyFinished
    | StudyFailed
)


class Listener(Protocol):
    """Takes events, in order, on the thread that runs the study; must be quick and must not raise."""

    def __call__(self, event: Event) -> None:
        """Take one event."""
