"""Which images a probe looks at."""

import numpy as np
import numpy.typing as npt

from autotransfer.datasets import Dataset


def stratified_subset(dataset: Dataset, split: str, limit: int, seed: int) -> npt.NDArray[np.int64]:
    """At most `limit` rows of a split, every stratum (class) in proportion and with at least one image.

    Args:
        dataset: the target.
        split: `train`, `val` or `test`.
        limit: number of rows; classes with one image each may exceed it.
        seed: which images are drawn.

    Returns:
        Ascending row positions in `dataset.samples`.
    """
    rows = dataset.rows(split)
    if len(rows) <= limit:
        return rows
    generator = np.random.default_rng(seed)
    codes = dataset.strata[rows]
    kept = []
    for code in np.unique(codes):
        members = rows[codes == code]
        share = max(1, int(len(members) * limit / len(rows)))
        kept.append(generator.permutation(members)[:share])
    return np.sort(np.concatenate(kept))
