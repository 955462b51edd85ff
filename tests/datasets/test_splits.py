"""What drawn splits promise, for any classes, groups, fractions and seeds."""

import hashlib

import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from autotransfer.datasets.splits import check_splits, draw_splits, split_origin
from autotransfer.errors import DatasetError


def table(labels: list[str], splits: list[str] | None = None, groups: list[str] | None = None) -> pd.DataFrame:
    """Samples whose content is told by their position."""
    samples = pd.DataFrame(
        {
            "image": [f"/data/{number}.png" for number in range(len(labels))],
            "label": labels,
            "split": splits or [""] * len(labels),
            "content_hash": [hashlib.sha256(str(number).encode()).hexdigest() for number in range(len(labels))],
        },
        dtype="str",
    )
    return samples if groups is None else samples.assign(group=groups)


def drawn(samples: pd.DataFrame, seed: int = 0, val: float = 0.2, test: float = 0.2) -> pd.DataFrame:
    return samples.assign(split=draw_splits(samples, seed=seed, val_fraction=val, test_fraction=test))


class_sizes = st.lists(st.integers(3, 60), min_size=2, max_size=6)
seeds = st.integers(0, 2**32)
fractions = st.tuples(st.floats(0.05, 0.45), st.floats(0.05, 0.45))


def labels_for(sizes: list[int]) -> list[str]:
    return [f"class {number}" for number, size in enumerate(sizes) for _ in range(size)]


@settings(deadline=None)
@given(sizes=class_sizes, seed=seeds, fractions=fractions)
def test_every_class_is_in_every_split_within_one_image_of_its_fraction(sizes, seed, fractions):
    val, test = fractions
    samples = drawn(table(labels_for(sizes)), seed, val, test)
    counts = pd.crosstab(samples["label"], samples["split"])
    assert (counts[["train", "val", "test"]] >= 1).all(axis=None)
    for name, fraction in (("val", val), ("test", test)):
        wanted = pd.Series([max(1.0, fraction * size) for size in sizes], index=counts.index)
        assert ((counts[name] - wanted).abs() <= 1).all()


@settings(deadline=None)
@given(sizes=class_sizes, seed=seeds, data=st.data())
def test_a_draw_depends_on_content_not_on_names_or_order(sizes, seed, data):
    samples = table(labels_for(sizes))
    shuffled = samples.iloc[data.draw(st.permutations(range(len(samples))))].reset_index(drop=True)
    renamed = shuffled.assign(image=[f"/elsewhere/{number}.jpg" for number in range(len(shuffled))])
    expected = drawn(samples, seed).set_index("content_hash")["split"].to_dict()
    assert drawn(renamed, seed).set_index("content_hash")["split"].to_dict() == expected


@settings(deadline=None)
@given(sizes=class_sizes, seed=seeds, given_split=st.sampled_from(["val", "test"]))
def test_a_given_split_is_kept_and_only_the_other_drawn(sizes, seed, given_split):
    labels = labels_for(sizes)
    splits = [given_split if number % 5 == 4 else "train" for number in range(len(labels))]
    samples = table(labels, splits)
    assume((pd.crosstab(samples["label"], samples["split"])["train"] >= 2).all())
    result = drawn(samples, seed)
    assert (result["split"] == given_split).to_list() == [split == given_split for split in splits]
    assert set(result["split"]) == {"train", "val", "test"}


def test_given_splits_are_all_kept():
    splits = ["train", "val", "test"] * 2
    assert drawn(table(["a"] * 3 + ["b"] * 3, splits))["split"].to_list() == splits


def test_another_seed_is_another_draw():
    samples = table(labels_for([50, 50]))
    draws = {tuple(drawn(samples, seed)["split"]) for seed in range(5)}
    assert len(draws) == 5


def test_a_draw_is_uniform_over_images():
    samples = table(labels_for([10, 10]))
    in_test = sum((drawn(samples, seed)["split"] == "test").astype(int) for seed in range(400))
    assert in_test.between(400 * 0.2 - 40, 400 * 0.2 + 40).all()  # five standard deviations


@st.composite
def grouped_tables(draw: st.DrawFn) -> pd.DataFrame:
    """Groups of one class each and a few of several; every class has four groups or more of its own."""
    labels: list[str] = []
    groups: list[str] = []
    for number in range(draw(st.integers(2, 4))):
        for group in range(draw(st.integers(4, 10))):
            size = draw(st.integers(1, 6))
            labels += [f"class {number}"] * size
            groups += [f"{number}-{group}"] * size
    for number in range(draw(st.integers(0, 4))):
        labels += draw(st.lists(st.sampled_from(sorted(set(labels))), min_size=1, max_size=4))
        groups += [f"mixed {number}"] * (len(labels) - len(groups))
    return table(labels, groups=groups)


