"""What a dataset promises: its views of the samples, and what its fingerprint depends on."""

import os
import random
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from autotransfer.datasets import Dataset, load_dataset
from autotransfer.datasets.dataset import content_fingerprint

SPLIT_COUNTS = {
    **{f"train/{label}": 4 for label in ("ant", "bee")},
    **{f"{split}/{label}": 2 for split in ("val", "test") for label in ("ant", "bee")},
}


@pytest.fixture
def folder(tmp_path: Path, write_folder) -> Path:
    return write_folder(tmp_path / "insects", SPLIT_COUNTS)


@pytest.fixture
def dataset(folder: Path) -> Dataset:
    return load_dataset(folder)


def test_codes_are_positions_in_classes(dataset):
    assert dataset.classes == ("ant", "bee")
    assert dataset.codes.dtype == np.int64
    assert [dataset.classes[code] for code in dataset.codes] == dataset.samples["label"].to_list()


def test_rows_select_splits_in_ascending_order(dataset):
    both = dataset.rows("test", "train")
    assert both.dtype == np.int64
    assert (np.diff(both) > 0).all()
    assert set(dataset.samples["split"].iloc[both]) == {"train", "test"}
    assert len(both) + len(dataset.rows("val")) == len(dataset)


def test_rows_refuse_an_unknown_split(dataset):
    with pytest.raises(ValueError, match="train, val, test but got 'dev'"):
        dataset.rows("dev")


def test_counts_table_has_every_class_and_split(dataset):
    table = dataset.counts()
    assert table.to_numpy().tolist() == [[4, 2, 2], [4, 2, 2]]
    assert (list(table.index), list(table.columns)) == (["ant", "bee"], ["train", "val", "test"])


def test_counts_show_zero_where_a_split_lacks_a_class(dataset):
    only_bees = dataset.subset(np.flatnonzero(dataset.codes == 1))
    assert only_bees.counts().loc["ant"].to_list() == [0, 0, 0]


def test_subset_keeps_order_and_classes_and_has_its_own_fingerprint(dataset):
    subset = dataset.subset([5, 0])
    assert subset.samples["image"].to_list() == dataset.samples["image"].iloc[[5, 0]].to_list()
    assert list(subset.samples.index) == [0, 1]
    assert subset.classes == dataset.classes
    assert len(subset.codes) == 2
    assert subset.fingerprint != dataset.fingerprint


def test_fingerprint_survives_moving_renaming_and_touching(folder, dataset, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    for number, image in enumerate(sorted(moved.rglob("*.png"), reverse=True)):
        renamed = image.rename(image.with_name(f"renamed-{number}.png"))
        os.utime(renamed, (number, number))
    assert load_dataset(moved).fingerprint == dataset.fingerprint


def test_fingerprint_ignores_the_order_of_samples(dataset):
    rows = list(range(len(dataset)))
    random.Random(0).shuffle(rows)
    assert dataset.subset(rows).fingerprint == dataset.fingerprint


def test_fingerprint_is_the_same_for_folder_and_manifest(folder, dataset):
    samples = dataset.samples[["image", "label", "split"]]
    samples.to_csv(folder / "labels.csv", index=False)
    assert load_dataset(folder / "labels.csv").fingerprint == dataset.fingerprint


def test_fingerprint_changes_with_one_byte_of_content(folder, dataset):
    image = folder / "train" / "ant" / "0.png"
    image.write_bytes(image.read_bytes() + b"\0")
    assert load_dataset(folder).fingerprint != dataset.fingerprint


def test_fingerprint_changes_with_one_label(folder, dataset):
    (folder / "train/ant/0.png").rename(folder / "train/bee/9.png")
    assert load_dataset(folder).fingerprint != dataset.fingerprint


def test_fingerprint_changes_with_one_split(folder, dataset):
    (folder / "train/ant/0.png").rename(folder / "test/ant/9.png")
    assert load_dataset(folder).fingerprint != dataset.fingerprint


def test_fingerprint_changes_when_an_image_is_there_twice(folder, dataset):
    shutil.copy(folder / "train/ant/0.png", folder / "train/ant/copy.png")
    assert load_dataset(folder).fingerprint != dataset.fingerprint


def test_fingerprint_tells_swapped_labels_apart():
    samples = pd.DataFrame({"content_hash": ["a", "b"], "label": ["x", "y"], "split": ["train", "train"]})
    assert content_fingerprint(samples) != content_fingerprint(samples.assign(label=["y", "x"]))
