"""H-score and its shrinkage form: how much of the features' variance the target explains."""

from __future__ import annotations

import torch

from autotransfer.proxies.statistics import FeatureStatistics

_RELATIVE_CUT = 1e-10


def h_score(statistics: FeatureStatistics) -> float:
    """H-score = tr(cov(X)^+ cov(E[X|y])) (Bao et al., ICIP 2019).

    For classes: sum_c n_c (m_c - m)' (Xc'Xc)^+ (m_c - m), the pseudo-inverse dropping eigenvalues under 1e-10
    of the largest. For label sets and real values E[X|Y] is the linear regression of X on the columns Y,
    so the score is the sum of squared canonical correlations of X and Y, tr(Sxx^+ Sxy Syy^+ Syx); with
    one-hot columns that is the class formula exactly.

    Args:
        statistics: n x D features with classes, label sets or real values.

    Returns:
        In [0, min(C - 1, D, n - 1)] (or [0, min(T, D)]); higher is better; 0 for constant features.

    Complexity: the shared decomposition, then O(r T).

    Invariant to sample order, class renaming, shifts, overall scaling and rotation, and to any invertible
    linear map that keeps the features' variances within ten decades. Misleads where n is not far above D: noise
    of D features explains (C - 1) D / (n - 1), at n <= D every target is explained perfectly.
    """
    theta = statistics.spectrum.eigenvalues
    kept = theta > _RELATIVE_CUT * theta[:1].sum()
    return float((_explained(statistics)[kept] / theta[kept]).sum())


def regularized_h_score(statistics: FeatureStatistics) -> float:
    """H-score with Ledoit-Wolf shrinkage (Ibrahim, Ponomareva, Mazumder, ECML PKDD 2022).

        S = Xc'Xc / n, mu = tr(S) / D, S_a = (1 - a) S + a mu I, a = Ledoit-Wolf intensity
        score = (1 - a) tr(S_a^-1 cov(E[X|y])), the last covariance with 1 / (n - 1)

    `shrinkage` gives a. Other targets than classes as in `h_score`.

    Args:
        statistics: n x D features with classes, label sets or real values.

    Returns:
        In [0, about min(C - 1, D)]; higher is better; 0 for constant features.

    Complexity: the shared decomposition, then O(r T).

    Invariant to sample order, class renaming, rotation and overall scaling, not to scaling single features.
    Misleads less than the H-score where n < D, but a = 1 (then the score is 0) says that nothing was seen.
    """
    intensity = shrinkage(statistics)
    theta = statistics.spectrum.eigenvalues / statistics.samples
    target = intensity * theta.sum() / statistics.dimension
    damped = (1 - intensity) * theta + target
    explained = _explained(statistics) / (statistics.samples - 1)
    return float((1 - intensity) * (explained / damped).sum())


def shrinkage(statistics: FeatureStatistics) -> float:
    """Ledoit-Wolf intensity in [0, 1] (Ledoit and Wolf, Journal of Multivariate Analysis 2004).

    a = min(b, d) / d with d = |S - mu I|_F^2 and b = [sum_n |x_n|^4 / n - |S|_F^2] / n, x centred.
    """
    samples, dimension = statistics.samples, statistics.dimension
    theta = statistics.spectrum.eigenvalues / samples
    squares = float((theta**2).sum())
    spread = squares - float(theta.sum()) ** 2 / dimension
    noise = (float((statistics.row_squares**2).sum()) / samples - squares) / samples
    noise = min(max(noise, 0.0), max(spread, 0.0))
    return noise / spread if noise > 0 else 0.0


def _explained(statistics: FeatureStatistics) -> torch.Tensor:
    """[r] between-class (explained) scatter along each eigenvector: diagonal of P' (Yc'Yc)^+ P."""
    cross = statistics.spectrum.cross
    if statistics.targets.task == "classification":
        return (cross**2 / statistics.counts).sum(1)
    varying = statistics.targets.varying
    scatter = statistics.targets.scatter[varying][:, varying]
    units = scatter.diagonal().sqrt()
    inverse: torch.Tensor = torch.linalg.pinv(scatter / torch.outer(units, units), hermitian=True, rtol=_RELATIVE_CUT)
    cross = cross[:, varying] / units
    return ((cross @ inverse) * cross).sum(1)
