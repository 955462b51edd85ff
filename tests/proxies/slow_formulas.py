"""The proxies once more, as plain NumPy loops over the published formulas, in float64.

Nothing here is shared with the package: explicit inverses, one class at a time, refits for leave-one-out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.special
import scipy.stats
from numpy.typing import NDArray

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


def one_hot(y: Labels) -> Array:
    return np.eye(int(y.max()) + 1)[y]


def logme_column(X: Array, t: Array) -> float:
    n, dimension = X.shape
    U, s, _ = np.linalg.svd(X, full_matrices=False)
    sigma, x = s**2, U.T @ t
    rest = max(float(t @ t - x @ x), 0.0)
    alpha = beta = 1.0
    for _ in range(11):
        lam = alpha / beta
        gamma = np.sum(sigma / (sigma + lam))
        m2 = np.sum(sigma * x**2 / (sigma + lam) ** 2)
        r2 = np.sum(x**2 / (1 + sigma / lam) ** 2) + rest
        alpha, beta = gamma / (m2 + 1e-5), (n - gamma) / (r2 + 1e-5)
        padded = np.concatenate([sigma, np.zeros(dimension - len(sigma))])
        evidence = 0.5 * (
            dimension * np.log(alpha)
            + n * np.log(beta)
            - np.sum(np.log(alpha + beta * padded))
            - beta * r2
            - alpha * m2
            - n * np.log(2 * np.pi)
        )
        if abs(alpha / beta - lam) / lam <= 1e-3:
            break
    return float(evidence / n)


def logme(X: Array, Y: Array) -> float:
    return float(np.mean([logme_column(X, column) for column in Y.T]))


def class_mean_covariance(X: Array, y: Labels) -> Array:
    expected = np.stack([X[y == label].mean(0) for label in y])
    return np.atleast_2d(np.cov(expected, rowvar=False))


def h_score(X: Array, y: Labels) -> float:
    covariance = np.atleast_2d(np.cov(X, rowvar=False))
    return float(np.trace(np.linalg.pinv(covariance, rcond=1e-10, hermitian=True) @ class_mean_covariance(X, y)))


def canonical_h_score(X: Array, Y: Array) -> float:
    """Sum of squared canonical correlations through QR and singular values."""
    qx, qy = np.linalg.qr(X - X.mean(0))[0], np.linalg.qr(Y - Y.mean(0))[0]
    return float((np.linalg.svd(qx.T @ qy)[1] ** 2).sum())


def regularized_h_score(X: Array, y: Labels) -> float:
    from sklearn.covariance import ledoit_wolf

    covariance, a = ledoit_wolf(X)
    return float((1 - a) * np.trace(np.linalg.inv(covariance) @ class_mean_covariance(X, y)))


def transrate(X: Array, y: Labels) -> float:
    Z = X - X.mean(0)

    def rate(A: Array) -> float:
        return 0.5 * float(np.linalg.slogdet(np.eye(A.shape[1]) + A.T @ A / (len(A) * 1e-4))[1])

    return rate(Z) - float(np.mean([rate(Z[y == c]) for c in np.unique(y)]))


def principal_components(X: Array, k: int) -> Array:
    Z = X - X.mean(0)
    U, s, _ = np.linalg.svd(Z, full_matrices=False)
    return (U * s)[:, :k]


def gbc(X: Array, y: Labels, spherical: bool) -> float:
    Z = principal_components(X, 64)
    means = [Z[y == c].mean(0) for c in np.unique(y)]
    variances = [np.maximum(Z[y == c].var(0), 1e-4) for c in np.unique(y)]
    if spherical:
        variances = [np.full(1, v.mean()) for v in variances]
    total = 0.0
    for i, (mi, vi) in enumerate(zip(means, variances, strict=True)):
        for j, (mj, vj) in enumerate(zip(means, variances, strict=True)):
            if i != j:
                v = (vi + vj) / 2
                total -= np.exp(-np.sum((mi - mj) ** 2 / (8 * v)) - 0.5 * np.sum(np.log(v / np.sqrt(vi * vj))))
    return float(total)


def sfda(X: Array, y: Labels) -> float:
    classes, n, dimension = np.unique(y), *X.shape
    prior = np.array([(y == c).mean() for c in classes])

    def within(A: Array) -> Array:
        return sum(p * np.cov(A[y == c], rowvar=False, ddof=0) for p, c in zip(prior, classes, strict=True))

    def posterior(A: Array, s: float) -> Array:
        W = within(A)
        inverse = np.linalg.inv((1 - s) * W + s * np.trace(W) / dimension * np.eye(dimension))
        M = np.stack([A[y == c].mean(0) for c in classes])
        return scipy.special.softmax(A @ inverse @ M.T - 0.5 * np.diag(M @ inverse @ M.T) + np.log(prior), axis=1)

    W = within(X)
    u = v = W @ np.ones(dimension)
    for _ in range(3):
        u = W @ v / np.linalg.norm(W @ v)
        v = W @ u / np.linalg.norm(W @ u)
    s = max(float(np.exp(-5 * v @ W @ u)), 1e-10)
    Q = scipy.special.softmax(posterior(X, s), axis=1)
    means = np.stack([X[y == c].mean(0) for c in classes])
    mixed = np.empty_like(X)
    for i in range(n):
        q = Q[i, y[i]]
        mixed[i] = q * X[i] + (1 - q) * np.delete(means, y[i], axis=0).mean(0)
    return float(posterior(mixed, s)[np.arange(n), y].mean())


def ncti_components(X: Array, y: Labels) -> tuple[float, float, float]:
    """Through scikit-learn's discriminant analysis, as published (few samples: covariances with 1 / n)."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    Z = principal_components(X, 64)
    shrinkage = max(float(np.exp(-Z.var(0, ddof=1)[:32].sum())), 1e-10)
    model = LinearDiscriminantAnalysis(solver="eigen", shrinkage=shrinkage).fit(Z, y)
    P = model.predict_proba(Z)
    projected = model.transform(Z)
    seli = np.linalg.norm(projected - projected.mean(0), "nuc")
    variability = np.log(sum(np.linalg.norm(P[y == c], "nuc") for c in np.unique(y)))
    return float(seli), float(P[np.arange(len(y)), y].mean()), float(variability)


