"""Drawing splits from a pool of training images, one by one or in whole groups.

An image's place in the draw is a hash of its content and the seed, not a random number handed out in order.
So the same images are split the same way however the files are named, moved or listed, and exact copies lie
next to each other. Of a group, the least of its images' hashes counts.

scikit-learn's `StratifiedShuffleSplit` and `StratifiedGroupKFold` depend on the order of rows and may leave a
small class out of a split; here every class is in every split, or the error says which cannot be.
"""

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from autotransfer.datasets.problems import listed
from autotransfer.errors import DatasetError

_ATTEMPTS = 8

Counts = npt.NDArray[np.int64]


def draw_images(pool: pd.DataFrame, fractions: Mapping[str, float], seed: int) -> "pd.Series[str]":
    """Draw the splits of `fractions` one after the other; what stays is "train".

    Of each class, the nearest whole number to the fraction of its images in the pool is drawn: at least one,
    and never so many that train or a later split gets none.

    Args:
        pool: Columns `image`, `label` and `content_hash`; of each class one image more than splits.
        fractions: Split -> fraction of the pool.
        seed: Another seed, another draw.
    """
    places = [_place(content, seed) for content in pool["content_hash"]]
    in_order = pool.assign(place=places).sort_values(["place", "image"])
    drawn: Counts = np.zeros(len(pool), dtype=np.int64)
    for members in in_order.groupby("label").indices.values():
        start = 0
        for split, fraction in enumerate(fractions.values(), start=1):
            most = len(members) - start - (1 + len(fractions) - split)
            count = min(max(1, math.floor(fraction * len(members) + 0.5)), most)
            drawn[members[start : start + count]] = split
            start += count
    names = np.array(["train", *fractions])
    return pd.Series(names[drawn], index=in_order.index, dtype="str").reindex(pool.index)


def draw_groups(pool: pd.DataFrame, fractions: Mapping[str, float], seed: int) -> "pd.Series[str]":
    """Like `draw_images`, with every group whole, so that the fractions are met as nearly as groups allow.

    Of several seeded greedy draws, the one that comes nearest to the fractions of all classes is kept.

    Args:
        pool: Columns `label`, `content_hash` and `group`, where "" is a group of its own.
        fractions: Split -> fraction of the pool.
        seed: Another seed, another draw.

    Raises:
        DatasetError: If no draw has every class in every split.
    """
    names = group_names(pool)
    identity = pool["content_hash"].groupby(names).min()
    groups = pd.Categorical(names, categories=identity.index).codes
    labels, classes = pd.factorize(pool["label"], sort=True)
    table: Counts = np.zeros((len(identity), len(classes)), dtype=np.int64)
    np.add.at(table, (groups, labels), 1)

    def attempt(number: int) -> tuple[float, Counts]:
        order = np.argsort([_place(content, seed, number) for content in identity], kind="stable")
        return _greedy_draw(table, list(fractions.values()), order)

    _, drawn = min((attempt(number) for number in range(_ATTEMPTS)), key=lambda scored: scored[0])
    covered = np.all([table[drawn == split].any(axis=0) for split in range(1 + len(fractions))], axis=0)
    if not covered.all():
        raise DatasetError(
            f"{' and '.join(fractions)} cannot be drawn so that every class is in every split and no group "
            f"is in two: not enough separate groups of {listed(classes[~covered].tolist())}. Give the splits "
            "yourself, use finer groups, or remove these classes."
        )
    return pd.Series(np.array(["train", *fractions])[drawn[groups]], index=pool.index, dtype="str")


def group_names(pool: pd.DataFrame) -> "pd.Series[str]":
    """The group of every image; one without is a group of its own, together with its exact copies."""
    return pool["group"].where(pool["group"] != "", "\0" + pool["content_hash"])


def _greedy_draw(table: Counts, fractions: list[float], order: Counts) -> tuple[float, Counts]:
    """Draw groups in `order` for each fraction in turn.

    Args:
        table: Images of each class in each group, [groups, classes].
        fractions: Of the images of every class, per split.
        order: The groups in the order in which they are considered, [groups].

    Returns:
        How far the draw is from the fractions (plus one for every class left out), and the split of every
        group: 0 for what stays, then 1, 2, ... in the order of `fractions`.
    """
    drawn: Counts = np.zeros(len(table), dtype=np.int64)
    totals = table.sum(axis=0)
    distance = 0.0
    for split, fraction in enumerate(fractions, start=1):
        free = order[drawn[order] == 0]
        target = np.maximum(1, fraction * totals)
        chosen, taken = _greedy_split(table[free], target, leave=1 + len(fractions) - split)
        drawn[free[chosen]] = split
        distance += float((((taken - target) / totals) ** 2).sum() + (taken == 0).sum())
    return distance, drawn


def _greedy_split(table: Counts, target: npt.NDArray[np.float64], leave: int) -> tuple[npt.NDArray[np.bool_], Counts]:
    """Choose groups (rows) whose sum comes near `target`, at least `leave` groups of each class staying.

    First every class is covered, those in the fewest groups first; then groups are added in order while they
    bring the sum nearer.
    """
    chosen = np.zeros(len(table), dtype=np.bool_)
    taken: Counts = np.zeros(table.shape[1], dtype=np.int64)
    present = table > 0
    staying = present.sum(axis=0)
    scale = 1 / np.maximum(table.sum(axis=0), 1)

    def can_go(rows: Counts) -> npt.NDArray[np.bool_]:
        enough_stay: npt.NDArray[np.bool_] = (~present[rows] | (staying > leave)).all(axis=1)
        return ~chosen[rows] & enough_stay

    def distances(sums: Counts) -> npt.NDArray[np.float64]:
        squares: npt.NDArray[np.float64] = (((sums - target) * scale) ** 2).sum(axis=-1)
        return squares

    def take(row: int) -> None:
        chosen[row] = True
        taken[:] += table[row]
        staying[:] -= present[row]

    for column in np.argsort(staying, kind="stable"):
        candidates = np.flatnonzero(present[:, column])
        candidates = candidates[can_go(candidates)]
        if not taken[column] and len(candidates):
            take(int(candidates[np.argmin(distances(taken + table[candidates]))]))
    nearest = distances(taken)
    for row in range(len(table)):
        with_it = distances(taken + table[row])
        if with_it < nearest and can_go(np.array([row]))[0]:
            take(row)
            nearest = with_it
    return chosen, taken


def _place(content: str, seed: int, attempt: int = 0) -> str:
    return hashlib.sha256(f"{seed}/{attempt}/{content}".encode()).hexdigest()
