"""A CSV manifest -> samples and their task, with every fault told by its row.

Rows are numbered as a spreadsheet shows them: the header is row 1. The delimiter (comma, semicolon or tab)
is the one under which the header has the image and label columns. All faults of a file are told at once.
"""

import csv
import io
import os
import stat
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from autotransfer.datasets.dataset import TARGET
from autotransfer.datasets.folder import SPLIT_ALIASES
from autotransfer.datasets.problems import listed, problems_error
from autotransfer.errors import DatasetError
from autotransfer.task import Task

MANIFEST_SUFFIXES = (".csv", ".tsv")
_DELIMITERS = (",", ";", "\t")
_UNKNOWN = ("", "nan", "na", "n/a", "none", "null")
_OPTIONAL_COLUMNS = ("split", "group")


class Manifest(NamedTuple):
    """What a manifest says: its samples, what is to be predicted of them, and the label columns' names."""

    samples: pd.DataFrame
    task: Task
    columns: tuple[str, ...]


class _Fault(NamedTuple):
    row: int
    what: str
    advice: str

    def __str__(self) -> str:
        return f"row {self.row}: {self.what}"


def read_manifest(
    path: Path,
    image_column: str = "image",
    label_column: str | Sequence[str] = "label",
    task: Task | None = None,
) -> Manifest:
    """Read image paths and what is to be predicted from a CSV file.

    Paths are absolute or relative to the manifest. A column `split` holds train, val or test in every row;
    in a column `group`, an empty cell means that the image is a group of its own. A column that is empty
    throughout counts as absent. A row that only repeats another is dropped.

    One label column holds classes, or numbers where all are numbers and some are not whole. Several hold
    labels where all cells are 0 or 1, else numbers. A file without the label column has several: all columns
    beside image, split and group. `task` overrides what the cells say.

    Returns:
        Columns `image` (absolute path), `label`, `split` ("" where not given), `group` if given, and
        `target.<name>` for labels and numbers; the task; the names of the label columns.

    Raises:
        DatasetError: If the file cannot be read, lacks a column, or has rows that cannot be used.
    """
    given = (label_column,) if isinstance(label_column, str) else tuple(label_column)
    if image_column in given or len(set(given)) < len(given):
        raise DatasetError(
            "image_column and label_column must be different columns, each named once, but are "
            f"{listed([image_column, *given])}."
        )
    table, names = _read_table(path, image_column, given)
    table["image"], not_found = _located(table["image"], path.parent)
    found = task or _task_of(table, names)
    if found == "classification":
        if len(names) > 1:
            raise DatasetError(
                f"{path.name} has {len(names)} label columns ({listed(names)}); classification takes one. Name it "
                "with label_column, or leave the task to be recognised."
            )
        table["label"] = [unicodedata.normalize("NFC", label) for label in table[f"{TARGET}{names[0]}"]]
        table = table.drop(columns=f"{TARGET}{names[0]}")
        faulty = _faulty_labels(table["label"])
    else:
        faulty = _read_numbers(table, names, found)
    faults = [*not_found, *faulty]
    if "split" in table:
        table["split"], unknown = _known_splits(table["split"])
        faults += unknown
    faults += _contradictions(table)
    if faults:
        faults.sort()
        raise problems_error(path.name, [str(fault) for fault in faults], [fault.advice for fault in faults])
    if "split" not in table:
        table["split"] = ""
    first = ["image", "label", "split"]
    table = table[first + [column for column in table.columns if column not in first]]
    return Manifest(table.drop_duplicates("image").reset_index(drop=True), found, names)


def _read_table(path: Path, image_column: str, label_columns: tuple[str, ...]) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The used columns as stripped text, indexed by row number, without blank rows; the label columns' names."""
    text = _read_text(path)
    needs = " and ".join(map(repr, (image_column, *label_columns)))
    if not text.strip():
        raise DatasetError(f"{path} is empty. It needs a header with {needs}.")
    header, records = _read_records(path, text, needed=(image_column, *label_columns))
    if label_columns == ("label",) and "label" not in header:
        others = [name for name in header if name not in (image_column, *_OPTIONAL_COLUMNS)]
        label_columns = tuple(others) if len(others) > 1 and image_column in header else label_columns
    columns = {"image": image_column, **{f"{TARGET}{name}": name for name in label_columns}}
    columns |= {name: name for name in _OPTIONAL_COLUMNS if name in header and name not in columns.values()}
    missing = [column for column in columns.values() if header.count(column) != 1]
    if missing:
        raise DatasetError(
            f"{path.name} needs the columns {needs}, each once, but has "
            f"{listed(header)}. Rename its columns, or name yours with image_column and label_column."
        )
    if not records:
        raise DatasetError(f"{path.name} has a header but no rows. Add one row per image.")
    wrong = [
        f"row {row}: {len(cells)} cells where the header has {len(header)}"
        for row, cells in records.items()
        if len(cells) != len(header)
    ]
    if wrong:
        raise problems_error(path.name, wrong, ["Put double quotes around values that hold the delimiter."])
    positions = {name: header.index(column) for name, column in columns.items()}
    table = pd.DataFrame(
        {name: [cells[position].strip() for cells in records.values()] for name, position in positions.items()},
        index=pd.Index(records.keys(), name="row"),
        dtype="str",
    )
    unused = [name for name in _OPTIONAL_COLUMNS if name in table and (table[name] == "").all()]
    return table.drop(columns=unused), label_columns


