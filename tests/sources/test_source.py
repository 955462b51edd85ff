"""A source: what is known of it, and what is said when it cannot be used."""

import json
import os
from pathlib import Path

import pytest
import timm
import torch
from random_sources import random_network, write_source

from autotransfer.errors import SourceError
from autotransfer.sources import Source, find_sources, weights_hash


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return write_source(tmp_path / "model", "test_vit", img_size=64)


@pytest.fixture
def unreachable_hub(tmp_path: Path, monkeypatch):
    """No network, and nothing downloaded before."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


def again(source: Source) -> Source:
    """The same source, found anew: nothing is remembered."""
    return find_sources([source.name])[0]


def edit(source: Source, **changes: object) -> Source:
    """Change the source's config.json; None takes a key out."""
    path = source.folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return again(source)


def test_a_folder_tells_architecture_arguments_and_data_config(source):
    assert source.architecture == "test_vit"
    assert source.model_args == {"img_size": 64}
    data = source.data_config
    assert (data.image_size, data.fixed_image_size, data.interpolation) == (64, True, "bilinear")
    assert (data.mean, data.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


def test_a_timm_source_is_described_without_its_weights(unreachable_hub):
    (source,) = find_sources(["test_efficientnet.r160_in1k"])
    assert source.architecture == "test_efficientnet"
    assert source.data_config.image_size == 160
    assert source.has_classifier
    assert source.parameter_count() == source.levels[-1].parameter_count > 90_000


def test_data_config_is_that_of_timm():
    (source,) = find_sources(["embedded:resnet10t.glyphs"])
    expected = timm.data.resolve_model_data_config(timm.create_model(source.timm_name))
    data = source.data_config
    assert (3, data.image_size, data.image_size) == tuple(expected["input_size"])
    assert (data.mean, data.std) == (tuple(expected["mean"]), tuple(expected["std"]))
    assert data.interpolation == expected["interpolation"]


def test_loading_gives_the_saved_weights_ready_to_predict(source):
    model = source.load()
    expected = random_network("test_vit", img_size=64)
    assert not model.training
    assert weights_hash(model) == weights_hash(expected)


def test_building_gives_fresh_weights_and_any_number_of_classes(source):
    torch.manual_seed(1)
    model = source.build()
    assert model.get_classifier().out_features == 5
    assert source.build(num_classes=7).get_classifier().out_features == 7
    loaded = dict(source.load().named_parameters())
    assert not any(torch.equal(parameter, loaded[name]) for name, parameter in model.named_parameters())


def test_a_source_without_a_classifier_says_so(tmp_path: Path):
    headless = write_source(tmp_path / "headless", "test_convnext", num_classes=0)
    assert not headless.has_classifier
    assert [level.channels for level in headless.levels] == [24, 32, 48, 64]
    assert headless.load().get_classifier().__class__.__name__ == "Identity"


def test_equal_networks_have_equal_hashes():
    first, second = random_network("test_efficientnet"), random_network("test_efficientnet")
    assert weights_hash(first) == weights_hash(second)
    second.train().requires_grad_(False).to(memory_format=torch.channels_last)
    assert weights_hash(first) == weights_hash(second)
    assert weights_hash(first) != weights_hash(random_network("test_efficientnet", seed=1))


def test_one_changed_weight_or_statistic_changes_the_hash():
    model = random_network("test_efficientnet")
    hashes = {weights_hash(model)}
    for tensor in (model.conv_stem.weight, model.bn1.running_mean, model.get_classifier().bias):
        with torch.no_grad():
            tensor.view(-1)[0] += 1e-6
        hashes.add(weights_hash(model))
    assert len(hashes) == 4


def test_the_hash_does_not_depend_on_where_the_weights_lie(source, tmp_path: Path):
    moved = tmp_path / "elsewhere"
    source.folder.rename(moved)
    (found,) = find_sources([f"local-dir:{moved}"])
    assert weights_hash(found.load()) == weights_hash(random_network("test_vit", img_size=64))


@pytest.mark.parametrize("name", ["hf-hub:nobody-nowhere/no-such-model", "test_vit.r160_in1k"])
def test_an_unreachable_hub_is_told(unreachable_hub, name):
    (source,) = find_sources([name])
    with pytest.raises(SourceError, match=rf"source '{name}' cannot be loaded: .*(hub|Hub|HF_HUB_OFFLINE|offline)"):
        source.load()


def test_an_unreachable_description_is_told(unreachable_hub):
    (source,) = find_sources(["hf-hub:nobody-nowhere/no-such-model"])
    with pytest.raises(SourceError, match="source 'hf-hub:nobody-nowhere/no-such-model' cannot be read: "):
        _ = source.levels


def test_missing_weights_are_told(source):
    (source.folder / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="cannot be loaded: No suitable checkpoints found"):
        again(source).load()


@pytest.mark.parametrize("damage", [lambda data: data[: len(data) // 2], lambda data: b"\xff" * 100, lambda data: b""])
def test_damaged_weights_are_told(source, damage):
    weights = source.folder / "model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(SourceError, match=r"model' cannot be loaded: \w+"):
        again(source).load()


def test_weights_of_another_shape_are_told(source):
    with pytest.raises(SourceError, match=r"cannot be loaded: .*size mismatch for head\.weight"):
        edit(source, num_classes=6).load()


def test_pickled_code_is_never_run(source, tmp_path: Path):
    class Malicious:
        def __reduce__(self) -> tuple[object, ...]:
            return os.mkdir, (str(tmp_path / "broken in"),)

    (source.folder / "model.safetensors").unlink()
    torch.save({"head.weight": Malicious()}, source.folder / "pytorch_model.bin")
    with pytest.raises(SourceError, match="cannot be loaded"):
        again(source).load()
    assert not (tmp_path / "broken in").exists()


@pytest.mark.parametrize("text", ["{", "[]", "null", '{"num_classes": 3}', "\xff"])
def test_a_config_that_is_not_timms_is_told_with_its_path(source, text):
    (source.folder / "config.json").write_text(text, encoding="latin-1")
    broken = again(source)
    with pytest.raises(SourceError, match=r"cannot be read: .*config\.json"):
        _ = broken.levels
    with pytest.raises(SourceError, match="cannot be loaded"):
        broken.load()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "no_such_net"}, "no architecture 'no_such_net'.*--plugin"),
        ({"architecture": "resnet10t"}, "cannot be built: .*img_size"),
        ({"model_args": {"patch_size": "wide"}}, "cannot be built: "),
        (
            {"pretrained_cfg": {"input_size": [3, 48, 48]}, "model_args": {"img_size": 64, "dynamic_img_size": False}},
            "cannot be used: .*48",
        ),
        ({"pretrained_cfg": {"input_size": "large"}}, "does not say what images it takes"),
        ({"pretrained_cfg": {"input_size": [3, 64, 64], "mean": [0.5]}}, "does not say what images it takes"),
    ],
)
def test_a_config_that_does_not_fit_is_told(source, changes, message):
    with pytest.raises(SourceError, match=message):
        _ = edit(source, **changes).levels


def test_a_description_that_lacks_its_architecture_is_told(source):
    with pytest.raises(SourceError, match="'architecture' is missing"):
        _ = edit(source, architecture=None).architecture


def test_levels_are_the_same_wherever_they_are_asked_for(source):
    expected = [level.parameters for level in source.levels]
    state = torch.get_rng_state()
    with torch.inference_mode():
        assert [level.parameters for level in again(source).levels] == expected
    assert torch.equal(torch.get_rng_state(), state)
    assert len(expected) > 1
