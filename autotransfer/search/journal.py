"""The journal file that holds a study by default, safe against processes that are killed while they write."""

import os
from pathlib import Path

from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock


def open_journal(path: Path) -> JournalStorage:
    """The storage in a journal file; folder and file are made where there are none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path), lock_obj=JournalLock(path)))


class JournalLock(JournalFileOpenLock):
    """A lock that the system takes back when its holder dies; Optuna's own then stop all others for 30 s.

    Whoever gets it first cuts off the half of a line that a dead writer may have left: all readers would fail on
    the line after it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path, self._lock = path, FileLock(f"{path}.lock")

    def acquire(self) -> bool:
        """Wait for the lock."""
        self._lock.acquire()
        _cut_half_line(self._path)
        return True

    def release(self) -> None:
        """Give it back."""
        self._lock.release()


def _cut_half_line(path: Path) -> None:
    with path.open("rb+") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return
        file.seek(size - 1)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
