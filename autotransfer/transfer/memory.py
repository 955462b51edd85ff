"""What does not fit into memory at once goes through in parts."""

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

T = TypeVar("T")

_SAYINGS = ("can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUDA out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """True for a GPU's exception, what its libraries say instead, and what the CPU's allocator says."""
    return isinstance(error, torch.OutOfMemoryError) or any(saying in str(error) for saying in _SAYINGS)


def in_batches(
    rows: npt.NDArray[np.int64], size: int, run: Callable[[npt.NDArray[np.int64]], T], smallest: int = 1
) -> Iterator[T]:
    """What `run` says of consecutive batches of `rows`; where one does not fit, of ever smaller ones.

    Raises:
        torch.OutOfMemoryError: not even a batch of `smallest` fits.
    """
    start = 0
    while start < len(rows):
        try:
            result = run(rows[start : start + size])
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            if size // 2 < smallest:
                raise torch.OutOfMemoryError(str(error)) from error
            size //= 2
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            continue
        yield result
        start += size
