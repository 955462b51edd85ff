"""Cross-validated logistic regression: the linear probe itself, and the slowest proxy."""

from __future__ import annotations

import warnings

import numpy as np

from autotransfer.errors import ProxyError
from autotransfer.proxies.statistics import FeatureStatistics

_FOLDS = 5
_SEED = 0
_MOST_STEPS = 200


def logistic_cv(statistics: FeatureStatistics) -> float:
    """Cross-validated accuracy of multinomial logistic regression (Cox, JRSS B 1958), L2, C = 1.

    min(5, smallest class) stratified folds, shuffled with seed 0 in class order; classes of one sample join
    the folds as they come (two folds then). Features are standardised on each training part.

    Args:
        statistics: n x D features with classes.

    Returns:
        Accuracy in [0, 1]; higher is better.

    Raises:
        ProxyError: Fewer than four samples, or no class with two.

    Complexity: up to 200 L-BFGS steps of n D C for every fold: minutes at n = 10,000, D = 2,048. Computed on
    the host by scikit-learn.

    Invariant to scaling of single features; to sample order and class renaming up to the folds, which follow both.
    Misleads least, being held-out accuracy of the very probe; its standard error is that of a share.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if statistics.samples < 4:
        raise ProxyError(f"logistic_cv needs at least 4 samples but got {statistics.samples}.")
    if float(statistics.counts.max()) < 2:
        raise ProxyError("logistic_cv needs a class with at least 2 samples to cross-validate.")
    features, labels = statistics.features.cpu().numpy(), statistics.labels.cpu().numpy()
    folds = int(max(2, min(_FOLDS, np.bincount(labels).min())))
    correct = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        for train, test in StratifiedKFold(folds, shuffle=True, random_state=_SEED).split(features, labels):
            if len(np.unique(labels[train])) < 2:
                correct += int((labels[test] == labels[train][0]).sum())
                continue
            model = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=_MOST_STEPS))
            correct += int((model.fit(features[train], labels[train]).predict(features[test]) == labels[test]).sum())
    return correct / statistics.samples
