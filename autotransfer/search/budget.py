"""What a study may take: wall-clock time, trials, seconds of GPUs."""

import time
from collections.abc import Callable


class Budget:
    """Wall-clock seconds, trials, and GPU-seconds; each may be None.

    The clock is given, so that tests need not wait.
    """

    def __init__(
        self,
        seconds: float | None,
        trials: int | None,
        clock: Callable[[], float] = time.monotonic,
        *,
        gpu_seconds: float | None = None,
    ) -> None:
        self._seconds, self.trials, self._clock, self.gpu_seconds = seconds, trials, clock, gpu_seconds
        self._started = clock()
        self._gpu_spent: Callable[[], float] = self.elapsed
        self._workers = 1
        self._for_search: float | None = None

    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._started

    @property
    def wall_left(self) -> float | None:
        """Seconds of wall-clock time left, None without a limit."""
        return None if self._seconds is None else max(0.0, self._seconds - self.elapsed())

    def left(self, workers: int | None = None) -> float | None:
        """Seconds until the first limit where so many trials run at once (as many as search, where None)."""
        limits = [] if self.wall_left is None else [self.wall_left]
        if self.gpu_seconds is not None:
            limits.append(max(0.0, self.gpu_seconds - self._gpu_spent()) / (workers or self._workers))
        return min(limits) if limits else None

    def fits(self, seconds: float, workers: int | None = None) -> bool:
        """True where work of that length ends before the limit."""
        left = self.left(workers)
        return left is None or seconds <= left

    @property
    def for_search(self) -> float | None:
        """Seconds that were left when the search began; None without a limit of time."""
        return self.left() if self._for_search is None else self._for_search

    def begin_search(
        self, gpu_spent: Callable[[], float] | None = None, workers: int = 1, for_search: float | None = None
    ) -> None:
        """Note what is left for the search, once.

        Args:
            gpu_spent: seconds of GPUs that were used so far; those since the start where None.
            workers: trials that run at once, each on a GPU of its own.
            for_search: what was left when the search began, where it began in another process.
        """
        if gpu_spent is not None:
            self._gpu_spent, self._workers = gpu_spent, workers
        if self._for_search is None:
            self._for_search = self.left() if for_search is None else for_search