def _task_of(table: pd.DataFrame, names: Sequence[str]) -> Task:
    """Several columns of 0 and 1 are label sets, numbers that are not all whole are regression.

    Cells that say that nothing is known (nan, NA, none) do not count: they are told as faults of that task.
    """
    cells = table[[f"{TARGET}{name}" for name in names]]
    numbers = cells.apply(pd.to_numeric, errors="coerce").astype(float)
    if len(names) > 1:
        return "multilabel" if numbers.isin([0, 1]).all(axis=None) else "regression"
    known = numbers[~cells.iloc[:, 0].str.casefold().isin(_UNKNOWN)].iloc[:, 0]
    return "regression" if np.isfinite(known).all() and (known % 1 != 0).any() else "classification"


def _read_numbers(table: pd.DataFrame, names: Sequence[str], task: Task) -> list[_Fault]:
    """Turn the target columns into numbers and `label` into their text; the cells that hold none."""
    advice = {
        "multilabel": "A label is 1 where it is on the image, else 0.",
        "regression": "Give every image its number, or leave it out.",
    }[task]
    faults = []
    columns = [f"{TARGET}{name}" for name in names]
    texts = table[columns].copy()
    for name in names:
        column = f"{TARGET}{name}"
        numbers = pd.to_numeric(table[column], errors="coerce")
        bad = ~np.isfinite(numbers) if task == "regression" else ~numbers.isin([0, 1])
        for row, cell in table.loc[bad, column].items():
            what = f"{name!r} is {cell!r}, not {'a number' if task == 'regression' else '0 or 1'}"
            faults.append(_Fault(int(str(row)), what if cell else f"{name!r} is empty", advice))
        table[column] = numbers.astype(float)
    if task == "multilabel":
        on = table[columns].to_numpy() == 1
        table["label"] = ["; ".join(name for name, there in zip(names, row, strict=True) if there) for row in on]
    else:
        table["label"] = texts.agg("; ".join, axis=1)
    return faults


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise DatasetError(
            f"{path.name}, row {row}: not {encoding.removesuffix('-sig').upper()} text (byte "
            f"0x{data[error.start]:02x} at position {error.start}). Save the file as CSV in UTF-8."
        ) from error
    if "\0" in text:
        raise DatasetError(f"{path.name} holds binary data, not text. Save it as CSV in UTF-8.")
    return text


def _read_records(path: Path, text: str, needed: Sequence[str]) -> tuple[list[str], dict[int, list[str]]]:
    """Header and, by row number, the rows that are not blank."""
    first_line = text.lstrip().splitlines()[0]
    fitting = (d for d in _DELIMITERS if set(needed) <= {cell.strip(' "') for cell in first_line.split(d)})
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=next(fitting, ","), strict=True)
    try:
        rows = {row: cells for row, cells in enumerate(reader, start=1) if any(cell.strip() for cell in cells)}
    except csv.Error as error:
        raise DatasetError(f"{path.name}, line {reader.line_num}: not valid CSV ({error}).") from error
    header = rows.pop(min(rows, default=0), [])
    return [name.strip() for name in header], rows


def _located(images: "pd.Series[str]", folder: Path) -> tuple[list[str], list[_Fault]]:
    located: list[str] = []
    faults: list[_Fault] = []
    for row, image in zip(images.index, images, strict=True):
        path = os.path.normpath(folder / image)
        located.append(path)
        fault = _image_fault(image, path, folder)
        if fault:
            faults.append(_Fault(row, *fault))
    return located, faults


def _image_fault(image: str, path: str, folder: Path) -> tuple[str, str] | None:
    """What is wrong with an image cell, and what to do."""
    if not image:
        return "the image is empty", "Every row needs the path of an image."
    try:
        mode = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        looked_in = "" if Path(image).is_absolute() else f" (looked in {folder})"
        return f"image {image!r} does not exist{looked_in}", "Paths are relative to the manifest."
    except OSError as error:
        shown = image if len(image) <= 80 else f"{image[:80]}..."
        return f"image {shown!r} cannot be opened ({error.strerror})", "Every row needs the path of an image."
    if not stat.S_ISREG(mode):
        return f"image {image!r} is not a file", "Name one file per row."
    return None


def _faulty_labels(labels: "pd.Series[str]") -> list[_Fault]:
    advice = "Give every image a label, or leave it out."
    return [_Fault(row, "the label is empty", advice) for row in labels.index[labels == ""]]


def _known_splits(splits: "pd.Series[str]") -> tuple[list[str], list[_Fault]]:
    known = [SPLIT_ALIASES.get(split.casefold(), "") for split in splits]
    advice = "A split is train, val or test; leave the column out to have splits drawn."
    faults = [
        _Fault(row, f"the split is {split!r}" if split else "the split is empty", advice)
        for row, split, name in zip(splits.index, splits, known, strict=True)
        if not name
    ]
    return known, faults


def _contradictions(table: pd.DataFrame) -> list[_Fault]:
    """Images listed again with another label, split or group."""
    faults: list[_Fault] = []
    advice = "List each image once."
    again = table[table["image"].duplicated(keep=False)]
    for image, listings in again.groupby("image"):
        for column in listings.columns.drop("image"):
            values = listings[column]
            first = values.iloc[0]
            for row, value in values[values != first].items():
                what = f"image {Path(str(image)).name!r} has the {column} {value!r}"
                faults.append(_Fault(int(str(row)), f"{what} but {first!r} in row {values.index[0]}", advice))
    return faults