@settings(max_examples=60, deadline=None)
@given(samples=grouped_tables(), seed=seeds)
def test_no_group_is_in_two_splits_and_every_class_is_in_each(samples, seed):
    result = drawn(samples, seed)
    assert (result.groupby("group")["split"].nunique() == 1).all()
    counts = pd.crosstab(result["label"], result["split"])
    assert (counts[["train", "val", "test"]] >= 1).all(axis=None)


@settings(max_examples=30, deadline=None)
@given(samples=grouped_tables(), seed=seeds, data=st.data())
def test_a_grouped_draw_depends_on_content_not_on_names_or_order(samples, seed, data):
    shuffled = samples.iloc[data.draw(st.permutations(range(len(samples))))].reset_index(drop=True)
    renamed = shuffled.assign(group=["renamed " + group for group in shuffled["group"]])
    expected = drawn(samples, seed).set_index("content_hash")["split"].to_dict()
    assert drawn(renamed, seed).set_index("content_hash")["split"].to_dict() == expected


def test_many_small_groups_meet_the_fractions():
    samples = table(labels_for([300, 150]), groups=[str(number // 3) for number in range(450)])
    shares = pd.crosstab(drawn(samples)["label"], drawn(samples)["split"], normalize="index")
    assert ((shares[["val", "test"]] - 0.2).abs() < 0.03).all(axis=None)


def test_images_without_a_group_are_drawn_one_by_one():
    samples = table(labels_for([50, 50]), groups=["p"] * 10 + [""] * 90)
    result = drawn(samples)
    assert result.loc[result["group"] == "p", "split"].nunique() == 1
    assert 15 <= (result["split"] == "test").sum() <= 25


def test_groups_that_cannot_be_divided_are_told():
    samples = table(["a", "b"] * 3 + ["b"], groups=["1", "1", "2", "2", "3", "3", "3"])
    assert set(drawn(samples)["split"]) == {"train", "val", "test"}
    # Every class has three groups, but a test group always takes one of both classes that val would need.
    tangled = table(list("abbcca"), groups=["1", "1", "2", "2", "3", "3"])
    tangled = pd.concat([tangled, table(list("abc"), groups=["4", "4", "4"])], ignore_index=True)
    with pytest.raises(DatasetError, match=r"not enough separate groups of .* Give the splits yourself"):
        drawn(tangled)


@pytest.mark.parametrize(
    ("splits", "phrase"),
    [
        ([""], "drawn"),
        (["train"], "drawn"),
        (["train", "test"], "given, validation drawn from train"),
        (["train", "val"], "given, test drawn from train"),
        (["train", "val", "test"], "given"),
    ],
)
def test_split_origin_says_what_was_drawn(splits, phrase):
    assert split_origin(pd.DataFrame({"split": splits})) == phrase


def assert_refused(samples: pd.DataFrame, *parts: str) -> None:
    with pytest.raises(DatasetError) as caught:
        check_splits(samples)
    for part in parts:
        assert part in str(caught.value)


def test_one_class_only_is_refused():
    assert_refused(table(["cat"] * 9), "All 9 images are labelled 'cat'", "two classes")


def test_classes_too_small_to_draw_from_are_named_with_what_is_needed():
    samples = table(["cat"] * 9 + ["dog", "owl", "owl"])
    assert_refused(samples, "'dog' has 1, 'owl' has 2", "test and val", "at least 3")


def test_fewer_images_are_needed_when_a_split_is_given():
    labels = ["cat"] * 3 + ["dog"] * 3
    check_splits(table(labels, ["train", "train", "test"] * 2))
    assert_refused(table(labels, ["train", "test", "test"] * 2), "'cat' has 1, 'dog' has 1", "at least 2")


def test_one_training_image_is_enough_when_all_splits_are_given():
    check_splits(table(["cat"] * 3 + ["dog"] * 3, ["train", "val", "test"] * 2))


def test_a_class_missing_from_train_is_named():
    samples = table(["cat", "cat", "dog", "owl"], ["train", "val", "train", "test"])
    assert_refused(samples, "No training images of 'owl', though 'test' has some")


def test_train_must_be_there():
    assert_refused(table(["cat", "dog"], ["val", "test"]), "No image is in the split 'train'", "'test', 'val'")


def test_too_few_groups_are_told_as_groups():
    samples = table(["cat"] * 9 + ["dog"] * 9, groups=[*"123456789", *"111122222"])
    assert_refused(samples, "Too few groups", "'dog' has 2")
