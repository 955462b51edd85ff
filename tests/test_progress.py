import io
from collections.abc import Sequence

import pytest
from rich.console import Console

from autotransfer.progress import ProgressListener
from autotransfer.search.events import (
    EpochFinished,
    Event,
    Notice,
    PhaseStarted,
    SourceProbed,
    SourceSkipped,
    StudyFailed,
    StudyFinished,
    StudyStarted,
    TrialFinished,
    TrialStarted,
    TrialState,
)
from autotransfer.transfer.config import TransferConfig

CONFIG = TransferConfig(
    source="embedded:resnet10t.glyphs",
    transferred_layers=3,
    upper_layers="drop",
    frozen_layers=1,
    learning_rate=1e-3,
)


def finished(number: int, state: TrialState, value: float | None, reason: str = "") -> TrialFinished:
    return TrialFinished(number, state, value, reason, seconds=4.2, best_value=0.91, best_number=0, time_left=100.0)


STUDY: Sequence[Event] = (
    StudyStarted("digits", resumed=False, metric="accuracy", params={"budget": 120.0}),
    PhaseStarted("probing", total=2),
    SourceProbed("embedded:resnet10t.glyphs", levels=5, seconds=1.5, cached=True),
    SourceSkipped("resnet18.a1_in1k", "cannot be fetched [offline]"),
    Notice("one source of two"),
    PhaseStarted("search", total=3),
    TrialStarted(0, CONFIG, role="linear_probe"),
    EpochFinished(0, 1, {"train.loss": 0.4, "val.accuracy": 0.91}, seconds=1.0),
    finished(0, "complete", 0.91),
    TrialStarted(1, CONFIG),
    finished(1, "pruned", None, "proxies rank it last"),
    TrialStarted(2, CONFIG),
    finished(2, "failed", None, "diverged"),
    PhaseStarted("final"),
    StudyFinished("digits", "/tmp/out", {"test.accuracy": 0.9}),
)


def show(events: Sequence[Event], *, terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=120)
    with ProgressListener(console, clock=lambda: 0.0) as listener:
        for event in events:
            listener(event)
    return file.getvalue()


def test_plain_output_is_one_line_an_event_that_matters() -> None:
    lines = show(STUDY, terminal=False).splitlines()
    assert lines == [
        "study digits: accuracy, budget 2m 0s",
        "Probing sources (2)",
        "probed embedded:resnet10t.glyphs: 5 levels in 1.5s, from the cache",
        "skipped resnet18.a1_in1k: cannot be fetched [offline]",
        "note: one source of two",
        "Searching (3)",
        "trial 0: embedded:resnet10t.glyphs 3 levels, 1 frozen, 10 epochs -> complete 0.9100 in 4.2s"
        " | 1 done, 0 pruned, 0 failed | best accuracy 0.9100 (trial 0) | 1m 40s left",
        "trial 1: embedded:resnet10t.glyphs 3 levels, 1 frozen, 10 epochs -> pruned in 4.2s (proxies rank it last)"
        " | 1 done, 1 pruned, 0 failed | best accuracy 0.9100 (trial 0) | 1m 40s left",
        "trial 2: embedded:resnet10t.glyphs 3 levels, 1 frozen, 10 epochs -> failed in 4.2s (diverged)",
        "Training the recommendation",
        "study digits finished: /tmp/out",
    ]


def test_plain_output_has_no_escape_codes() -> None:
    assert "\x1b" not in show(STUDY, terminal=False)


def test_terminal_shows_state_and_gives_the_cursor_back() -> None:
    output = show(STUDY, terminal=True)
    assert "skipped resnet18.a1_in1k: cannot be fetched [offline]" in output
    assert "1 done, 1 pruned, 1 failed | best accuracy 0.9100 (trial 0) | 1m 40s left" in output
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")


def test_leaving_by_an_exception_gives_the_terminal_back() -> None:
    file = io.StringIO()
    with (
        pytest.raises(KeyboardInterrupt),
        ProgressListener(Console(file=file, force_terminal=True)) as listener,
    ):
        listener(STUDY[0])
        raise KeyboardInterrupt
    assert file.getvalue().rindex("\x1b[?25h") > file.getvalue().rindex("\x1b[?25l")


def test_events_after_the_end_do_not_start_the_display_again() -> None:
    file = io.StringIO()
    listener = ProgressListener(Console(file=file, force_terminal=True))
    listener(StudyFailed("digits", "no source"))
    listener(Notice("late"))
    assert file.getvalue().count("\x1b[?25l") == 1
    assert "late" in file.getvalue()


def test_time_left_never_goes_below_zero() -> None:
    now = [0.0]
    file = io.StringIO()
    listener = ProgressListener(Console(file=file, width=200), budget_seconds=10, clock=lambda: now[0])
    listener(STUDY[0])
    now[0] = 50.0
    listener(TrialFinished(0, "complete", 0.5, "", 1.0, best_value=0.5, best_number=0, time_left=None))
    assert "0.0s left" in file.getvalue()
