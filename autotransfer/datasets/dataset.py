"""`Dataset`: the samples of a target, what is to be predicted, splits, and a fingerprint of their content."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from autotransfer.task import Task

SPLITS = ("train", "val", "test")
TARGET = "target."
_FEWEST_OF_A_KIND = 10
_MOST_BINS = 10

Targets = npt.NDArray[np.int64] | npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled target, ready to be probed and trained on.

    Two datasets hold the same task when their fingerprints are equal; `==` is identity.

    Attributes:
        name: Name of the folder, or of the manifest without its suffix.
        samples: One row per image with a `RangeIndex`: `image` (absolute path), `label`, `split` ("train",
            "val" or "test"), `group` where the user gives one, and `content_hash` (SHA-256 of the file).
            For label sets and numbers, `label` is their text and a column `target.<name>` holds each of them.
        classes: The classes, sorted, at least two; the names of the labels; or those of the numbers.
        fingerprint: Hash of (content, label, split) of every sample, in no particular order: renaming,
            moving, touching or reordering files does not change it.
        split_origin: For people: which splits were given and which were drawn.
    """

    name: str
    samples: pd.DataFrame
    classes: tuple[str, ...]
    fingerprint: str
    split_origin: str
    task: Task = "classification"

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def targets(self) -> Targets:
        """What is to be predicted of each sample.

        Classification: index into `classes`, int64 [n]. Multilabel: 0 or 1 for each label, int64 [n, L].
        Regression: float64 [n, T].
        """
        if self.task == "classification":
            return self.codes
        columns = self.samples[[f"{TARGET}{name}" for name in self.classes]].to_numpy(np.float64)
        targets = columns.astype(np.int64) if self.task == "multilabel" else columns
        targets.setflags(write=False)
        return targets

    @cached_property
    def strata(self) -> npt.NDArray[np.int64]:
        """What subsets keep the proportions of: classes, label sets, or tenths of the values, int64 [n]."""
        return pd.factorize(strata(self.samples, self.task), sort=True)[0].astype(np.int64)

    @cached_property
    def codes(self) -> npt.NDArray[np.int64]:
        """Index into `classes` of each sample's label, shape [n]; of classification only.

        Raises:
            ValueError: If the samples have label sets or numbers.
        """
        if self.task != "classification":
            raise ValueError(f"a dataset for {self.task} has no class codes; take its targets.")
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
        """Number of samples per class or label (rows) and split (columns train, val, test)."""
        if self.task == "multilabel":
            columns = [f"{TARGET}{name}" for name in self.classes]
            table = self.samples.groupby("split")[columns].sum().T.astype(np.int64)
            table.index = pd.Index(self.classes)
            return table.reindex(columns=list(SPLITS), fill_value=0).rename_axis(index="label", columns="split")
        if self.task == "regression":
            table = self.samples["split"].value_counts().to_frame("images").T
            return table.reindex(columns=list(SPLITS), fill_value=0).rename_axis(columns="split")
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


def strata(samples: pd.DataFrame, task: Task) -> "pd.Series[str]":
    """A name for each sample, such that splits and subsets that keep their proportions are like the whole.

    The class; of label sets, the set where enough samples share it, else its rarest label, else one of the
    rest; of numbers, the tenth (fewer bins for few samples) that the first of them lies in.
    """
    if task == "classification":
        return samples["label"]
    columns = [column for column in samples if str(column).startswith(TARGET)]
    if task == "regression":
        bins = max(1, min(_MOST_BINS, len(samples) // _FEWEST_OF_A_KIND))
        ranks = samples[columns[0]].rank(method="first").to_numpy()
        return pd.Series(np.ceil(ranks * bins / len(samples)).astype(int).astype(str), index=samples.index, dtype="str")
    present = samples[columns].to_numpy() == 1
    rarest = np.where(present, present.sum(axis=0), np.inf).argmin(axis=1)
    fallback = pd.Series(np.where(present.any(axis=1), np.array(columns)[rarest], ""), index=samples.index, dtype="str")
    names = _where_common(samples["label"], fallback)
    names = _where_common(names, pd.Series("rest", index=samples.index, dtype="str"))
    rest = int((names == "rest").sum())
    return names.replace("rest", names.value_counts().index[0]) if 0 < rest < _FEWEST_OF_A_KIND else names


def _where_common(names: "pd.Series[str]", others: "pd.Series[str]") -> "pd.Series[str]":
    return names.where(names.map(names.value_counts()) >= _FEWEST_OF_A_KIND, others)
