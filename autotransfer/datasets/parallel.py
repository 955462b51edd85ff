"""Threads over many small files: results in order, a bounded number of them in flight.

Pillow and hashlib release the GIL while they decode and hash, so threads are enough and nothing is pickled.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_workers() -> int:
    """CPU cores this process may use, at most 32."""
    if hasattr(os, "sched_getaffinity"):
        return min(32, len(os.sched_getaffinity(0)))
    return min(32, os.cpu_count() or 1)


def map_in_order(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int | None = None,
    batch_size: int = 16,
) -> Iterator[Result]:
    """Yield `function(item)` for every item, in order, computed by `workers` threads.

    At most `4 * workers * batch_size` results wait to be taken, so memory does not grow with the number of
    items. The first exception is raised where its result would have come.
    """
    workers = workers or available_workers()

    def run(start: int) -> list[Result]:
        return [function(item) for item in items[start : start + batch_size]]

    with ThreadPoolExecutor(workers, thread_name_prefix="autotransfer-images") as pool:
        pending: deque[Future[list[Result]]] = deque()
        try:
            for start in range(0, len(items), batch_size):
                pending.append(pool.submit(run, start))
                if len(pending) >= 4 * workers:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
