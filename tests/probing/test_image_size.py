"""At which size a source sees the images of a target."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from random_sources import write_source

from autotransfer.datasets import load_dataset
from autotransfer.probing import choose_image_size, typical_image_size
from autotransfer.sources import Source


@pytest.fixture
def make_source(tmp_path: Path):
    def make(image_size: int, fixed: bool = False) -> Source:
        return write_source(
            tmp_path / f"{image_size}{fixed}", "test_vit", image_size=image_size, **({"img_size": 64} if fixed else {})
        )

    return make


def write_images(root: Path, sizes: list[tuple[int, int]]) -> Path:
    for label in ("ant", "bee"):
        (root / label).mkdir(parents=True)
        for number, size in enumerate(sizes):
            Image.effect_noise(size, 50 + number).save(root / label / f"{number}.png")
    return root


def test_the_typical_size_is_the_longer_side_of_most_images(tmp_path: Path):
    sizes = [(40, 30)] * 5 + [(20, 60)] * 4
    dataset = load_dataset(write_images(tmp_path / "mixed", sizes))
    assert typical_image_size(dataset) == np.quantile([40] * 10 + [60] * 8, 0.9)


def test_one_huge_image_does_not_count(tmp_path: Path):
    dataset = load_dataset(write_images(tmp_path / "outlier", [(32, 32)] * 19 + [(3000, 10)]))
    assert typical_image_size(dataset) == 32


@pytest.mark.parametrize(
    ("own", "typical", "expected"),
    [
        (224, 500, 224),  # never larger than the source was pretrained at
        (224, 224, 224),
        (224, 150, 160),  # smaller images: their size, rounded up to a multiple of 32
        (224, 128, 128),
        (224, 28, 96),  # but not below 96
        (64, 28, 64),  # where the source itself is smaller: its own size
    ],
)
def test_small_images_are_not_enlarged_more_than_is_useful(make_source, own, typical, expected):
    assert choose_image_size(make_source(own), typical) == expected


def test_a_limit_holds(make_source):
    assert choose_image_size(make_source(224), 500, limit=128) == 128
    assert choose_image_size(make_source(96), 500, limit=128) == 96


@pytest.mark.parametrize("limit", [None, 32])
def test_an_architecture_of_fixed_size_gets_its_own(make_source, limit):
    assert choose_image_size(make_source(64, fixed=True), 28, limit) == 64
