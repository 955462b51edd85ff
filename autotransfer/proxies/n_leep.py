"""N-LEEP: LEEP with a Gaussian mixture of the features in place of the source's classes."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from autotransfer.proxies.leep import expected_predictions
from autotransfer.proxies.statistics import FeatureStatistics

_VARIANCE_KEPT = 0.8
_COMPONENTS_PER_CLASS = 5
_MOST_COVARIANCE_ENTRIES = 50_000_000
_REGULARISATIONS = (1e-6, 1e-3, 1e-1)
_SEED = 0


def n_leep(statistics: FeatureStatistics) -> float:
    """N-LEEP (Li, Jia, Yang, Su, Wang, Zhang, CVPR 2021) without the logarithm.

    Principal components holding 80 % of the variance; a Gaussian mixture of 5 C components (at most n / 2)
    fitted to them; its posterior p(z|x) takes the place of source class probabilities:

        p(c|z) as in LEEP,   N-LEEP = mean_n sum_z p(y_n|z) p(z|x_n)

    The mean of probabilities, not of their logarithms, is what the public comparisons report. Covariances are
    full; diagonal where full ones would exceed 400 MB; regularised step by step where a component collapses.

    Args:
        statistics: n x D features with classes.

    Returns:
        In (0, 1]; higher is better; sum_c (n_c / n)^2 for constant features.

    Complexity: expectation-maximisation, n 5C d^2 a step, on the host by scikit-learn: slow for many classes.

    Invariant to class renaming; stochastic otherwise (seed fixed, start depends on the order of samples
    within classes). Misleads where components approach samples in number.
    """
    rows = _principal_rows(statistics)
    components = max(1, min(_COMPONENTS_PER_CLASS * statistics.classes, statistics.samples // 2))
    one_component = np.ones((statistics.samples, 1))
    memberships = _mixture_memberships(rows, components) if rows.shape[1] else one_component
    posterior = torch.from_numpy(memberships).to(statistics.device)
    return float(expected_predictions(posterior, statistics.labels).mean())


def _principal_rows(statistics: FeatureStatistics) -> np.ndarray:
    """[n, d] scores on the components that hold 80 % of the variance, divided by their overall deviation."""
    theta = statistics.spectrum.eigenvalues
    if not len(theta):
        return np.empty((statistics.samples, 0))
    held = torch.cumsum(theta, 0) / theta.sum()
    width = min(int((held <= _VARIANCE_KEPT).sum()) + 1, len(theta))
    return np.asarray(statistics.principal_components(width).cpu().numpy())


def _mixture_memberships(rows: np.ndarray, components: int) -> np.ndarray:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    full = components * rows.shape[1] ** 2 <= _MOST_COVARIANCE_ENTRIES
    scale = float(rows.var(axis=0).mean())
    for regularisation in _REGULARISATIONS:
        mixture = GaussianMixture(
            components,
            covariance_type="full" if full else "diag",
            reg_covar=regularisation,
            random_state=_SEED,
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                return np.asarray(mixture.fit(rows / np.sqrt(scale)).predict_proba(rows / np.sqrt(scale)))
        except ValueError:  # a component collapsed; the next regularisation is larger
            continue
    return np.full((len(rows), 1), 1.0)
