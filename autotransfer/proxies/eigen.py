"""Eigendecomposition of a symmetric matrix in which vectors cost only what is asked of them.

LogME, the H-scores and the generalised cross-validation of ridge need the eigenvalues and the products V'B with a
few columns B, never V itself; the principal components need the leading columns of V. On the CPU the matrix is
reduced to tridiagonal form, A = Q T Q' with T = Z diag(w) Z', and Q stays the product of reflectors that LAPACK
makes of it: V'B = Z'(Q'B) and V[:, :k] = Q Z[:, :k]. At 2,048 columns that takes about half the time of the full
decomposition, whose larger half is Q Z. Elsewhere (CUDA) the full decomposition is the faster one.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from scipy.linalg import lapack

from autotransfer.errors import ProxyError

_LAPACK_BLOCK = 64


class Eigen(Protocol):
    """Eigenvalues, descending, and products with the eigenvectors V [m, m]."""

    values: torch.Tensor

    def project(self, columns: torch.Tensor) -> torch.Tensor:
        """V' columns, [m, k]."""
        ...

    def vectors(self, count: int) -> torch.Tensor:
        """The leading eigenvectors, [m, count]."""
        ...


def decompose(matrix: torch.Tensor) -> Eigen:
    """Decompose a symmetric float64 matrix [m, m] on the device where it lies, in O(m^3)."""
    return TridiagonalEigen(matrix) if matrix.device.type == "cpu" else DenseEigen(matrix)


class DenseEigen:
    """The full decomposition."""

    def __init__(self, matrix: torch.Tensor) -> None:
        ascending: torch.Tensor
        vectors: torch.Tensor
        ascending, vectors = torch.linalg.eigh(matrix)
        self.values = ascending.flip(0)
        self._vectors: torch.Tensor = vectors.flip(1)

    def project(self, columns: torch.Tensor) -> torch.Tensor:
        """V' columns, [m, k]."""
        return self._vectors.T @ columns

    def vectors(self, count: int) -> torch.Tensor:
        """The leading eigenvectors, [m, count]."""
        return self._vectors[:, :count]


class TridiagonalEigen:
    """The decomposition through a tridiagonal matrix, its orthogonal factor kept as reflectors."""

    def __init__(self, matrix: torch.Tensor) -> None:
        size = len(matrix)
        self._reflectors, diagonal, off_diagonal, self._scales, failed = lapack.dsytrd(
            matrix.numpy().T, lower=1, lwork=size * _LAPACK_BLOCK
        )
        if not failed:
            # the wrapper wants one off-diagonal value even where there is none
            ascending, inner, failed = lapack.dstevd(diagonal, off_diagonal if size > 1 else np.zeros(1))
        if failed:
            raise ProxyError(f"the decomposition of a {size} x {size} matrix failed (LAPACK info {failed}).")
        self.values = torch.from_numpy(ascending[::-1].copy())
        self._inner = torch.from_numpy(inner).flip(1)

    def project(self, columns: torch.Tensor) -> torch.Tensor:
        """V' columns, [m, k]."""
        return self._inner.T @ self._reflect(columns, transposed=True)

    def vectors(self, count: int) -> torch.Tensor:
        """The leading eigenvectors, [m, count]."""
        return self._reflect(self._inner[:, :count], transposed=False)

    def _reflect(self, columns: torch.Tensor, *, transposed: bool) -> torch.Tensor:
        """Q columns, or Q' columns: the first row is untouched, the others meet the reflectors."""
        result = np.array(columns.numpy(), order="F")
        if len(result) > 2 and result.shape[1]:
            reflected, _, failed = lapack.dormqr(
                "L",
                "T" if transposed else "N",
                self._reflectors[1:, :-1],
                self._scales,
                result[1:],
                lwork=max(result.shape) * _LAPACK_BLOCK,
            )
            if failed:
                raise ProxyError(f"a product with eigenvectors failed (LAPACK info {failed}).")
            result[1:] = reflected
        return torch.from_numpy(result)
