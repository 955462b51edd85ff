"""How a CSV manifest is read, and how its faults are told by row."""

import csv
import tempfile
import unicodedata
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autotransfer.datasets.manifest import read_manifest
from autotransfer.errors import DatasetError


def read(*arguments, **options) -> pd.DataFrame:
    """The samples of a manifest."""
    return read_manifest(*arguments, **options).samples


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """cats/0.png to cats/4.png: the reader asks only whether they exist."""
    (tmp_path / "cats").mkdir()
    for number in range(5):
        (tmp_path / "cats" / f"{number}.png").touch()
    return tmp_path


def manifest(folder: Path, text: str, encoding: str = "utf-8", name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


def assert_refused(path: Path, *parts: str, **options: str) -> None:
    with pytest.raises(DatasetError) as caught:
        read(path, **options)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def test_paths_are_relative_to_the_manifest_or_absolute(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "1.png"
    outside.touch()
    samples = read(manifest(folder, f"image,label\ncats/0.png,cat\n{outside},dog\n"))
    assert samples["image"].to_list() == [str(folder / "cats" / "0.png"), str(outside)]
    assert samples["label"].to_list() == ["cat", "dog"]
    assert samples["split"].to_list() == ["", ""]
    assert "group" not in samples


def test_splits_and_groups_are_read(folder):
    text = "group,split,label,image\np1,Train,cat,cats/0.png\n,valid,cat,cats/1.png\np2,test,cat,cats/2.png\n"
    samples = read(manifest(folder, text))
    assert samples["split"].to_list() == ["train", "val", "test"]
    assert samples["group"].to_list() == ["p1", "", "p2"]


def test_columns_that_are_empty_throughout_count_as_absent(folder):
    samples = read(manifest(folder, "image,label,split,group\ncats/0.png,a,,\ncats/1.png,b,,\n"))
    assert set(samples["split"]) == {""}
    assert "group" not in samples


def test_columns_can_be_named(folder):
    path = manifest(folder, "file,kind,image,label\ncats/0.png,cat,7,8\n")
    samples = read(path, image_column="file", label_column="kind")
    assert samples.loc[0, ["label"]].to_list() == ["cat"]


def test_labels_that_look_like_numbers_or_nothing_stay_text(folder):
    path = manifest(folder, "image,label\ncats/0.png,007\ncats/1.png,NA\ncats/2.png,null\ncats/3.png,1.0\n")
    assert read(path)["label"].to_list() == ["007", "NA", "null", "1.0"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_as_spreadsheets_save_them_are_read(folder, delimiter, encoding):
    text = f"image{delimiter}label\r\ncats/0.png{delimiter}Kätzchen\r\n\r\ncats/1.png{delimiter}犬\r\n"
    assert read(manifest(folder, text, encoding))["label"].to_list() == ["Kätzchen", "犬"]


def test_a_repeated_row_counts_once(folder):
    path = manifest(folder, "image,label\ncats/0.png,cat\ncats/../cats/0.png,cat\ncats/1.png,dog\n")
    assert read(path)["label"].to_list() == ["cat", "dog"]


def test_a_missing_image_is_told_with_its_row_and_where_it_was_looked_for(folder):
    path = manifest(folder, "image,label\ncats/0.png,cat\n\ncats/9.png,cat\n")
    expected = (
        f"labels.csv, row 4: image 'cats/9.png' does not exist (looked in {folder}). "
        "Paths are relative to the manifest."
    )
    assert_refused(path, expected)


def test_a_cell_too_long_for_a_path_is_told(folder):
    assert_refused(manifest(folder, f"image,label\n{'x' * 9000},cat\n"), "row 2: image", "cannot be opened")


def test_all_faults_are_told_at_once_in_the_order_of_rows(folder):
    path = manifest(
        folder,
        "image,label,split\ncats/0.png,,train\n,cat,train\ncats/1.png,cat,holdout\ncats/9.png,cat,\ncats,cat,test\n",
    )
    with pytest.raises(DatasetError) as caught:
        read(path)
    lines = str(caught.value).splitlines()
    assert lines[0] == "Found 6 problems in labels.csv:"
    assert [line.split(":")[0].strip(" -") for line in lines[1:7]] == [
        *("row 2", "row 3", "row 4", "row 5", "row 5", "row 6")
    ]
    assert "the label is empty" in lines[1]
    assert "the image is empty" in lines[2]
    assert "the split is 'holdout'" in lines[3]
    assert "is not a file" in lines[6]
    assert "A split is train, val or test" in lines[7]


def test_many_faults_are_counted_and_shortened(folder):
    rows = "".join(f"gone/{number}.png,cat\n" for number in range(100))
    path = manifest(folder, "image,label\n" + rows)
    assert_refused(path, "Found 100 problems", "row 2: ", "... and 90 more")


@pytest.mark.parametrize("column", ["label", "split", "group"])
def test_an_image_listed_twice_with_different_values_is_refused(folder, column):
    values = {"label": "cat", "split": "train", "group": "p1"}
    changed = values | {column: "test" if column == "split" else "other"}
    rows = [",".join(["cats/0.png", *row.values()]) for row in (values, changed)]
    path = manifest(folder, "\n".join(["image,label,split,group", *rows]))
    first, second = values[column], changed[column]
    assert_refused(path, f"row 3: image '0.png' has the {column} '{second}' but '{first}' in row 2")


def test_missing_columns_list_what_is_there_and_name_the_options(folder):
    path = manifest(folder, "file,kind\ncats/0.png,cat\n")
    assert_refused(path, "'image' and 'label'", "'file', 'kind'", "image_column and label_column")


def test_a_column_that_is_there_twice_is_refused(folder):
    assert_refused(manifest(folder, "image,label,label\ncats/0.png,cat,dog\n"), "each once")


def test_one_column_cannot_be_both_image_and_label(folder):
    path = manifest(folder, "image,label\ncats/0.png,cat\n")
    assert_refused(path, "different columns", image_column="label")


@pytest.mark.parametrize("text", ["", "\n\n", "\ufeff"])
def test_an_empty_file_is_told(folder, text):
    assert_refused(manifest(folder, text), "is empty", "header")


def test_a_header_without_rows_is_told(folder):
    assert_refused(manifest(folder, "image,label\n\n"), "no rows")


def test_rows_of_another_length_are_told(folder):
    path = manifest(folder, "image,label\ncats/0.png,cat,big\ncats/1.png\n")
    assert_refused(path, "row 2: 3 cells where the header has 2", "row 3: 1 cells", "double quotes")


def test_text_in_another_encoding_is_told_with_its_row(folder):
    path = manifest(folder, "image,label\ncats/0.png,cat\ncats/1.png,café\n", "latin-1")
    assert_refused(path, "labels.csv, row 3: not UTF-8 text (byte 0xe9", "UTF-8")


def test_binary_files_are_refused(folder):
    assert_refused(manifest(folder, "PK\3\4\0\0image,label"), "binary data")


def test_an_unclosed_quote_is_told(folder):
    assert_refused(manifest(folder, 'image,label\n"cats/0.png,cat\ncats/1.png,dog\n'), "not valid CSV")


text_cells = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
labels_and_groups = st.lists(
    st.tuples(
        text_cells.map(str.strip).filter(bool),
        st.sampled_from(["train", "val", "test"]),
        text_cells | st.just(""),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(rows=labels_and_groups, delimiter=st.sampled_from([",", ";", "\t"]), data=st.data())
def test_what_is_written_is_read_whatever_the_text_order_and_delimiter(rows, delimiter, data):
    columns = data.draw(st.permutations(["image", "label", "split", "group", "note"]))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        records = []
        for number, (label, split, group) in enumerate(rows):
            (folder / f"{number}.png").touch()
            values = {
                "image": f"{number}.png",
                "label": label,
                "split": split,
                "group": group,
                "note": 'a,"b;',
            }
            records.append([values[column] for column in columns])
        with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=delimiter).writerows([columns, *records])
        samples = read(folder / "labels.csv")
    assert samples["label"].to_list() == [unicodedata.normalize("NFC", label) for label, _, _ in rows]
    assert samples["split"].to_list() == [split for _, split, _ in rows]
    if any(group.strip() for _, _, group in rows):
        assert samples["group"].to_list() == [group.strip() for _, _, group in rows]


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=200) | st.text(alphabet='image,label\n";\0 x', max_size=80).map(str.encode))
def test_any_bytes_are_read_or_refused_with_a_dataset_error(content):
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "labels.csv"
        path.write_bytes(content)
        with pytest.raises(DatasetError):
            read(path)


# Label sets and numbers


def test_several_columns_of_0_and_1_are_label_sets(folder):
    text = "image,cat,dog,split\ncats/0.png,1,1,train\ncats/1.png,0,0,test\ncats/2.png,0,1,val\n"
    samples, task, columns = read_manifest(manifest(folder, text))
    assert (task, columns) == ("multilabel", ("cat", "dog"))
    assert samples["target.cat"].to_list() == [1, 0, 0]
    assert samples["target.dog"].to_list() == [1, 0, 1]
    assert samples["label"].to_list() == ["cat; dog", "", "dog"]
    assert samples["split"].to_list() == ["train", "test", "val"]


@pytest.mark.parametrize("values", [("1.5", "2", "-3e2"), ("0.1", "1", "1")])
def test_a_label_column_of_numbers_that_are_not_all_whole_is_regression(folder, values):
    rows = "".join(f"cats/{index}.png,{value}\n" for index, value in enumerate(values))
    samples, task, columns = read_manifest(manifest(folder, f"image,label\n{rows}"))
    assert (task, columns) == ("regression", ("label",))
    assert samples["target.label"].to_list() == [float(value) for value in values]
    assert samples["label"].to_list() == list(values)


@pytest.mark.parametrize("values", [("1", "2", "3"), ("1.0", "2.0", "2.0"), ("1.5", "two", "3"), ("1.5", "nan", "inf")])
def test_whole_numbers_and_text_are_classes(folder, values):
    rows = "".join(f"cats/{index}.png,{value}\n" for index, value in enumerate(values))
    samples, task, _ = read_manifest(manifest(folder, f"image,label\n{rows}"))
    assert task == "classification"
    assert samples["label"].to_list() == list(values)


def test_several_columns_of_other_numbers_are_regression(folder):
    text = "image,x,y\ncats/0.png,0,1\ncats/1.png,2,0\n"
    samples, task, columns = read_manifest(manifest(folder, text))
    assert (task, columns) == ("regression", ("x", "y"))
    assert samples["label"].to_list() == ["0; 1", "2; 0"]


def test_label_columns_can_be_named_and_the_task_set(folder):
    path = manifest(folder, "image,note,x,y,label\ncats/0.png,a,0,1,1\ncats/1.png,b,1,0,2\n")
    assert read_manifest(path, label_column=["y", "x"]).columns == ("y", "x")
    assert read_manifest(path, label_column=["x", "y"], task="regression").task == "regression"
    assert read_manifest(path, task="regression").samples["target.label"].to_list() == [1, 2]
    assert read_manifest(path).task == "classification"


@pytest.mark.parametrize(
    ("text", "options", "parts"),
    [
        (
            "image,a,b\ncats/0.png,1,0\ncats/1.png,yes,1\ncats/2.png,,1\n",
            {"task": "multilabel"},
            ["row 3: 'a' is 'yes', not 0 or 1", "row 4: 'a' is empty", "1 where it is on the image"],
        ),
        (
            "image,label\ncats/0.png,1.5\ncats/1.png,tall\n",
            {"task": "regression"},
            ["row 3: 'label' is 'tall', not a number"],
        ),
        ("image,label\ncats/0.png,1.5\ncats/1.png,inf\n", {"task": "regression"}, ["row 3: 'label' is 'inf'"]),
        ("image,a,b\ncats/0.png,1,0\n", {"task": "classification"}, ["2 label columns ('a', 'b')", "takes one"]),
        ("image,a,b\ncats/0.png,1,0\n", {"label_column": ["a", "c"]}, ["'image' and 'a' and 'c'"]),
        ("image,a,b\ncats/0.png,1,0\n", {"label_column": ["a", "a"]}, ["each named once"]),
    ],
)
def test_cells_that_hold_no_label_or_number_are_told(folder, text, options, parts):
    assert_refused(manifest(folder, text), *parts, **options)
