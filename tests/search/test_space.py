"""What a search space promises: it loads as written, or says all that is wrong with it at once."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autotransfer.errors import SpaceError
from autotransfer.search.space import IntRange, Space, Training, list_spaces, load_space
from autotransfer.sources import find_sources


@pytest.fixture
def write(tmp_path: Path) -> Any:
    """`write({"metric": "auroc"})`: a valid space file, some top-level keys changed (None leaves one out)."""

    def write_space(changes: dict[Any, Any] | None = None) -> Path:
        path = tmp_path / "mine.yaml"
        content = {"sources": ["embedded:*"], **(changes or {})}
        path.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}), encoding="utf-8")
        return path

    return write_space


def refusal(path: Path | str, **overrides: Any) -> str:
    with pytest.raises(SpaceError) as caught:
        load_space(path, **overrides)
    return str(caught.value)


@pytest.mark.parametrize("name", ["default", "quick", "offline"])
def test_shipped_spaces_load_and_name_sources_that_exist(name):
    space = load_space(name)
    assert space.name == name
    assert space.description
    assert len(find_sources(space.sources)) >= 5


def test_every_shipped_file_is_a_space_by_name():
    assert list(list_spaces()) == sorted(list_spaces())
    for name, path in list_spaces().items():
        assert load_space(path) == load_space(name)


def test_a_file_needs_only_sources_and_is_named_after_itself(write):
    space = load_space(write())
    assert space == Space(name="mine", sources=["embedded:*"])


def test_numbers_may_be_written_as_people_write_them(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("sources: [a]\nparameters: {learning_rate: {min: 1e-4, max: 1}}", encoding="utf-8")
    assert load_space(path).parameters.learning_rate.min == 0.0001


@pytest.mark.parametrize(
    ("changes", "key", "phrases"),
    [
        ({"sources": None}, "sources", ["required"]),
        ({"sources": []}, "sources", ["at least 1"]),
        ({"sources": "embedded:*"}, "sources", ["list", "'embedded:*'"]),
        ({"source": ["a"]}, "source", ["sources", "budget", "pruning"]),
        ({"metric": "acc"}, "metric", ["'acc'", "accuracy", "balanced_accuracy", "macro_f1", "auroc", "log_loss"]),
        ({"proxies": ["logmee"]}, "proxies", ["'logmee'", "Did you mean 'logme'", "regularized_h_score", "leep"]),
        ({"budget": "ten minutes"}, "budget", ["'ten minutes'", "10m"]),
        ({"budget": -3}, "budget", ["longer than zero"]),
        ({"trials": 0}, "trials", ["greater than or equal to 1", "got 0"]),
        ({"parameters": 3}, "parameters", ["dictionary", "got 3"]),
        ({"parameters": {"lr": 1}}, "parameters.lr", ["upper_layers", "learning_rate", "weight_decay", "epochs"]),
        ({"parameters": {"upper_layers": ["cut"]}}, "parameters.upper_layers.0", ["'drop' or 'reinit'", "'cut'"]),
        ({"parameters": {"upper_layers": []}}, "parameters.upper_layers", ["at least 1"]),
        ({"parameters": {"epochs": {"min": 0, "max": 3}}}, "parameters.epochs.min", ["equal to 1", "got 0"]),
        ({"parameters": {"epochs": {"min": 5, "max": 3}}}, "parameters.epochs", ["min must be at most max", "5 > 3"]),
        ({"parameters": {"epochs": {"min": 1, "max": 3, "by": 2}}}, "parameters.epochs.by", ["min, max, step"]),
        (
            {"parameters": {"learning_rate": {"min": 1.0, "max": 0.1}}},
            "parameters.learning_rate",
            ["min must be at most max", "1.0 > 0.1"],
        ),
        (
            {"parameters": {"learning_rate": {"min": 0.0, "max": 0.1, "log": True}}},
            "parameters.learning_rate",
            ["a log range needs min > 0"],
        ),
        (
            {"parameters": {"learning_rate": {"min": 0.1, "max": float("inf")}}},
            "parameters.learning_rate.max",
            ["finite", "inf"],
        ),
        ({"parameters": {"weight_decay": {"min": -1, "max": 0.1}}}, "parameters.weight_decay.min", ["equal to 0"]),
        ({"training": {"batch": 3}}, "training.batch", ["batch_size", "augmentation", "max_image_size"]),
        ({"training": {"batch_size": 1}}, "training.batch_size", ["equal to 2", "got 1"]),
        ({"training": {"augmentation": "mirror"}}, "training.augmentation", ["'none', 'light' or 'flip'"]),
        ({"training": {"label_smoothing": 1}}, "training.label_smoothing", ["less than 1"]),
        ({"training": {"head": "zero"}}, "training.head", ["'linear_probe' or 'random'", "'zero'"]),
        ({"probing": {"max_train_images": 3}}, "probing.max_train_images", ["equal to 20"]),
        ({"pruning": {"proxy_keep": 0}}, "pruning.proxy_keep", ["greater than 0"]),
        ({"pruning": {"proxy_keep": 1.5}}, "pruning.proxy_keep", ["less than or equal to 1"]),
        ({1: 2}, "1", ["Keys should be strings"]),
    ],
)
def test_a_wrong_key_or_value_is_told_with_file_key_and_what_is_allowed(write, changes, key, phrases):
    path = write(changes)
    heading, error = refusal(path).splitlines()
    assert heading == f"Found 1 error in {path}:"
    assert error.startswith(f"  {key}: ")
    for phrase in phrases:
        assert phrase in error


def test_all_errors_are_told_at_once(write):
    path = write({"metric": "acc", "trials": 0, "training": {"head": "zero", "batch": 3}})
    heading, *errors = refusal(path).splitlines()
    assert heading == f"Found 4 errors in {path}:"
    assert {error.split(":")[0].strip() for error in errors} == {"metric", "trials", "training.head", "training.batch"}


def test_overrides_win_over_the_file_and_none_leaves_it(write):
    path = write({"metric": "auroc", "trials": 3})
    space = load_space(path, metric="log_loss", trials=None, sources=["embedded:test_vit*"])
    assert (space.metric, space.trials, space.sources) == ("log_loss", 3, ["embedded:test_vit*"])


def test_overrides_are_checked_like_the_file(write):
    assert "metric: unknown metric 'acc'" in refusal(write(), metric="acc")


def test_an_unknown_name_is_answered_with_the_names_there_are():
    message = refusal("defualt")
    for name in ("defualt", "default", "quick", "offline", ".yaml file"):
        assert name in message


def test_a_missing_file_is_named(tmp_path):
    assert str(tmp_path / "mine.yaml") in refusal(tmp_path / "mine.yaml")


@pytest.mark.parametrize("content", [b"sources: [", b"\xff\xfe\x00", b"a\x00b", b"key: {a: b"])
def test_a_file_that_is_not_yaml_is_told(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    assert f"{path} is not a YAML file" in refusal(path)


@pytest.mark.parametrize("content", ["", "- a\n- b", "sources", "3"])
def test_a_file_without_keys_is_told(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_text(content, encoding="utf-8")
    assert f"{path} must hold keys and values" in refusal(path)


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text("aé:*{0", max_size=4)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=2)
)
KEYS = [*Space.model_fields, "parameters.epochs", "parameters.learning_rate.max", "training.head", "unknown"]


@settings(deadline=None, max_examples=150)
@given(changes=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=4))
@example(changes={"budget": True})
def test_any_content_is_a_space_or_a_space_error(tmp_path_factory, changes):
    content: dict[str, Any] = {"sources": ["embedded:*"]}
    for key, value in changes.items():
        *outer, last = key.split(".")
        inner = content
        for name in outer:
            if not isinstance(inner.get(name), dict):
                inner[name] = {}
            inner = inner[name]
        inner[last] = value
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    try:
        assert isinstance(load_space(path), Space)
    except SpaceError as error:
        assert str(path) in str(error)


IDENTICAL = {"name": "other", "description": "said differently", "budget": "3m", "trials": 7, "sampler": "random"}
DIFFERENT: dict[str, Any] = {
    "sources": ["embedded:test_vit*"],
    "plugins": ["mine"],
    "metric": "auroc",
    "proxies": ["knn"],
    "parameters": {"epochs": {"min": 1, "max": 12}},
    "training": {"batch_size": 16},
    "probing": {"max_val_images": 30},
    "pruning": {"proxy_keep": 1},
}


def test_every_key_either_keeps_the_identity_or_changes_it():
    assert set(IDENTICAL) | set(DIFFERENT) == set(Space.model_fields)


@pytest.mark.parametrize("key", IDENTICAL)
def test_what_leaves_trials_comparable_keeps_the_identity(write, key):
    assert load_space(write({key: IDENTICAL[key]})).identity() == load_space(write()).identity()


@pytest.mark.parametrize("key", DIFFERENT)
def test_what_makes_trials_incomparable_changes_the_identity(write, key):
    assert load_space(write({key: DIFFERENT[key]})).identity() != load_space(write()).identity()


def test_writing_out_a_default_keeps_the_identity(write):
    spelled_out = write({"parameters": {"upper_layers": ["drop", "reinit"]}, "metric": "auto"})
    assert load_space(spelled_out).identity() == Space(sources=["embedded:*"]).identity()


@given(
    low=st.integers(1, 30),
    width=st.integers(0, 30),
    step=st.integers(1, 10),
    limit=st.none() | st.integers(-5, 70),
)
def test_the_largest_member_is_within_the_limit_where_one_is(low, width, step, limit):
    members = range(low, low + width + 1, step)
    fitting = [member for member in members if limit is None or member <= limit]
    largest = IntRange(min=low, max=low + width, step=step).largest(limit)
    assert largest == max(fitting, default=low)


def test_an_argument_that_is_wrong_is_not_blamed_on_the_file():
    with pytest.raises(SpaceError, match=r"^Found 1 error in the arguments:\n  metric: unknown metric 'accurracy'"):
        load_space("offline", metric="accurracy")


@pytest.mark.parametrize(
    ("imbalance", "task"), [("sampler", "multilabel"), ("sampler", "regression"), ("loss", "regression")]
)
def test_balancing_what_a_task_lacks_is_refused_before_anything_is_trained(imbalance, task):
    training = Training(imbalance=imbalance)
    training.check("classification")
    with pytest.raises(SpaceError, match=f"training.imbalance: {imbalance} needs"):
        training.check(task)