def parc(X: Array, y: Labels) -> float:
    Z = (X - X.mean(0)) / X.std(0)
    upper = np.triu_indices(len(y), 1)
    features = (1 - np.corrcoef(Z))[upper]
    labels = (1 - np.corrcoef(one_hot(y)))[upper]
    return 100 * float(scipy.stats.spearmanr(features.round(12), labels.round(12)).statistic)


def lda(X: Array, y: Labels) -> float:
    M = np.stack([X[y == c].mean(0) for c in np.unique(y)])
    scores = X @ M.T - 0.5 * (M**2).sum(1) + np.log(np.bincount(y) / len(y))
    return float(scipy.special.softmax(scores, axis=1)[np.arange(len(y)), y].mean())


def energy(X: Array, y: Labels) -> float:
    values = np.sort(scipy.special.logsumexp(X, axis=1))
    return float(values[: max(1, int(5 * len(X) / 1000))].mean())


def knn(X: Array, y: Labels, k: int = 5) -> float:
    correct = 0
    for i, row in enumerate(X):
        distances = ((X - row) ** 2).sum(1)
        distances[i] = np.inf
        nearest = y[np.argsort(distances, kind="stable")[:k]]
        votes = [int((nearest == label).sum()) for label in nearest]
        correct += int(nearest[int(np.argmax(votes))] == y[i])
    return correct / len(y)


def ridge_left_out(X: Array, Y: Array, penalty: float) -> Array:
    """Predictions for each sample of a ridge regression refitted without it."""
    predictions = np.empty_like(Y)
    for i in range(len(X)):
        kept = np.arange(len(X)) != i
        # the intercept and the penalty of the full problem: centre on the remaining rows
        A, B = X[kept], Y[kept]
        Ac, Bc = A - A.mean(0), B - B.mean(0)
        W = np.linalg.solve(Ac.T @ Ac + penalty * np.eye(X.shape[1]), Ac.T @ Bc)
        predictions[i] = B.mean(0) + (X[i] - A.mean(0)) @ W
    return predictions


def ridge_loo(X: Array, y: Labels, penalty: float) -> float:
    return float((ridge_left_out(X, one_hot(y), penalty).argmax(1) == y).mean())


def variance_ratio(X: Array, y: Labels) -> float:
    within = sum(((X[y == c] - X[y == c].mean(0)) ** 2).sum() for c in np.unique(y))
    between = sum((y == c).sum() * ((X[y == c].mean(0) - X.mean(0)) ** 2).sum() for c in np.unique(y))
    return float(between / within)


def leep(P: Array, y: Labels) -> float:
    joint = np.zeros((int(y.max()) + 1, P.shape[1]))
    for row, label in zip(P, y, strict=True):
        joint[label] += row / len(y)
    conditional = joint / joint.sum(0)
    return float(np.mean([np.log(conditional[label] @ row) for row, label in zip(P, y, strict=True)]))


def nce(P: Array, y: Labels) -> float:
    z, total = P.argmax(1), 0.0
    for source in np.unique(z):
        for label in np.unique(y[z == source]):
            cell = np.mean((z == source) & (y == label))
            total += cell * np.log(cell / np.mean(z == source))
    return float(total)


OF_FEATURES: dict[str, Callable[[Array, Labels], float]] = {
    "logme": lambda X, y: logme(X, one_hot(y)),
    "h_score": h_score,
    "regularized_h_score": regularized_h_score,
    "transrate": transrate,
    "gbc": lambda X, y: gbc(X, y, spherical=False),
    "sfda": sfda,
    "parc": parc,
    "lda": lda,
    "energy": energy,
    "knn": knn,
    "variance_ratio": variance_ratio,
}
