"""Progress that a person can follow: a live display on a terminal, plain lines anywhere else."""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from autotransfer.quantities import format_duration
from autotransfer.search.events import (
    EpochFinished,
    Event,
    Notice,
    Phase,
    PhaseStarted,
    SourceProbed,
    SourceSkipped,
    StudyFailed,
    StudyFinished,
    StudyStarted,
    TrialFinished,
    TrialStarted,
)

_TITLES: dict[Phase, str] = {
    "data": "Reading the data",
    "probing": "Probing sources",
    "search": "Searching",
    "final": "Training the recommendation",
}


class ProgressListener:
    """Shows a study on a console: phase, trials by state, best so far, time left in the budget.

    On a terminal the state stays at the bottom and sentences scroll above it; elsewhere each event that
    matters is one line. The display starts with the first event and ends with the study; used as a context
    manager it starts at once and ends also when the study is left by an exception.

    Args:
        console: where to show; standard error by default, so that results can be piped.
        budget_seconds: the study's budget where it is known before the first trial ends.
        clock: seconds that only go up.

    Example:
        >>> import sys
        >>> from autotransfer.search.events import Notice
        >>> ProgressListener(Console(file=sys.stdout))(Notice("resnet18 is not on this machine"))
        note: resnet18 is not on this machine
    """

    def __init__(
        self,
        console: Console | None = None,
        *,
        budget_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console(stderr=True)
        self._budget_seconds = budget_seconds
        self._clock = clock
        self._lock = threading.RLock()
        self._live: Live | None = None
        self._ended = False
        self._spinner = Spinner("dots")
        self._phase: Phase | None = None
        self._steps = 0
        self._total: int | None = None
        self._detail = ""
        self._metric = ""
        self._trials = {"complete": 0, "pruned": 0, "failed": 0}
        self._best: tuple[float, int | None] | None = None
        self._deadline: float | None = None
        self._running: dict[int, str] = {}

    def __call__(self, event: Event) -> None:
        """Take one event, from any thread."""
        with self._lock:
            self._start_display()
            self._take(event)
            self._ended = isinstance(event, StudyFinished | StudyFailed) or self._ended
        if self._ended:
            self.close()

    def __enter__(self) -> Self:
        """The listener itself; on a terminal the display starts, so that something shows from the first second."""
        self._start_display()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the terminal back, however the study ended."""
        self.close()

    def close(self) -> None:
        """End the live display."""
        # Outside the lock: stop() waits for the refreshing thread, which may be about to render.
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    def _start_display(self) -> None:
        if self._console.is_terminal and self._live is None and not self._ended:
            self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=5, transient=True)
            self._live.start()

    def _take(self, event: Event) -> None:
        match event:
            case StudyStarted():
                self._start_study(event)
            case PhaseStarted():
                self._phase, self._total, self._detail = event.phase, event.total, event.detail
                self._steps = 0
                self._running.clear()
                if not self._console.is_terminal:
                    self._say(self._phase_line())
            case SourceProbed():
                self._steps += 1
                cached = ", from the cache" if event.cached else ""
                self._say(f"probed {event.source}: {event.levels} levels in {format_duration(event.seconds)}{cached}")
            case SourceSkipped():
                self._steps += 1
                self._say(f"skipped {event.source}: {event.reason}", style="yellow")
            case TrialStarted():
                self._running[event.number] = f"trial {event.number}: {_summary(event)}"
            case EpochFinished():
                self._show_epoch(event)
            case TrialFinished():
                self._finish_trial(event)
            case Notice():
                self._say(f"note: {event.message}", style="yellow")
            case StudyFinished():
                self._say(f"study {event.study} finished: {event.folder}")
            case StudyFailed():
                self._say(f"study {event.study} failed: {event.reason}", style="red")

    def _start_study(self, event: StudyStarted) -> None:
        self._metric = event.metric
        budget = self._budget_seconds or event.params.get("budget")
        if isinstance(budget, int | float):
            self._deadline = self._clock() + budget
        resumed = " (resumed)" if event.resumed else ""
        within = f", budget {format_duration(budget)}" if isinstance(budget, int | float) else ""
        self._say(f"study {event.study}{resumed}: {event.metric}{within}")

    def _show_epoch(self, event: EpochFinished) -> None:
        if event.number not in self._running:
            return
        scores = [f"{name} {value:.4f}" for name, value in event.metrics.items() if name.startswith("val.")]
        label = self._running[event.number].split(" · ")[0]
        self._running[event.number] = " · ".join([label, f"epoch {event.epoch}", *scores[:1]])

    def _finish_trial(self, event: TrialFinished) -> None:
        self._steps += event.trained
        label = self._running.pop(event.number, f"trial {event.number}").split(" · ")[0]
        self._trials[event.state] += 1
        if event.best_value is not None:
            self._best = (event.best_value, event.best_number)
        if event.time_left is not None:
            self._deadline = self._clock() + event.time_left
        value = f" {event.value:.4f}" if event.value is not None else ""
        reason = f" ({event.reason})" if event.reason and event.state != "complete" else ""
        line = f"{label} -> {event.state}{value} in {format_duration(event.seconds)}{reason}"
        if event.state == "failed":
            self._say(line, style="yellow")
        elif event.trained and not self._console.is_terminal:
            # Those pruned before training are many and cost nothing: they only count.
            self._say(f"{line} | {self._state_line()}")

    def _phase_line(self) -> str:
        title = _TITLES[self._phase] if self._phase else "Starting"
        total = f" ({self._total})" if self._total is not None else ""
        detail = f": {self._detail}" if self._detail else ""
        return f"{title}{total}{detail}"

    def _state_line(self) -> str:
        counts = self._trials
        parts = [f"{counts['complete']} done, {counts['pruned']} pruned, {counts['failed']} failed"]
        if self._best is not None:
            value, number = self._best
            parts.append(f"best {self._metric} {value:.4f}" + ("" if number is None else f" (trial {number})"))
        if self._deadline is not None:
            parts.append(f"{format_duration(max(self._deadline - self._clock(), 0.0))} left")
        return " | ".join(parts)

    def _render(self) -> RenderableType:
        with self._lock:
            heading = Table.grid(padding=(0, 1))
            row: list[RenderableType] = [self._spinner, Text(self._phase_line(), style="bold")]
            if self._total:
                row += [ProgressBar(total=self._total, completed=min(self._steps, self._total), width=30)]
                row += [Text(f"{self._steps}/{self._total}")]
            heading.add_row(*row)
            running = [Text(f"  {line}", style="dim", no_wrap=True) for line in self._running.values()]
            return Group(heading, *running[-4:], Text(f"  {self._state_line()}", no_wrap=True))

    def _say(self, line: str, style: str | None = None) -> None:
        self._console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def _summary(event: TrialStarted) -> str:
    """The configuration of a trial in a few words."""
    config = event.config
    how = "from scratch"
    if not config.from_scratch:
        above = ", above reinitialised" if config.upper_layers == "reinit" else ""
        levels = "level" if config.transferred_layers == 1 else "levels"
        how = f"{config.transferred_layers} {levels}{above}, {config.frozen_layers} frozen"
    return f"{config.source} {how}, {config.epochs} epochs"
