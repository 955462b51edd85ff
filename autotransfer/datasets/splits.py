"""Which split an image belongs to: kept where given, else drawn from the training images."""

from collections.abc import Sequence

import pandas as pd

from autotransfer.datasets.dataset import TARGET
from autotransfer.datasets.draw import draw_groups, draw_images, group_names
from autotransfer.datasets.problems import listed
from autotransfer.errors import DatasetError
from autotransfer.task import Task

_NAMES = {"val": "validation", "test": "test"}


def missing_splits(samples: pd.DataFrame) -> list[str]:
    """The splits that must be drawn, in the order in which they are: test before val."""
    given = set(samples["split"])
    return [split for split in ("test", "val") if split not in given]


def split_origin(samples: pd.DataFrame) -> str:
    """Where the splits come from, for people; `samples` as they were given.

    Example:
        >>> split_origin(pd.DataFrame({"split": ["train", "test"]}))
        'given, validation drawn from train'
    """
    missing = missing_splits(samples)
    if not missing:
        return "given"
    if len(missing) == len(_NAMES):
        return "drawn"
    return f"given, {_NAMES[missing[0]]} drawn from train"


def check_splits(samples: pd.DataFrame) -> None:
    """Check, before any image is read, that every class has training images, and enough to draw from.

    Raises:
        DatasetError: If there is one class only, or classes lack images in train.
    """
    classes = sorted(set(samples["label"]))
    if len(classes) < 2:
        raise DatasetError(
            f"All {len(samples)} images are labelled {listed(classes)}. At least two classes are needed."
        )
    pool = samples[samples["split"].isin(["", "train"])]
    if pool.empty:
        given = listed(sorted(set(samples["split"])))
        raise DatasetError(f"No image is in the split 'train', there is only {given}. Training needs it.")
    absent = sorted(set(classes) - set(pool["label"]))
    if absent:
        holding = sorted(set(samples.loc[samples["label"].isin(absent), "split"]))
        raise DatasetError(
            f"No training images of {listed(absent)}, though {listed(holding)} has some. Add some to train, "
            "or remove these classes from the other splits; check that they are spelt alike."
        )
    _check_enough(pool, missing_splits(samples))


def check_values(samples: pd.DataFrame, task: Task, names: Sequence[str]) -> None:
    """Check that every label or number varies in training, and that there are enough images to draw from.

    Raises:
        DatasetError: If one does not, or there are too few images.
    """
    pool = samples[samples["split"].isin(["", "train"])]
    needed = 3 * (1 + len(missing_splits(samples)))
    if len(pool) < needed:
        raise DatasetError(f"There are {len(pool)} training images; at least {needed} are needed. Add images.")
    constant = [name for name in names if pool[f"{TARGET}{name}"].nunique() < 2]
    if constant:
        what = "labels" if task == "multilabel" else "numbers"
        raise DatasetError(
            f"These {what} are the same on all training images, so nothing can be learnt of them: "
            f"{listed(constant)}. Leave their columns out (label_column names those to use)."
        )


def draw_splits(samples: pd.DataFrame, *, seed: int, val_fraction: float, test_fraction: float) -> "pd.Series[str]":
    """The split of every sample: as given, the missing ones drawn stratified from train.

    Args:
        samples: Columns `image`, `label`, `split` ("" where not given), `content_hash`, optionally `group`.
        seed: Another seed, another draw.
        val_fraction: Fraction of the training images as given, of every class, drawn for a missing val.
        test_fraction: The same for a missing test.

    Raises:
        DatasetError: If groups cannot be drawn so that every class is in every split.
    """
    splits = samples["split"].replace("", "train")
    fractions = {"test": test_fraction, "val": val_fraction}
    fractions = {split: fractions[split] for split in missing_splits(samples)}
    if fractions:
        pool = samples[splits == "train"]
        draw = draw_groups if "group" in samples else draw_images
        drawn = draw(pool, fractions, seed)
        splits.loc[drawn.index] = drawn
    return splits


def _check_enough(pool: pd.DataFrame, missing: list[str]) -> None:
    grouped = "group" in pool and bool(missing)
    if grouped:
        counts = group_names(pool.assign(content_hash=pool["image"])).groupby(pool["label"]).nunique()
    else:
        counts = pool["label"].value_counts().sort_index()
    needed = 1 + len(missing)
    few = [f"{label!r} has {count}" for label, count in counts.items() if count < needed]
    if few:
        shown = ", ".join(few[:10]) + (f" and {len(few) - 10} more" if len(few) > 10 else "")
        raise DatasetError(
            f"Too few {'groups' if grouped else 'images'} of some classes to draw {' and '.join(missing)} "
            f"from train: {shown}; at least {needed} are needed. Add images, remove or merge these classes, "
            "or give the splits yourself."
        )
