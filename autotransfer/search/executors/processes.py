"""Several trials at once, each in a process of its own on this machine."""

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from autotransfer.search.events import Event, Listener, Notice
from autotransfer.search.executors.crew import Crew, Ended
from autotransfer.search.executors.job import SearchJob

_POLL_SECONDS = 0.2
_PATIENCE_SECONDS = 30.0


class Processes:
    """Runs trials in processes that are started by name, so that scripts and notebooks need no guard.

    They import what is heavy as soon as the context is entered, and wait for the job.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._workers: list[_Worker] = []
        self._messages: queue.SimpleQueue[tuple[_Worker, Event | Ended | None]] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        """Start the processes."""
        for number in range(self.jobs):
            self._start(number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the processes that are left, whatever they do."""
        for worker in self._workers:
            worker.kill()
            worker.close()
        self._workers.clear()

    def search(self, job: SearchJob, go_on: Callable[[], bool], listener: Listener) -> str:
        """Run trials until the search ends."""
        crew, stopped = Crew(listener), False
        with tempfile.TemporaryDirectory(prefix="autotransfer-") as folder:
            file = Path(folder) / "job.pickle"
            file.write_bytes(pickle.dumps(job.portable()))
            for worker in self._workers:
                worker.say(str(file))
            ends = None if job.ends is None else job.ends + _PATIENCE_SECONDS
            while self._workers:
                if not stopped and not go_on():
                    stopped, ends = True, time.time() + _PATIENCE_SECONDS
                    for worker in self._workers:
                        worker.say(None)
                if ends is not None and time.time() > ends:  # one that hangs costs its trial, not the answer
                    listener(Notice(f"{len(self._workers)} workers did not end in time, and were killed"))
                    break
                try:
                    worker, message = self._messages.get(timeout=_POLL_SECONDS)
                except queue.Empty:
                    continue
                if message is not None:
                    worker.ended = worker.ended or isinstance(message, Ended)
                    crew.take(message)
                    continue
                self._workers.remove(worker)
                code = worker.close()
                if not (stopped or worker.ended) and crew.starts_again(_how(code)):
                    self._start(worker.number).say(str(file))
        return crew.conclude()

    def _start(self, number: int) -> "_Worker":
        import torch

        worker = _Worker(number, max(1, torch.get_num_threads() // self.jobs), self._messages)
        self._workers.append(worker)
        return worker


class _Worker:
    """One process: it is told where the job lies, and tells events."""

    def __init__(
        self, number: int, threads: int, messages: "queue.SimpleQueue[tuple[_Worker, Event | Ended | None]]"
    ) -> None:
        self.number, self.ended = number, False
        self._messages = messages
        self._process: subprocess.Popen[bytes] = subprocess.Popen(
            [sys.executable, "-m", "autotransfer.search.executors.worker", str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE", **_python_path()},
            start_new_session=True,  # Ctrl-C is for the one that asks them to stop
        )
        threading.Thread(target=self._listen, daemon=True, name=f"worker {number}").start()

    def say(self, message: str | None) -> None:
        """The file of the job, or None: stop."""
        stream: Any = self._process.stdin
        with contextlib.suppress(OSError):  # one that is gone is noticed where it is listened to
            pickle.dump(message, stream)
            stream.flush()

    def close(self) -> int:
        """End the process; its exit code."""
        stream: Any = self._process.stdin
        with contextlib.suppress(OSError):
            stream.close()
        try:
            return self._process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def _listen(self) -> None:
        stream: IO[bytes] | Any = self._process.stdout
        while True:
            try:
                self._messages.put((self, pickle.load(stream)))
            except Exception:  # the end of the stream, or half a message of one that was killed
                break
        stream.close()
        self._messages.put((self, None))


def _how(code: int) -> str:
    """How a process ended."""
    if code >= 0:
        return f"process ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"process was killed by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")


def _python_path() -> dict[str, str]:
    """What this process imports from, the worker finds too."""
    return {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
