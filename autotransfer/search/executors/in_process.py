"""One trial at a time, in this process."""

from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Self

from autotransfer.search.events import Listener
from autotransfer.search.executors.job import SearchJob


class InProcess:
    """Runs trials on the thread that asks for it."""

    jobs = 1

    def __enter__(self) -> Self:
        """Nothing to get ready."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing to end."""

    def search(self, job: SearchJob, go_on: Callable[[], bool], listener: Listener) -> str:
        """Run trials until the search ends."""
        return replace(job, workshop=replace(job.workshop, go_on=go_on)).run(go_on, listener)
