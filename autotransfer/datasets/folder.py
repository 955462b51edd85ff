"""A folder of class folders, with or without train/ val/ test/ above them -> samples.

What counts as what:

- A class is a folder; every image anywhere below it belongs to it.
- train/, val/ and test/ are split folders when `train` is there and every other folder that holds images is
  a split folder, too. So bus/ car/ train/ are three classes.
- Hidden files, `Thumbs.db`, `desktop.ini` and `__MACOSX` are not there. Files without an image suffix are
  ignored, folders without any image are ignored with a warning: often they are notes or annotations, and a
  class that the test images need and train lacks is an error of its own.
"""

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from autotransfer.datasets.image import IMAGE_SUFFIXES
from autotransfer.datasets.problems import listed
from autotransfer.errors import DatasetError

logger = logging.getLogger(__name__)

SPLIT_ALIASES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_IGNORED_NAMES = {"thumbs.db", "desktop.ini", "__macosx"}


def read_folder(root: Path) -> pd.DataFrame:
    """List the images below `root` with their labels, sorted by path.

    Returns:
        Columns `image` (absolute path), `label`, and `split` ("" where the folder does not say).

    Raises:
        DatasetError: If there are no images, no class folders, or split folders beside class folders.
    """
    folders = {folder: list(_images_below(folder)) for folder in _subfolders(root)}
    filled = [folder for folder, images in folders.items() if images]
    if not filled:
        raise _no_class_folders(root)
    split_folders = [folder for folder in filled if folder.name.casefold() in SPLIT_ALIASES]
    splits_found = {SPLIT_ALIASES[folder.name.casefold()] for folder in split_folders}
    if len(split_folders) < len(filled) and len(splits_found) < 2:
        _check_not_wrapped(filled)
        samples = _samples(folders, split="")
        stray_above = [root]
    else:
        _check_split_folders(root, filled, split_folders, splits_found)
        samples = []
        for folder in folders:
            if folder not in filled:
                logger.warning("Ignored folder %s: no images in it (%s).", folder, _found_instead(folder))
        for folder in split_folders:
            classes = {below: list(_images_below(below)) for below in _subfolders(folder)}
            samples += _samples(classes, split=SPLIT_ALIASES[folder.name.casefold()])
        stray_above = [root, *split_folders]
    _tell_stray_images(root, stray_above, found=len(samples))
    _check_names(root, samples)
    return pd.DataFrame(samples, columns=["image", "label", "split"], dtype="str")


def _samples(classes: dict[Path, list[str]], split: str) -> list[tuple[str, str, str]]:
    rows: list[tuple[str, str, str]] = []
    for folder, images in classes.items():
        if not images:
            logger.warning("Ignored folder %s: no images in it (%s).", folder, _found_instead(folder))
        # Names from macOS arrive decomposed; the same word must be the same class in every split.
        label = unicodedata.normalize("NFC", folder.name)
        rows += [(image, label, split) for image in images]
    return rows


def _check_not_wrapped(filled: list[Path]) -> None:
    """Unpacked archives often have one folder around all class or split folders."""
    if len(filled) > 1:
        return
    inside = [folder.name for folder in _subfolders(filled[0]) if any(_images_below(folder))]
    if len(inside) > 1:
        raise DatasetError(
            f"{filled[0].parent} has one folder of images only, so one class. If the folders inside it "
            f"({listed(inside, 3)}) are the classes or splits, pass {filled[0]} instead."
        )


def _check_split_folders(root: Path, filled: list[Path], split_folders: list[Path], splits: set[str]) -> None:
    others = [folder.name for folder in filled if folder not in split_folders]
    if others:
        raise DatasetError(
            f"{root} holds split folders ({listed([folder.name for folder in split_folders])}) beside other "
            f"folders with images ({listed(others)}). Keep either split folders or class folders there."
        )
    if "train" not in splits:
        raise DatasetError(
            f"{root} holds {listed([folder.name for folder in split_folders])} but no 'train' folder. "
            "Add train/<class>/ folders, or remove the split level to have all splits drawn."
        )


def _check_names(root: Path, samples: list[tuple[str, str, str]]) -> None:
    # os.fsdecode hides bytes that are not UTF-8 behind lone surrogates, which no table or report can hold.
    unreadable = [image for image, _, _ in samples if not _is_text(image)]
    if unreadable:
        raise DatasetError(
            f"{len(unreadable)} file names in {root} are not valid UTF-8, such as {unreadable[0]!a}. Rename "
            "them, for instance with convmv."
        )


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tell_stray_images(root: Path, folders: list[Path], found: int) -> None:
    for folder in folders:
        stray = [entry.name for entry in _visible(folder) if _is_image(entry)]
        if not stray:
            continue
        if folder != root or not found:
            raise DatasetError(
                f"{len(stray)} images lie directly in {folder}, outside any class folder: "
                f"{listed(stray, 3)}. Put each into a folder named after its class."
            )
        names = listed(stray, 3)
        logger.warning("Ignored %d images directly in %s, outside any class: %s.", len(stray), folder, names)


def _no_class_folders(root: Path) -> DatasetError:
    manifests = [entry.name for entry in _visible(root) if entry.name.lower().endswith((".csv", ".tsv"))]
    hint = f" If {listed(manifests, 3)} names images and labels, pass that file instead." if manifests else ""
    direct = sum(_is_image(entry) for entry in _visible(root))
    if direct:
        return DatasetError(
            f"{direct} images lie directly in {root} and there are no class folders. "
            f"Put each image into a folder named after its class: {root.name}/<class>/image.jpg.{hint}"
        )
    return DatasetError(
        f"No images in {root}: looked for {', '.join(IMAGE_SUFFIXES)} in folders named after the classes, "
        f"found {_found_instead(root)}.{hint}"
    )


def _found_instead(folder: Path) -> str:
    suffixes = Counter(Path(path).suffix.lower() or "(no suffix)" for path in _files_below(folder))
    if not suffixes:
        return "no files at all"
    return ", ".join(f"{count} {suffix}" for suffix, count in suffixes.most_common(5))


def _images_below(folder: Path) -> Iterator[str]:
    return (path for path in _files_below(folder) if path.lower().endswith(IMAGE_SUFFIXES))


def _files_below(folder: Path) -> Iterator[str]:
    seen: set[str] = set()  # links to folders are followed, but not in circles
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not _is_ignored(name))
        for name in sorted(files):
            if not _is_ignored(name):
                yield str(Path(parent, name))


def _subfolders(folder: Path) -> list[Path]:
    return sorted(Path(entry.path) for entry in _visible(folder) if entry.is_dir())


def _visible(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((e for e in entries if not _is_ignored(e.name)), key=lambda entry: entry.name)


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file()


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or name.lower() in _IGNORED_NAMES
