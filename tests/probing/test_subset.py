"""The rows that a probe looks at, for any class sizes."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotransfer.datasets import Dataset
from autotransfer.probing import stratified_subset


def make_dataset(sizes: list[int], seed: int = 0) -> Dataset:
    """Classes of these sizes in the split train, in random order, and some images in val."""
    labels = [f"{number:02}" for number, size in enumerate(sizes) for _ in range(size)]
    labels = [str(label) for label in np.random.default_rng(seed).permutation(labels)] + sorted(set(labels))
    splits = ["train"] * sum(sizes) + ["val"] * len(sizes)
    samples = pd.DataFrame({"image": [f"/{i}.png" for i in range(len(labels))], "label": labels, "split": splits})
    return Dataset("made up", samples, tuple(sorted(set(labels))), "", "given")


class_sizes = st.lists(st.integers(1, 80), min_size=2, max_size=8)
seeds = st.integers(0, 2**32)


@given(sizes=class_sizes, limit=st.integers(1, 300), seed=seeds)
def test_every_class_is_there_in_proportion(sizes, limit, seed):
    dataset = make_dataset(sizes)
    rows = stratified_subset(dataset, "train", limit, seed)
    assert rows.dtype == np.int64
    assert (np.diff(rows) > 0).all()
    assert set(rows) <= set(dataset.rows("train"))
    counts = np.bincount(dataset.codes[rows], minlength=len(sizes))
    wanted = np.maximum(1, np.array(sizes) * min(1.0, limit / sum(sizes)))
    assert (counts >= 1).all()
    assert (np.abs(counts - wanted) < 1).all()


@given(sizes=class_sizes, limit=st.integers(1, 300), seed=seeds)
def test_the_limit_is_exceeded_by_rare_classes_only(sizes, limit, seed):
    dataset = make_dataset(sizes)
    rows = stratified_subset(dataset, "train", limit, seed)
    rare = sum(size * limit < sum(sizes) for size in sizes)
    assert len(rows) <= limit + rare


@given(sizes=class_sizes, seed=seeds)
def test_a_split_within_the_limit_is_taken_whole(sizes, seed):
    dataset = make_dataset(sizes)
    assert stratified_subset(dataset, "train", sum(sizes), seed).tolist() == dataset.rows("train").tolist()


@given(sizes=class_sizes, limit=st.integers(1, 300), seed=seeds)
def test_the_same_seed_draws_the_same_rows(sizes, limit, seed):
    draws = [stratified_subset(make_dataset(sizes), "train", limit, seed).tolist() for _ in range(2)]
    assert draws[0] == draws[1]


def test_another_seed_draws_other_rows():
    dataset = make_dataset([50, 50])
    assert len({tuple(stratified_subset(dataset, "train", 20, seed)) for seed in range(5)}) == 5


def test_every_image_has_the_same_chance():
    dataset = make_dataset([20, 20])
    drawn = np.concatenate([stratified_subset(dataset, "train", 10, seed) for seed in range(400)])
    counts = np.bincount(drawn, minlength=40)[:40]
    assert counts.min() > 60 and counts.max() < 140  # 100 expected, standard deviation 9


@pytest.mark.parametrize(("split", "expected"), [("val", [100, 101]), ("test", [])])
def test_other_splits_are_left_alone(split, expected):
    assert stratified_subset(make_dataset([50, 50]), split, 10, 0).tolist() == expected
