"""Ctrl-C: once to end in good order, twice to give up."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from autotransfer.search.events import Event, Notice


@contextmanager
def interruptible(tell: Callable[[Event], None]) -> Iterator[Callable[[], bool]]:
    """The first Ctrl-C asks the job to finish with what is known; the second one ends it."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda: True
        return

    def handle(signum: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        tell(Notice("Stopping: answering with what is known. Ctrl-C again to give up."))

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield lambda: not stop.is_set()
    finally:
        signal.signal(signal.SIGINT, previous)
