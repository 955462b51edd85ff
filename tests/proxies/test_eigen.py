"""Both decompositions give NumPy's eigenvalues, orthonormal vectors and the matrix back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from autotransfer.proxies.eigen import DenseEigen, Eigen, TridiagonalEigen, decompose


@pytest.mark.parametrize("decomposition", [DenseEigen, TridiagonalEigen])
@given(size=st.integers(1, 40), rank=st.integers(1, 40), decades=st.floats(0, 5), seed=st.integers(0, 99))
def test_values_vectors_and_projections(
    decomposition: Callable[[torch.Tensor], Eigen], size: int, rank: int, decades: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((min(size, rank), size)) * np.logspace(0, -decades, size)
    matrix = rows.T @ rows
    largest = np.linalg.norm(matrix, 2)
    eigen = decomposition(torch.from_numpy(matrix))
    vectors = eigen.vectors(size).numpy()
    np.testing.assert_allclose(eigen.values.numpy(), np.linalg.eigvalsh(matrix)[::-1], atol=1e-13 * largest)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(size), atol=1e-12)
    np.testing.assert_allclose(vectors * eigen.values.numpy() @ vectors.T, matrix, atol=1e-12 * largest)
    columns = generator.standard_normal((size, 3))
    np.testing.assert_allclose(eigen.project(torch.from_numpy(columns)).numpy(), vectors.T @ columns, atol=1e-12)
    few = max(1, size // 2)
    np.testing.assert_allclose(eigen.vectors(few).numpy(), vectors[:, :few], atol=1e-12)


def test_a_zero_matrix_has_zero_eigenvalues() -> None:
    assert decompose(torch.zeros(4, 4, dtype=torch.float64)).values.tolist() == [0.0] * 4
