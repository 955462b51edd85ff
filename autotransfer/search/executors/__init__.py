"""Where trials run: in this process, in several processes of this machine, or on a Ray cluster.

An executor starts workers that all run the same loop (`run_trials`) on the same study; the study's storage is
all that they share. One that dies is started again, and its trial retried.
"""

from collections.abc import Callable
from types import TracebackType
from typing import Literal, Protocol, Self

from autotransfer.errors import StudyError
from autotransfer.search.events import Listener
from autotransfer.search.executors.job import SearchJob, trial_seconds

ExecutorName = Literal["local", "ray"]

__all__ = ["Executor", "ExecutorName", "SearchJob", "make_executor", "trial_seconds"]


class Executor(Protocol):
    """Runs a search.

    Attributes:
        jobs: trials that run at once.
    """

    jobs: int

    def __enter__(self) -> Self:
        """Get workers ready while other work goes on."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End all workers."""

    def search(self, job: SearchJob, go_on: Callable[[], bool], listener: Listener) -> str:
        """Run trials until the search ends; why it ended early, or an empty string.

        Args:
            job: the search.
            go_on: False where the user has stopped it.
            listener: told of the events of all workers, on this thread.

        Raises:
            StudyError: no worker can work.
        """


def make_executor(name: str = "local", *, jobs: int | None = None, address: str | None = None) -> Executor:
    """The executor of that name.

    Args:
        name: `local` or `ray`.
        jobs: trials that run at once; 1 where None (with Ray: one for each GPU, or for each four CPUs).
        address: of the Ray cluster; one on this machine is started where None.

    Raises:
        StudyError: there is no such executor, or what it needs is not installed or not there.
    """
    if jobs is not None and jobs < 1:
        raise StudyError(f"--jobs must be 1 or more, but is {jobs}.")
    if name == "ray":
        from autotransfer.search.executors.on_ray import OnRay

        return OnRay(jobs, address)
    if name != "local":
        raise StudyError(f"there is no executor '{name}'. Choose one of: local, ray.")
    if address is not None:
        raise StudyError("--address is that of a Ray cluster; give --executor ray too.")
    if jobs is None or jobs == 1:
        from autotransfer.search.executors.in_process import InProcess

        return InProcess()
    from autotransfer.search.executors.processes import Processes

    return Processes(jobs)
