"""The probe: one pass, the features of every level, kept for everyone on the machine."""

import dataclasses
import json
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from random_sources import SMALL_FAMILIES, random_network, write_source
from torch import nn

from autotransfer.datasets import decode_image
from autotransfer.errors import SourceError
from autotransfer.probing import probe
from autotransfer.sources import Source, find_sources

CPU = torch.device("cpu")
SIZE = 64


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return write_source(tmp_path / "source", "test_convnext")


@pytest.fixture
def take(source, dataset, tmp_path):
    """Probe the source on every third image; everything can be given differently."""

    def take(**changes):
        options = {"rows": np.arange(0, len(dataset), 3), "image_size": SIZE, "cache_dir": tmp_path / "cache"}
        options = {"source": source, "dataset": dataset, "device": CPU, **options, **changes}
        return probe(options.pop("source"), options.pop("dataset"), options.pop("rows"), **options)

    return take


def batch_of(source: Source, dataset, rows) -> torch.Tensor:
    """Normalised images, computed without the package's preprocessing."""
    data = source.data_config
    pixels = np.stack([decode_image(dataset.samples["image"][row], SIZE, data.interpolation) for row in rows])
    return torch.tensor((pixels / 255.0 - data.mean) / data.std, dtype=torch.float32).permute(0, 3, 1, 2)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal to 1e-5 of the largest feature."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1.0, float(np.abs(expected).max())))


def never() -> bool:
    return False


@pytest.mark.parametrize("architecture", SMALL_FAMILIES)
def test_features_of_every_level_are_those_of_the_whole_network(architecture, dataset, take, tmp_path):
    source = write_source(tmp_path / architecture, architecture, **SMALL_FAMILIES[architecture])
    made = take(source=source)
    model, images = source.load(), batch_of(source, dataset, made.rows)
    with torch.inference_mode():
        _, outputs = model.forward_intermediates(images)
        expected = [outputs[level.timm_index].mean(dim=(2, 3)) for level in source.levels[:-1]]
        expected.append(model.forward_head(model.forward_features(images), pre_logits=True).flatten(1))
        logits = model(images)
    assert len(made.features) == len(source.levels)
    for level, found in zip(source.levels, made.features, strict=True):
        assert found.dtype == np.float32
        assert found.shape == (len(made.rows), level.channels)
        assert_close(found, expected[level.index - 1].numpy())
    np.testing.assert_allclose(made.probabilities, logits.softmax(dim=1).numpy(), atol=1e-5)


def test_features_are_what_hooks_see_in_an_ordinary_forward_pass(dataset, take, tmp_path):
    source = write_source(tmp_path / "resnet", "resnet10t")
    made = take(source=source)
    model = source.load()
    seen: list[torch.Tensor] = []
    for module in (model.act1, model.layer1, model.layer2, model.layer3, model.layer4):
        module.register_forward_hook(lambda _module, _images, output: seen.append(output.mean(dim=(2, 3))))
    with torch.inference_mode():
        logits = model(batch_of(source, dataset, made.rows))
    for found, expected in zip(made.features, seen, strict=True):
        assert_close(found, expected.numpy())
    np.testing.assert_allclose(made.probabilities, logits.softmax(dim=1).numpy(), atol=1e-5)


def test_features_do_not_depend_on_the_batches(dataset, take, monkeypatch, tmp_path):
    whole = take()
    monkeypatch.setattr(import_module("autotransfer.probing.probe"), "BATCH_SIZE", 4)
    parts = take(cache_dir=tmp_path / "another cache")
    for one, other in zip(whole.features, parts.features, strict=True):
        assert_close(one, other)


def test_rows_are_found_by_their_position_in_the_dataset(dataset, take):
    every = take(rows=np.arange(len(dataset)))
    some = take(rows=np.array([3, 7, 20]))
    assert some.rows.tolist() == [3, 7, 20]
    for level in (1, 4):
        np.testing.assert_allclose(every.at(level, np.array([3, 7, 20])), some.features[level - 1], atol=1e-5)
        np.testing.assert_array_equal(some.at(level, np.array([20, 3])), some.features[level - 1][[2, 0]])


def test_a_source_without_a_classifier_has_no_probabilities(take, tmp_path):
    assert take(source=write_source(tmp_path / "headless", "test_convnext", num_classes=0)).probabilities is None


