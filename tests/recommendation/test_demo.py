"""What the demo's target promises: all of scikit-learn's digits, as images that can be loaded."""

import hashlib

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from autotransfer.datasets import load_dataset
from autotransfer.recommendation.demo import write_demo_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    target = tmp_path_factory.mktemp("demo") / "not yet there" / "digits"
    assert write_demo_dataset(target) == target
    return target


def contents(folder) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_every_digit_is_written_once_under_its_class(folder):
    expected = np.bincount(load_digits().target)
    written = [len(list((folder / str(label)).glob("*.png"))) for label in range(10)]
    assert written == expected.tolist()
    assert len(contents(folder)) == 1797


@pytest.mark.parametrize("index", [0, 1, 1000, 1796])
def test_an_image_shows_its_digit(folder, index):
    digits = load_digits()
    path = folder / str(digits.target[index]) / f"{index:04d}.png"
    with Image.open(path) as image:
        assert image.size == (64, 64)
        shrunk = np.asarray(image.convert("L").resize((8, 8), Image.Resampling.BOX), dtype=float)
    assert np.corrcoef(shrunk.ravel(), digits.images[index].ravel())[0, 1] > 0.98


def test_it_loads_as_a_target_of_ten_classes(folder):
    dataset = load_dataset(folder)
    assert dataset.classes == tuple("0123456789")
    assert len(dataset) == 1797


def test_writing_it_again_changes_nothing(folder):
    before = contents(folder)
    write_demo_dataset(folder)
    assert contents(folder) == before
