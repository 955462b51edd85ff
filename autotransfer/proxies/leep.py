"""LEEP and NCE: how well the source's own classes predict the target's."""

from __future__ import annotations

import torch

_SMALLEST = 1e-300


def leep(probabilities: torch.Tensor, labels: torch.Tensor) -> float:
    """Log expected empirical prediction (Nguyen et al., ICML 2020).

        J[c, z] = sum_{n: y_n = c} P[n, z] / N,   p(c|z) = J[c, z] / sum_c J[c, z]
        LEEP = mean_n log sum_z p(y_n|z) P[n, z]

    Args:
        probabilities: [N, S] source class probabilities, rows sum to 1.
        labels: [N] target classes 0..C-1.

    Returns:
        At most 0, higher is better; the entropy of the labels, negated, where P says nothing.

    Complexity: two passes over P.

    Invariant to sample order and to renaming of target and source classes. Misleads where the target's
    classes are finer than the source's, and between sources with different class counts.
    """
    return float(expected_predictions(probabilities, labels).clamp_min(_SMALLEST).log().mean())


def expected_predictions(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[N] sum_z p(y_n|z) P[n, z] in float64: the probability that each sample's own class is predicted."""
    rows = _class_rows(labels)
    joint = torch.stack([probabilities[one].sum(0).to(torch.float64) for one in rows])
    conditional = (joint / joint.sum(0).clamp_min(_SMALLEST)).to(probabilities.dtype)
    expected = torch.empty(len(labels), dtype=torch.float64, device=labels.device)
    for one, weights in zip(rows, conditional, strict=True):
        expected[one] = (probabilities[one] @ weights).to(torch.float64)
    return expected


def nce(probabilities: torch.Tensor, labels: torch.Tensor) -> float:
    """Negative conditional entropy -H(Y|Z) with Z = argmax of P (Tran, Nguyen, Hassner, ICCV 2019).

        NCE = sum_{c,z} pi[c, z] log(pi[c, z] / pi[z]),   pi the joint frequencies of (y, z)

    Args:
        probabilities: [N, S] source class probabilities.
        labels: [N] target classes 0..C-1.

    Returns:
        In [-log C, 0], higher is better.

    Complexity: one pass over P.

    Invariant as LEEP. Misleads where samples per (class, source class) cell are few: with as many source
    classes as samples every cell looks pure and the value nears 0.
    """
    winners = probabilities.argmax(1)
    classes, sources = int(labels.max()) + 1, int(probabilities.shape[1])
    joint = torch.bincount(labels * sources + winners, minlength=classes * sources).to(torch.float64)
    joint = joint.reshape(classes, sources) / len(labels)
    marginal = joint.sum(0).expand_as(joint)
    seen = joint > 0
    return float((joint[seen] * (joint[seen] / marginal[seen]).log()).sum())


def _class_rows(labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Row numbers of each class: gathering a class at a time stays in cache, a sorted copy would not."""
    sizes = torch.bincount(labels).tolist()
    return torch.split(torch.argsort(labels, stable=True), sizes)