def test_a_loaded_network_gives_the_same_probe(source, take, tmp_path):
    given = take(model=source.load(), cache_dir=tmp_path / "another cache")
    for one, other in zip(take().features, given.features, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_second_probe_is_the_first_and_runs_nothing(take):
    first, second = take(), take(go_on=never)
    assert (first.cached, second.cached) == (False, True)
    assert dataclasses.replace(second, features=(), probabilities=None, rows=None, cached=False) == dataclasses.replace(
        first, features=(), probabilities=None, rows=None
    )
    for one, other in zip(first.features, second.features, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(first.probabilities, second.probabilities)


def test_the_same_weights_elsewhere_share_the_probe(source, take):
    take()
    moved = source.folder.rename(source.folder.with_name("moved"))
    assert take(source=find_sources([f"local-dir:{moved}"])[0]).cached


def test_another_split_or_label_is_another_task(dataset, take):
    take()
    samples = dataset.samples.assign(label=dataset.samples["label"].to_numpy()[::-1])
    assert not take(dataset=dataclasses.replace(dataset, samples=samples, fingerprint="another")).cached


def test_rows_in_another_order_of_samples_are_not_mixed_up(dataset, take):
    take(rows=np.arange(5))
    backwards = dataset.subset(np.arange(len(dataset))[::-1])
    assert backwards.fingerprint == dataset.fingerprint
    made = take(dataset=backwards, rows=np.arange(len(dataset) - 5, len(dataset)))
    np.testing.assert_allclose(made.features[0][::-1], take(rows=np.arange(5)).features[0], atol=1e-5)
    assert not take(dataset=backwards, rows=np.arange(5)).cached


def test_other_weights_rows_sizes_and_statistics_are_probed_anew(source, take, tmp_path):
    take()
    assert not take(source=write_source(tmp_path / "other", "test_convnext", seed=1)).cached
    assert not take(rows=np.arange(4)).cached
    assert not take(image_size=32).cached
    without = Path(source.folder).parent / "without"
    shutil.copytree(source.folder, without)
    changed = json.loads((without / "config.json").read_text())
    (without / "config.json").write_text(json.dumps({**changed, "model_args": {"act_layer": "silu"}}))
    assert not take(source=find_sources([f"local-dir:{without}"])[0]).cached  # the weights are the same
    config = source.folder / "config.json"
    config.write_text(config.read_text().replace("0.25", "0.26"))
    assert not take(source=find_sources([source.name])[0]).cached
    config.write_text(config.read_text().replace("0.26", "0.25").replace("bilinear", "bicubic"))
    assert not take(source=find_sources([source.name])[0]).cached


def test_what_is_known_is_not_computed_again(take, tmp_path):
    whole = take()
    part, asked = whole.rows[::2], []
    known = take(rows=part, cache_dir=tmp_path / "elsewhere")
    made = take(known=known, cache_dir=tmp_path / "elsewhere", go_on=lambda: asked.append(1) is None)
    assert len(asked) == 1 and not made.cached
    for found, expected in zip(made.features, whole.features, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(made.probabilities, whole.probabilities, atol=1e-5)
    assert take(rows=part[:3], known=known, cache_dir=tmp_path / "elsewhere").features[0].shape[0] == 3


def test_features_are_mapped_not_held(take):
    assert all(isinstance(features, np.memmap) for made in (take(), take()) for features in made.features)


def test_a_damaged_cache_is_computed_again(take, tmp_path):
    expected = take().features[2].copy()
    (path,) = (tmp_path / "cache" / "features").iterdir()
    path.write_bytes(path.read_bytes()[:1000])
    again = take()
    assert not again.cached
    np.testing.assert_array_equal(again.features[2], expected)
    assert take(go_on=never).cached


def test_probing_stops_when_asked_and_leaves_nothing_half_done(take, monkeypatch):
    monkeypatch.setattr(import_module("autotransfer.probing.probe"), "BATCH_SIZE", 4)
    answers = iter([True, False])
    with pytest.raises(InterruptedError, match="probing"):
        take(go_on=lambda: next(answers))
    assert next(answers, "all asked") == "all asked"
    assert not take().cached


def test_a_size_that_the_architecture_does_not_take_is_told(take):
    class Tiled(nn.Module):
        """As halonet: images are divided into blocks of 48."""

        def __init__(self) -> None:
            super().__init__()
            self.network = random_network("test_convnext")

        def __getattr__(self, name: str):
            return getattr(super().__getattr__("network"), name) if name != "network" else super().__getattr__(name)

        def forward_intermediates(self, images: torch.Tensor):
            assert images.shape[-1] % 48 == 0, "cannot be divided into blocks"
            return self.network.forward_intermediates(images)

    with pytest.raises(SourceError, match="fails at 64 px: cannot be divided into blocks"):
        take(model=Tiled())
    assert not take(model=Tiled(), image_size=96).cached


def test_a_source_that_cannot_be_cut_is_probed_at_full_depth(take, tmp_path, monkeypatch, dataset):
    import timm

    monkeypatch.delattr(timm.models.ResNet, "forward_intermediates")
    source = write_source(tmp_path / "whole", "resnet10t")
    made = take(source=source)
    model = source.load()
    with torch.inference_mode():
        expected = model.forward_head(model.forward_features(batch_of(source, dataset, made.rows)), pre_logits=True)
    (features,) = made.features
    assert_close(features, expected.numpy())
    assert made.probabilities is not None
