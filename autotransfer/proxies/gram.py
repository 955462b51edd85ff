"""Symmetric products in float64 at about half the cost of a general product.

A Gram matrix is symmetric, so only the blocks on and above the diagonal are multiplied. float64 is not a
luxury: a float32 Gram matrix of float32 features already loses every eigenvalue under 1e-7 of the largest,
and pooled features of real networks have many of those.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

CHUNK_ROWS = 512
"""Rows widened to float64 at a time: the extra memory of a pass is CHUNK_ROWS x D x 8 bytes."""

_PANEL_COLUMNS = 192


def symmetric_product(blocks: Iterable[torch.Tensor], dimension: int, device: torch.device) -> torch.Tensor:
    """Sum of B'B over row blocks B [rows, dimension], as a full symmetric float64 matrix.

    Args:
        blocks: Row blocks, float64.
        dimension: Number of columns of every block.
        device: Where the result lives.
    """
    return mirror_upper(upper_product(blocks, dimension, device))


def upper_product(blocks: Iterable[torch.Tensor], dimension: int, device: torch.device) -> torch.Tensor:
    """As `symmetric_product`, but what lies under the diagonal is undefined: for routines that read one triangle."""
    total = torch.zeros(dimension, dimension, dtype=torch.float64, device=device)
    for block in blocks:
        for start in range(0, dimension, _PANEL_COLUMNS):
            stop = min(start + _PANEL_COLUMNS, dimension)
            total[start:stop, start:].addmm_(block[:, start:stop].T, block[:, start:])
    return total


def mirror_upper(matrix: torch.Tensor) -> torch.Tensor:
    """Copy the upper triangle of a square matrix onto the lower one, in place."""
    for start in range(0, matrix.shape[0], _PANEL_COLUMNS):
        stop = min(start + _PANEL_COLUMNS, matrix.shape[0])
        corner = matrix[start:stop, start:stop]
        corner.copy_(torch.triu(corner) + torch.triu(corner, 1).T)
        matrix[stop:, start:stop] = matrix[start:stop, stop:].T
    return matrix
