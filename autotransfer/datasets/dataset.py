"""`Dataset`: the samples of a target, their classes and splits, and a fingerprint of their content."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled target, ready to be probed and trained on.

    Two datasets hold the same task when their fingerprints are equal; `==` is identity.

    Attributes:
        name: Name of the folder, or of the manifest without its suffix.
        samples: One row per image with a `RangeIndex`: `image` (absolute path), `label`, `split` ("train",
            "val" or "test"), `group` where the user gives one, and `content_hash` (SHA-256 of the file).
        classes: The labels, sorted; at least two.
        fingerprint: Hash of (content, label, split) of every sample, in no particular order: renaming,
            moving, touching or reordering files does not change it.
        split_origin: For people: which splits were given and which were drawn.
    """

    name: str
    samples: pd.DataFrame
    classes: tuple[str, ...]
    fingerprint: str
    split_origin: str

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def codes(self) -> npt.NDArray[np.int64]:
        """Index into `classes` of each sample's label, shape [n]."""
        codes = pd.Categorical(self.samples["label"], categories=list(self.classes)).codes.astype(np.int64)
        codes.setflags(write=False)
        return codes

    def rows(self, *splits: str) -> npt.NDArray[np.int64]:
        """Row positions of the samples in any of `splits`, ascending.

        Raises:
            ValueError: If a name is not "train", "val" or "test".
        """
        unknown = sorted(set(splits) - set(SPLITS))
        if unknown:
            raise ValueError(f"splits are {', '.join(SPLITS)} but got {', '.join(map(repr, unknown))}.")
        return np.flatnonzero(self.samples["split"].isin(list(splits)).to_numpy()).astype(np.int64)

    def counts(self) -> pd.DataFrame:
        """Number of samples per class (rows) and split (columns train, val, test)."""
        table = pd.crosstab(self.samples["label"], self.samples["split"])
        table = table.reindex(index=list(self.classes), columns=list(SPLITS), fill_value=0)
        return table.rename_axis(index="label", columns="split")

    def subset(self, rows: Sequence[int] | npt.NDArray[np.integer]) -> "Dataset":
        """The samples at these row positions, in this order, with the same classes."""
        samples = self.samples.iloc[np.asarray(rows, dtype=np.int64)].reset_index(drop=True)
        return replace(self, samples=samples, fingerprint=content_fingerprint(samples))


def content_fingerprint(samples: pd.DataFrame) -> str:
    """SHA-256 over the sorted (content_hash, label, split) of all samples, as hex.

    Paths, modification times and the order of rows play no part; copies of an image count as often as they
    appear.
    """
    content, labels, splits = (samples[column].to_list() for column in ("content_hash", "label", "split"))
    # The hash has a fixed length and split is a closed set, so the label in between needs no escaping.
    lines = sorted(
        f"{sha}/{split}/{label}\0".encode() for sha, label, split in zip(content, labels, splits, strict=True)
    )
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line)
    return digest.hexdigest()
