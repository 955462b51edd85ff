"""Label sets and numbers as datasets: targets, splits and subsets like the whole."""

import numpy as np
import pandas as pd
import pytest

from autotransfer.datasets import Dataset, load_dataset
from autotransfer.datasets.dataset import strata
from autotransfer.errors import DatasetError
from autotransfer.probing import stratified_subset

COUNT = 200


@pytest.fixture
def make(tmp_path, write_image):
    """`make(columns)`: a manifest of 200 images with these columns, loaded."""

    def make(columns: dict[str, np.ndarray], **options) -> Dataset:
        names = [write_image(tmp_path / "images" / f"{i}.png").name for i in range(len(next(iter(columns.values()))))]
        table = pd.DataFrame({"image": [f"images/{name}" for name in names], **columns})
        table.to_csv(tmp_path / "labels.csv", index=False)
        return load_dataset(tmp_path / "labels.csv", **options)

    return make


def labels(seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    return {
        name: (generator.random(COUNT) < share).astype(int) for name, share in (("a", 0.5), ("b", 0.3), ("c", 0.06))
    }


def test_label_sets_are_targets_of_zeros_and_ones(make):
    columns = labels()
    dataset = make(columns)
    assert (dataset.task, dataset.classes) == ("multilabel", ("a", "b", "c"))
    assert dataset.targets.dtype == np.int64
    np.testing.assert_array_equal(dataset.targets, np.stack(list(columns.values()), axis=1))
    with pytest.raises(ValueError, match="multilabel has no class codes"):
        _ = dataset.codes
    counts = dataset.counts()
    assert counts.loc["b"].sum() == columns["b"].sum()


@pytest.mark.parametrize("task", [None, "multilabel"])
def test_label_sets_may_be_written_as_fractions(make, task):
    """As pandas writes columns of 0.0 and 1.0."""
    columns = {name: values.astype(float) for name, values in labels().items()}
    dataset = make(columns, task=task)
    assert dataset.task == "multilabel"
    np.testing.assert_array_equal(dataset.targets, np.stack(list(columns.values()), axis=1))
    assert set(dataset.samples["label"]) > {"", "a", "a; b"}
    columns["b"] = 1 - columns["b"]
    assert make(columns, task=task).fingerprint != dataset.fingerprint


@pytest.mark.parametrize("unknown", ["nan", "NA", ""])
def test_numbers_of_which_some_are_not_known_are_numbers_all_the_same(make, unknown):
    cells = np.random.default_rng(0).choice(["1.5", "2", "2.5"], COUNT).astype(object)
    cells[[3, 7]] = unknown
    with pytest.raises(DatasetError, match=r"row 5: .*(not a number|empty)"):
        make({"label": cells})


def test_splits_of_label_sets_have_every_label_in_proportion(make):
    dataset = make(labels())
    shares = {split: dataset.targets[dataset.rows(split)].mean(axis=0) for split in ("train", "val", "test")}
    for split in ("val", "test"):
        assert 30 <= len(dataset.rows(split)) <= 50
        np.testing.assert_allclose(shares[split], shares["train"], atol=0.07)


def test_numbers_are_targets_and_their_splits_cover_the_range(make):
    numbers = np.random.default_rng(0).lognormal(0, 2, COUNT).round(6)
    dataset = make({"label": numbers})
    assert (dataset.task, dataset.classes) == ("regression", ("label",))
    np.testing.assert_allclose(dataset.targets[:, 0], numbers)
    medians = [np.median(np.log(dataset.targets[dataset.rows(split)])) for split in ("train", "val", "test")]
    assert np.ptp(medians) < 0.5
    assert dataset.counts().to_numpy().sum() == COUNT


@pytest.mark.parametrize("columns", [labels(), {"label": np.linspace(0, 9.9, COUNT)}])
def test_subsets_are_like_the_whole(make, columns):
    dataset = make(columns)
    subset = stratified_subset(dataset, "train", 60, seed=0)
    assert 45 <= len(subset) <= 62
    whole = dataset.targets[dataset.rows("train")].mean(axis=0)
    np.testing.assert_allclose(dataset.targets[subset].mean(axis=0), whole, atol=0.12 * max(1, whole.max()))


def test_every_stratum_has_enough_images_to_be_split():
    generator = np.random.default_rng(0)
    table = pd.DataFrame({f"target.{i}": (generator.random(300) < 0.15).astype(float) for i in range(12)})
    names = [column.removeprefix("target.") for column in table]
    table["label"] = ["; ".join(np.array(names)[row == 1]) for row in table.to_numpy()]
    kinds = strata(table, "multilabel").value_counts()
    assert kinds.min() >= 10
    assert len(kinds) > 5


def test_the_fingerprint_depends_on_the_targets(make):
    columns = labels()
    first = make(columns).fingerprint
    assert make(columns).fingerprint == first
    columns["a"][0] = 1 - columns["a"][0]
    assert make(columns).fingerprint != first


def test_what_does_not_vary_is_refused_by_name(make):
    with pytest.raises(DatasetError, match=r"labels are the same on all training images.*: 'never'"):
        make({**labels(), "never": np.zeros(COUNT, int)})
    with pytest.raises(DatasetError, match="8 training images; at least 9 are needed"):
        make({"label": np.arange(8) + 0.5})


def test_a_folder_of_classes_holds_no_numbers(tmp_path, write_folder):
    write_folder(tmp_path / "pets", {"cat": 5, "dog": 5})
    with pytest.raises(DatasetError, match="regression needs a manifest"):
        load_dataset(tmp_path / "pets", task="regression")
