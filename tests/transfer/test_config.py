"""The transfer configuration: hashable, JSON-able, and written in one way only."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autotransfer.transfer.config import TransferConfig, canonical

LEVELS = 4


@st.composite
def configs(draw: st.DrawFn) -> TransferConfig:
    transferred = draw(st.integers(0, LEVELS))
    return TransferConfig(
        source=draw(st.text(max_size=5)),
        transferred_layers=transferred,
        upper_layers=draw(st.sampled_from(["drop", "reinit"])),
        frozen_layers=draw(st.integers(0, transferred)),
        learning_rate=draw(st.floats(1e-6, 1)),
        weight_decay=draw(st.floats(0, 1)),
        epochs=draw(st.integers(0, 3)),
        batch_size=draw(st.integers(1, 64)),
        image_size=draw(st.integers(1, 300)),
        augmentation=draw(st.sampled_from(["none", "light", "flip"])),
        label_smoothing=draw(st.floats(0, 1)),
        drop_rate=draw(st.floats(0, 1)),
        head=draw(st.sampled_from(["linear_probe", "random"])),
    )


@given(config=configs())
def test_json_and_back_is_the_same_configuration(config):
    again = TransferConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert again == config
    assert hash(again) == hash(config)
    assert list(config.to_dict()) == [field.name for field in dataclasses.fields(TransferConfig)]


@given(config=configs())
def test_the_canonical_form_is_canonical(config):
    once = canonical(config, LEVELS)
    assert canonical(once, LEVELS) == once
    assert once.transferred_layers == config.transferred_layers
    assert 0 <= once.frozen_layers <= once.transferred_layers


@given(config=configs(), upper=st.sampled_from(["drop", "reinit"]), head=st.sampled_from(["linear_probe", "random"]))
def test_from_scratch_nothing_but_training_is_left_to_choose(config, upper, head):
    scratch = config.replace(transferred_layers=0, frozen_layers=0)
    one, other = (canonical(c, LEVELS) for c in (scratch, scratch.replace(upper_layers=upper, head=head)))
    assert one == other
    assert (one.upper_layers, one.frozen_layers, one.head) == ("reinit", 0, "random")
    assert one.from_scratch


@given(config=configs())
def test_at_full_depth_there_is_nothing_above(config):
    full = config.replace(transferred_layers=LEVELS)
    assert canonical(full.replace(upper_layers="reinit"), LEVELS) == canonical(
        full.replace(upper_layers="drop"), LEVELS
    )
    assert canonical(full, LEVELS).frozen_layers == config.frozen_layers


@given(config=configs())
def test_in_between_every_choice_means_something(config):
    if 0 < config.transferred_layers < LEVELS:
        assert canonical(config, LEVELS) == config


@pytest.mark.parametrize(
    ("transferred", "frozen", "upper", "epochs", "expected"),
    [
        (0, 0, "reinit", 5, (True, False, False)),
        (3, 3, "drop", 5, (False, True, False)),
        (3, 3, "drop", 0, (False, True, True)),
        (3, 3, "reinit", 5, (False, False, False)),
        (3, 2, "drop", 0, (False, False, False)),
        (3, 0, "drop", 5, (False, False, False)),
    ],
)
def test_kinds_of_transfer(transferred, frozen, upper, epochs, expected):
    config = TransferConfig(
        source="s",
        transferred_layers=transferred,
        upper_layers=upper,
        frozen_layers=frozen,
        learning_rate=0.1,
        epochs=epochs,
    )
    assert (config.from_scratch, config.feature_extraction, config.linear_probe) == expected


def test_a_configuration_cannot_be_changed_in_place():
    config = TransferConfig(source="s", transferred_layers=1, upper_layers="drop", frozen_layers=0, learning_rate=0.1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.epochs = 3
    assert config.replace(epochs=3).epochs == 3
