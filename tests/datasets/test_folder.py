"""How a folder is understood, and what is said when it cannot be."""

import logging
import os
import sys
import unicodedata
from pathlib import Path

import pytest

from autotransfer.datasets.folder import read_folder
from autotransfer.errors import DatasetError


def labels_of(samples) -> dict[str, int]:
    return samples["label"].value_counts().sort_index().to_dict()


def test_folders_are_classes_and_nested_images_belong_to_them(tmp_path, write_folder):
    write_folder(tmp_path, {"cat": 2, "dog/2023/spring": 3})
    samples = read_folder(tmp_path)
    assert labels_of(samples) == {"cat": 2, "dog": 3}
    assert set(samples["split"]) == {""}
    assert all(Path(image).is_absolute() and Path(image).is_file() for image in samples["image"])


@pytest.mark.parametrize("val_name", ["val", "valid", "validation", "Val"])
def test_split_folders_above_classes_are_kept(tmp_path, write_folder, val_name):
    write_folder(tmp_path, {"train/cat": 3, f"{val_name}/cat": 1, "test/cat": 2})
    assert read_folder(tmp_path)["split"].value_counts().to_dict() == {"train": 3, "val": 1, "test": 2}


def test_a_class_may_be_called_train(tmp_path, write_folder):
    write_folder(tmp_path, {"bus": 1, "car": 1, "train": 1})
    assert labels_of(read_folder(tmp_path)) == {"bus": 1, "car": 1, "train": 1}


def test_train_alone_is_a_split_folder(tmp_path, write_folder):
    write_folder(tmp_path, {"train/cat": 1, "train/dog": 1, "notes": 0})
    samples = read_folder(tmp_path)
    assert labels_of(samples) == {"cat": 1, "dog": 1}
    assert set(samples["split"]) == {"train"}


def test_hidden_and_system_files_are_not_there(tmp_path, write_folder, write_image, caplog):
    write_folder(tmp_path, {"cat": 1, "dog": 1, ".cache": 1, "__MACOSX/cat": 1, "cat/.thumbnails": 1})
    write_image(tmp_path / "cat" / "._0.png")
    for junk in (".DS_Store", "cat/Thumbs.db", "dog/desktop.ini"):
        (tmp_path / junk).write_bytes(b"junk")
    assert labels_of(read_folder(tmp_path)) == {"cat": 1, "dog": 1}
    assert not caplog.records


def test_suffixes_are_read_in_any_case_and_other_files_ignored(tmp_path, write_folder, write_image):
    write_folder(tmp_path, {"cat": 1, "dog": 1})
    write_image(tmp_path / "cat" / "A.JPG")
    (tmp_path / "cat" / "notes.txt").write_text("meow")
    assert labels_of(read_folder(tmp_path)) == {"cat": 2, "dog": 1}


def test_names_in_any_script_and_normal_form_are_classes(tmp_path, write_folder):
    write_folder(tmp_path, {f"train/{unicodedata.normalize('NFD', 'é')}": 1, "train/猫": 1, "test/é": 1})
    assert labels_of(read_folder(tmp_path)) == {"é": 2, "猫": 1}


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path, write_folder):
    data = write_folder(tmp_path / "data", {"cat": 2})
    write_folder(tmp_path / "elsewhere", {"dogs": 3})
    (data / "dog").symlink_to(tmp_path / "elsewhere" / "dogs")
    (data / "cat" / "again").symlink_to(data / "cat")
    assert labels_of(read_folder(data)) == {"cat": 2, "dog": 3}


def test_an_empty_class_folder_is_left_out_with_a_warning(tmp_path, write_folder, caplog):
    write_folder(tmp_path, {"cat": 1, "dog": 1, "owl": 0})
    (tmp_path / "owl" / "a.heic").write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        assert labels_of(read_folder(tmp_path)) == {"cat": 1, "dog": 1}
    assert "owl: no images in it (1 .heic)" in caplog.text


def test_stray_images_beside_classes_are_left_out_with_a_warning(tmp_path, write_folder, write_image, caplog):
    write_folder(tmp_path, {"cat": 1, "dog": 1})
    write_image(tmp_path / "preview.png")
    with caplog.at_level(logging.WARNING):
        assert len(read_folder(tmp_path)) == 2
    assert "'preview.png'" in caplog.text


def assert_refused(folder: Path, *parts: str) -> None:
    with pytest.raises(DatasetError) as caught:
        read_folder(folder)
    for part in parts:
        assert part in str(caught.value)


def test_no_images_tells_what_was_looked_for_and_found(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "a.heic").write_bytes(b"x")
    assert_refused(tmp_path, f"No images in {tmp_path}", ".jpg, .jpeg", "found 1 .heic")


def test_an_empty_folder_is_told(tmp_path):
    assert_refused(tmp_path, "no files at all")


def test_images_without_class_folders_are_told(tmp_path, write_folder):
    write_folder(tmp_path, {".": 3})
    assert_refused(tmp_path, "3 images lie directly in", "no class folders", "/<class>/image.jpg")


def test_a_manifest_beside_the_images_is_pointed_out(tmp_path, write_folder):
    write_folder(tmp_path, {".": 3})
    (tmp_path / "labels.csv").write_text("image,label\n")
    assert_refused(tmp_path, "'labels.csv'", "pass that file instead")


def test_images_directly_in_a_split_folder_are_refused(tmp_path, write_folder):
    write_folder(tmp_path, {"train/cat": 1, "train/dog": 1, "test": 2})
    assert_refused(tmp_path, f"2 images lie directly in {tmp_path / 'test'}", "'0.png', '1.png'")


def test_split_folders_beside_other_folders_are_refused(tmp_path, write_folder):
    write_folder(tmp_path, {"train/cat": 1, "test/cat": 1, "owl": 1})
    assert_refused(tmp_path, "split folders ('test', 'train') beside other folders with images ('owl')")


def test_split_folders_without_train_are_refused(tmp_path, write_folder):
    write_folder(tmp_path, {"val/cat": 1, "test/cat": 1})
    assert_refused(tmp_path, "no 'train' folder")


def test_a_folder_around_the_classes_is_pointed_out(tmp_path, write_folder):
    write_folder(tmp_path, {"pets/cat": 1, "pets/dog": 1})
    assert_refused(tmp_path, "one folder of images only", f"pass {tmp_path / 'pets'} instead")


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse such names")
def test_names_that_are_not_text_are_refused(tmp_path, write_folder):
    write_folder(tmp_path, {"cat": 1, "dog": 1})
    (tmp_path / "cat" / "0.png").rename(tmp_path / "cat" / os.fsdecode(b"caf\xe9.png"))
    assert_refused(tmp_path, "1 file names", "not valid UTF-8")
