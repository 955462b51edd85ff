"""From a path to a `Dataset`: list, check, read every file once, split, fingerprint."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from autotransfer.datasets.dataset import Dataset, content_fingerprint, strata
from autotransfer.datasets.folder import read_folder
from autotransfer.datasets.manifest import MANIFEST_SUFFIXES, read_manifest
from autotransfer.datasets.problems import listed
from autotransfer.datasets.splits import check_splits, check_values, draw_splits, split_origin
from autotransfer.datasets.verification import verified_content_hashes
from autotransfer.errors import DatasetError
from autotransfer.task import Task

logger = logging.getLogger(__name__)


def load_dataset(
    path: str | os.PathLike[str],
    *,
    seed: int = 0,
    val_fraction: float = 0.2,
    test_fraction: float = 0.2,
    image_column: str = "image",
    label_column: str | Sequence[str] = "label",
    task: Task | None = None,
) -> Dataset:
    """Load a labelled target, with every file checked and every image in a split.

    Args:
        path: A folder `class/*.jpg`, the same with `train/`, `val/`, `test/` above the classes, or a CSV
            manifest with a column each for image and label and optionally `split` and `group`.
        seed: Seed of the splits that are drawn.
        val_fraction: If no validation split is given, this fraction of the training images becomes it.
        test_fraction: The same for the test split; both fractions count the training images as given.
        image_column: The manifest's column of image paths.
        label_column: The manifest's column of labels, or its columns, one a label or number.
        task: What is to be predicted; recognised where None: classes, unless the manifest holds numbers that
            are not whole (regression) or several columns (label sets where all are 0 or 1, else regression).

    Returns:
        The dataset, samples in the order of the manifest or sorted by path.

    Raises:
        DatasetError: If the input cannot be used; says what is wrong where, and what to do.

    Example:
        dataset = load_dataset("flowers")
        dataset.counts()
    """
    _check_fractions(val_fraction, test_fraction)
    root = Path(os.path.normpath(Path(path).absolute()))
    samples, folder, task, names = _read(root, image_column, label_column, task)
    if task == "classification":
        check_splits(samples)
        _tell_gaps(samples)
    else:
        check_values(samples, task, names)
    samples["content_hash"] = pd.Series(
        verified_content_hashes(samples["image"].to_list(), folder), index=samples.index, dtype="str"
    )
    origin = split_origin(samples)
    kinds = samples.assign(label=strata(samples, task))
    samples["split"] = draw_splits(kinds, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction).astype(
        "str"
    )
    return Dataset(
        name=root.name if root.is_dir() else root.stem,
        samples=samples,
        classes=tuple(sorted(set(samples["label"]))) if task == "classification" else names,
        fingerprint=content_fingerprint(samples),
        split_origin=origin,
        task=task,
    )


def _read(
    root: Path, image_column: str, label_column: str | Sequence[str], task: Task | None
) -> tuple[pd.DataFrame, Path, Task, tuple[str, ...]]:
    """The samples, the folder that their paths are best shown relative to, the task, and the label columns."""
    check_exists(root)
    if root.is_dir():
        if task not in (None, "classification"):
            raise DatasetError(f"{root} is a folder of classes; {task} needs a manifest. Give a CSV file.")
        return read_folder(root), root, "classification", ()
    if root.suffix.lower() not in MANIFEST_SUFFIXES:
        raise DatasetError(
            f"{root} is neither a folder nor a CSV manifest ({', '.join(MANIFEST_SUFFIXES)}). Give a folder "
            "with one folder of images per class, or a manifest; unpack an archive first."
        )
    samples, found, names = read_manifest(root, image_column, label_column, task)
    return samples, root.parent, found, names


def _check_fractions(val_fraction: float, test_fraction: float) -> None:
    for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 < fraction < 1:
            raise DatasetError(f"{name} must be between 0 and 1 but got {fraction}.")
    if val_fraction + test_fraction >= 1:
        raise DatasetError(
            f"val_fraction and test_fraction must leave images to train on, but {val_fraction} and "
            f"{test_fraction} together are not below 1."
        )


def _tell_gaps(samples: pd.DataFrame) -> None:
    """Warn of what is odd in given splits but usable."""
    classes = set(samples["label"])
    for split in ("val", "test"):
        present = set(samples.loc[samples["split"] == split, "label"])
        if present and present != classes:
            logger.warning("The split %r has no images of %s.", split, listed(sorted(classes - present)))
    if "group" in samples:
        splits = samples[(samples["group"] != "") & (samples["split"] != "")].groupby("group")["split"]
        crossing = sorted(str(group) for group, count in splits.nunique().items() if count > 1)
        if crossing:
            logger.warning("In the given splits, groups lie in more than one: %s.", listed(crossing))


def check_exists(path: Path) -> None:
    """Refuse a path that names nothing, saying which of its parents exists."""
    root = path.expanduser().absolute()
    if not root.exists():
        existing = next(parent for parent in root.parents if parent.exists())
        raise DatasetError(f"No such file or folder: {root}. ({existing} exists.)")
