"""A CSV manifest -> samples, with every fault told by its row.

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

import pandas as pd

from autotransfer.datasets.folder import SPLIT_ALIASES
from autotransfer.datasets.problems import listed, problems_error
from autotransfer.errors import DatasetError

MANIFEST_SUFFIXES = (".csv", ".tsv")
_DELIMITERS = (",", ";", "\t")
_OPTIONAL_COLUMNS = ("split", "group")


class _Fault(NamedTuple):
    row: int
    what: str
    advice: str

    def __str__(self) -> str:
        return f"row {self.row}: {self.what}"


def read_manifest(path: Path, image_column: str = "image", label_column: str = "label") -> pd.DataFrame:
    """Read image paths and labels from a CSV file.

    Paths are absolute or relative to the manifest. A column `split` holds train, val or test in every row;
    in a column `group`, an empty cell means that the image is a group of its own. A column that is empty
    throughout counts as absent. A row that only repeats another is dropped.

    Returns:
        Columns `image` (absolute path), `label`, `split` ("" where not given), and `group` if given.

    Raises:
        DatasetError: If the file cannot be read, lacks a column, or has rows that cannot be used.
    """
    if image_column == label_column:
        raise DatasetError(
            f"image_column and label_column must be two different columns but both are {image_column!r}."
        )
    table = _read_table(path, image_column, label_column)
    table["image"], not_found = _located(table["image"], path.parent)
    table["label"] = [unicodedata.normalize("NFC", label) for label in table["label"]]
    faults = [*not_found, *_faulty_labels(table["label"])]
    if "split" in table:
        table["split"], unknown = _known_splits(table["split"])
        faults += unknown
    faults += _contradictions(table)
    if faults:
        faults.sort()
        raise problems_error(path.name, [str(fault) for fault in faults], [fault.advice for fault in faults])
    if "split" not in table:
        table.insert(2, "split", "")
    return table.drop_duplicates("image").reset_index(drop=True)


def _read_table(path: Path, image_column: str, label_column: str) -> pd.DataFrame:
    """The used columns as stripped text, indexed by row number, without blank rows."""
    text = _read_text(path)
    if not text.strip():
        raise DatasetError(f"{path} is empty. It needs a header with {image_column!r} and {label_column!r}.")
    header, records = _read_records(path, text, needed=(image_column, label_column))
    columns = {"image": image_column, "label": label_column}
    columns |= {name: name for name in _OPTIONAL_COLUMNS if name in header and name not in columns.values()}
    missing = [column for column in columns.values() if header.count(column) != 1]
    if missing:
        raise DatasetError(
            f"{path.name} needs the columns {image_column!r} and {label_column!r}, each once, but has "
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
    return table.drop(columns=unused)


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
