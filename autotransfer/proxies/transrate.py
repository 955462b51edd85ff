"""TransRate: coding rate of the features minus that of the features within classes."""

from __future__ import annotations

import torch

from autotransfer.proxies.gram import upper_product
from autotransfer.proxies.statistics import FeatureStatistics

_DISTORTION = 1e-4
_LARGEST_FOR_CHOLESKY = 1e8
_RANK_TOLERANCE = 1e-13


def transrate(statistics: FeatureStatistics) -> float:
    """TransRate (Huang, Huang, Rong, Yang, Wei, ICML 2022), as listed in the paper, distortion eps = 1e-4.

        Z = X - m,   R(A) = 1/2 log|I + A'A / (rows(A) eps)|
        TransRate = R(Z) - 1/C sum_c R(Z_c)

    Z_c are the rows of class c of Z, not centred again; classes weigh the same.

    Args:
        statistics: n x D features with classes.

    Returns:
        A finite float, unbounded above; higher is better; 0 for constant features.

    Complexity: R(Z) is read from the shared eigenvalues; the class terms take sum_c n_c D min(n_c, D) and
    are determinants of the smaller side, by Cholesky.

    Invariant to sample order, class renaming and rotation; grows with scale and with width, so compare it on
    features reduced to one width and scale (`FeatureStatistics.reduced`). Misleads where n < D:
    then it measures the sample count.
    """
    whole = 0.5 * torch.log1p(statistics.spectrum.eigenvalues / (statistics.samples * _DISTORTION)).sum()
    classes = [_rate(_class_rows(statistics, rows)) for rows in statistics.class_slices]
    return float(whole - torch.stack(classes).mean())


def _class_rows(statistics: FeatureStatistics, rows: slice) -> torch.Tensor:
    return statistics.rows(rows).to(torch.float64) - statistics.mean


def _rate(rows: torch.Tensor) -> torch.Tensor:
    """R of [n_c, D] rows through the smaller of the two Gram matrices."""
    samples, dimension = rows.shape
    smaller = rows.T if samples < dimension else rows
    upper = upper_product([smaller], smaller.shape[1], rows.device)
    upper.div_(samples * _DISTORTION)
    if float(upper.trace()) > _LARGEST_FOR_CHOLESKY:  # beside such values the 1 of I + A'A loses its digits
        values = torch.linalg.eigvalsh(upper, UPLO="U")
        return 0.5 * torch.log1p(values[values > _RANK_TOLERANCE * values[-1]]).sum()
    upper.diagonal().add_(1)
    factor: torch.Tensor = torch.linalg.cholesky(upper, upper=True)
    return factor.diagonal().log().sum()
