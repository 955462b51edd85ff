"""From a path to a dataset, and the errors on the way."""

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from autotransfer.datasets import load_dataset
from autotransfer.errors import DatasetError


def assert_refused(path: Path, *parts: str, **options: float) -> None:
    with pytest.raises(DatasetError) as caught:
        load_dataset(path, **options)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def test_a_folder_of_classes_becomes_a_dataset_with_drawn_splits(tmp_path, write_folder):
    dataset = load_dataset(write_folder(tmp_path / "pets", {"dog": 10, "cat": 10}))
    assert dataset.name == "pets"
    assert dataset.classes == ("cat", "dog")
    assert dataset.split_origin == "drawn"
    assert dataset.counts().to_numpy().tolist() == [[6, 2, 2]] * 2
    assert list(dataset.samples.columns[:3]) == ["image", "label", "split"]
    assert len(dataset.fingerprint) == 64


def test_given_splits_are_kept_and_validation_drawn_from_train(tmp_path, write_folder):
    folder = write_folder(tmp_path, {"train/cat": 10, "train/dog": 5, "test/cat": 3, "test/dog": 1})
    dataset = load_dataset(folder, val_fraction=0.4)
    assert dataset.split_origin == "given, validation drawn from train"
    assert dataset.counts().to_numpy().tolist() == [[6, 4, 3], [3, 2, 1]]
    assert all("/test/" in image for image in dataset.samples["image"].iloc[dataset.rows("test")])


def test_a_manifest_with_groups_becomes_a_dataset(tmp_path, write_folder):
    write_folder(tmp_path, {"cat": 12, "dog": 12})
    rows = [f"{label}/{number}.png,{label},{number // 2}" for label in ("cat", "dog") for number in range(12)]
    (tmp_path / "pets.csv").write_text("\n".join(["image,label,group", *rows]))
    dataset = load_dataset(tmp_path / "pets.csv")
    assert dataset.name == "pets"
    assert (dataset.samples.groupby("group")["split"].nunique() == 1).all()


def test_the_same_path_and_seed_give_the_same_dataset(tmp_path, write_folder):
    folder = write_folder(tmp_path, {"cat": 20, "dog": 20})
    first, again, other = (load_dataset(folder, seed=seed) for seed in (1, 1, 2))
    assert first.samples.equals(again.samples)
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_renaming_files_changes_neither_splits_nor_fingerprint(tmp_path, write_folder):
    folder = write_folder(tmp_path, {"cat": 20, "dog": 20})
    before = load_dataset(folder)
    for number, image in enumerate(sorted(folder.rglob("*.png"), reverse=True)):
        image.rename(image.with_name(f"renamed-{number:02}.png"))
    assert load_dataset(folder).fingerprint == before.fingerprint


def test_a_relative_path_is_named_after_its_folder(tmp_path, write_folder, monkeypatch):
    monkeypatch.chdir(write_folder(tmp_path / "pets", {"cat": 3, "dog": 3}))
    dataset = load_dataset(".")
    assert dataset.name == "pets"
    assert Path(dataset.samples["image"].iloc[0]).is_absolute()


def test_names_in_any_script_work(tmp_path, write_folder):
    dataset = load_dataset(write_folder(tmp_path / "动物", {"猫": 3, "Σκύλος": 3}))
    assert (dataset.name, dataset.classes) == ("动物", ("Σκύλος", "猫"))


def test_a_missing_path_is_told_with_what_exists(tmp_path):
    assert_refused(tmp_path / "pets" / "cats", f"No such file or folder: {tmp_path / 'pets' / 'cats'}", "exists")


def test_a_file_that_is_no_manifest_is_refused(tmp_path):
    (tmp_path / "pets.zip").write_bytes(b"PK")
    assert_refused(tmp_path / "pets.zip", "neither a folder nor a CSV manifest", "unpack")


def test_undecodable_files_are_counted_and_the_first_five_listed(tmp_path, write_folder):
    folder = write_folder(tmp_path, {"cat": 12, "dog": 3})
    whole = (folder / "cat" / "0.png").read_bytes()
    (folder / "cat" / "0.png").write_bytes(whole[:-40])
    (folder / "cat" / "1.png").write_bytes(b"")
    for number in range(10, 15):
        (folder / "cat" / f"{number}.jpg").write_text("<html>404</html>")
    with pytest.raises(DatasetError) as caught:
        load_dataset(folder)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"7 of 20 images in {folder} cannot be decoded:"
    assert lines[1].startswith("  - cat/0.png: ")
    assert lines[2] == "  - cat/1.png: the file is empty"
    assert lines[3] == "  - cat/10.jpg: it is not an image in a format that Pillow reads"
    assert lines[6] == "  - ... and 2 more"
    assert "Replace or remove" in lines[7]


def test_a_class_missing_from_a_given_split_is_warned_of(tmp_path, write_folder, caplog):
    folder = write_folder(tmp_path, {"train/cat": 3, "train/dog": 3, "test/cat": 2})
    with caplog.at_level(logging.WARNING):
        load_dataset(folder)
    assert "The split 'test' has no images of 'dog'." in caplog.text


def test_groups_that_cross_given_splits_are_warned_of(tmp_path, write_folder, caplog):
    write_folder(tmp_path, {"cat": 3, "dog": 3})
    rows = [
        f"{label}/{number}.png,{label},{split},p1"
        for label in ("cat", "dog")
        for number, split in enumerate(("train", "val", "test"))
    ]
    (tmp_path / "pets.csv").write_text("\n".join(["image,label,split,group", *rows]))
    with caplog.at_level(logging.WARNING):
        assert load_dataset(tmp_path / "pets.csv").split_origin == "given"
    assert "groups lie in more than one: 'p1'" in caplog.text


@pytest.mark.parametrize(("val", "test"), [(0, 0.2), (0.2, 1), (0.5, 0.5), (-1, 0.2), (0.2, float("nan"))])
def test_fractions_that_leave_no_split_are_refused(tmp_path, val, test):
    assert_refused(tmp_path, "_fraction", val_fraction=val, test_fraction=test)


def test_importing_datasets_imports_nothing_heavy():
    program = (
        "import sys, autotransfer.datasets; "
        "print(sorted({'torch', 'torchvision', 'timm', 'sklearn', 'scipy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
