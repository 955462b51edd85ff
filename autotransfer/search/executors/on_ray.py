"""Trials on a Ray cluster: each worker holds one GPU, or a share of the CPUs, for one trial at a time."""

import importlib.util
import os
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from autotransfer.errors import AutotransferError, StudyError
from autotransfer.search.events import Listener, Notice
from autotransfer.search.executors.crew import Crew, Ended
from autotransfer.search.executors.job import SearchJob

_POLL_SECONDS = 0.2
_PATIENCE_SECONDS = 30.0
_CONNECT_SECONDS = 5.0
_CPUS_OF_A_TRIAL = 4
_MESSAGES_AT_ONCE = 1000


class OnRay:
    """Runs trials in Ray actors.

    Nodes must see the images, and the study's storage: a journal file in a folder that all of them share, or a
    database.

    Raises:
        StudyError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, jobs: int | None, address: str | None) -> None:
        if importlib.util.find_spec("ray") is None:
            raise StudyError("--executor ray needs Ray: pip install 'autotransfer[ray]'.")
        import ray

        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        self._started = not ray.is_initialized()
        if self._started:
            try:
                _check_reachable(address)
                ray.init(address=address, include_dashboard=None if address else False, log_to_driver=False)
            except (OSError, RuntimeError, ValueError) as error:
                raise StudyError(
                    f"no Ray cluster can be reached at {address or 'this machine'}: {str(error).splitlines()[0]} "
                    "Start one with `ray start --head`, or leave --address out for one on this machine."
                ) from error
        resources: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        self._gpus, self._cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        self._most_cpus = max(1, int(max((n["Resources"].get("CPU", 0) for n in nodes if n["Alive"]), default=1)))
        self.jobs = jobs or self._gpus or max(1, self._cpus // _CPUS_OF_A_TRIAL)

    def __enter__(self) -> Self:
        """The cluster is there already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the cluster, if it was joined for this search."""
        import ray

        if self._started:
            ray.shutdown()

    def search(self, job: SearchJob, go_on: Callable[[], bool], listener: Listener) -> str:
        """Run trials until the search ends."""
        import ray
        from ray.exceptions import RayError
        from ray.util.queue import Queue
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        crew, stopped = Crew(listener), False
        if job.workshop.device.type == "cuda" and not self._gpus:
            raise StudyError("this machine trains on a GPU, but the Ray cluster has none: give --device cpu.")
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        events: Any = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        ends = None if job.ends is None else job.ends + _PATIENCE_SECONDS
        shared, actor = ray.put(job.portable()), self._actor_class(job)
        running: dict[Any, Any] = {}

        def start() -> None:
            worker = actor.remote()
            running[worker.run.remote(shared, events)] = worker

        def pass_on() -> None:
            while size := events.size():
                for message in events.get_nowait_batch(min(size, _MESSAGES_AT_ONCE)):
                    crew.take(message)

        try:
            for _ in range(self.jobs):
                start()
            while running:
                if not stopped and not go_on():
                    stopped, ends = True, time.time() + _PATIENCE_SECONDS
                    for worker in running.values():
                        worker.stop.remote()
                if ends is not None and time.time() > ends:  # one that hangs costs its trial, not the answer
                    listener(Notice(f"{len(running)} workers did not end in time, and were killed"))
                    break
                done, _ = ray.wait(list(running), timeout=_POLL_SECONDS)
                pass_on()
                for reference in done:
                    running.pop(reference)
                    try:
                        crew.take(ray.get(reference))
                    except RayError as error:
                        if not stopped and crew.starts_again(f"on Ray died ({_first_line(error)})"):
                            start()
            pass_on()
        finally:
            for worker in running.values():
                ray.kill(worker)
            events.shutdown()
        return crew.conclude()

    def _actor_class(self, job: SearchJob) -> Any:
        import ray

        threads = max(1, self._cpus // self.jobs)
        on_gpu = job.workshop.device.type == "cuda"
        cpus = 1 if on_gpu else min(threads, self._cpus / self.jobs, self._most_cpus)
        remote: Any = ray.remote
        # Asked to stop while it works: two threads.
        return remote(num_cpus=cpus, num_gpus=int(on_gpu), max_concurrency=2, max_restarts=0)(RayWorker)


class RayWorker:
    """One worker on some node."""

    def __init__(self) -> None:
        self._stop = threading.Event()

    def run(self, job: SearchJob, events: Any) -> Ended:
        """Take part in the search until it ends."""
        try:
            return Ended(reason=job.run(lambda: not self._stop.is_set(), events.put))
        except AutotransferError as error:
            return Ended(error=str(error))

    def stop(self) -> None:
        """End the trial and the search at the next batch."""
        self._stop.set()


def _check_reachable(address: str | None) -> None:
    """Connect once, quickly: Ray itself tries for minutes before it gives up.

    Raises:
        OSError: nothing listens there.
    """
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
