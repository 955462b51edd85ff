"""The trained model: what is saved is what is opened, by autotransfer and by timm."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from random_sources import write_source
from safetensors.torch import load_file, save_file

from autotransfer.datasets import decode_image
from autotransfer.errors import AutotransferError, DatasetError, ModelDirectoryError, SourceError
from autotransfer.sources import Source, load_plugins, weights_hash
from autotransfer.transfer.config import TransferConfig
from autotransfer.transfer.model import TrainedModel, load_model
from autotransfer.transfer.surgery import transfer

CLASSES = ("ant", "bee", "çat: 3")
CASES = [
    ("test_efficientnet", 5, "drop"),
    ("test_efficientnet", 2, "drop"),
    ("test_efficientnet", 2, "reinit"),
    ("test_efficientnet", 0, "reinit"),
    ("test_convnext", 4, "drop"),
    ("test_vit", 6, "drop"),
    ("test_vit", 3, "drop"),
    ("mobilenetv3_small_050", 5, "drop"),
    ("levit_128s", 3, "drop"),
    ("deit_tiny_distilled_patch16_224", 3, "drop"),
    ("swin_tiny_patch4_window7_224", 2, "drop"),
]


def make_model(source: Source, k: int, upper: str = "drop", plugins: tuple[str, ...] = ()) -> TrainedModel:
    """A model that could have been trained: no weight or statistic is a default."""
    torch.manual_seed(3)
    network = transfer(source, transferred_layers=k, upper_layers=upper, frozen_layers=0, num_classes=len(CLASSES))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.1)
    config = TransferConfig(
        source=source.name,
        transferred_layers=k,
        upper_layers=upper,
        frozen_layers=0,
        learning_rate=1e-3,
        image_size=64,
        drop_rate=0.2,
    )
    return TrainedModel(network.eval(), CLASSES, config, source, source.data_config, plugins)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    generator = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    paths = [tmp_path / "pictures" / f"{number}.png" for number in range(5)]
    for path in paths:
        Image.fromarray(generator.integers(0, 256, (50, 70, 3), dtype=np.uint8)).save(path)
    return paths


@pytest.fixture
def saved(get_source, tmp_path: Path) -> Path:
    return make_model(get_source("test_vit"), 3).save(tmp_path / "saved")


def normalised(model: TrainedModel, pictures: list[Path]) -> torch.Tensor:
    data = model.preprocessing
    pixels = np.stack([decode_image(path, 64, data.interpolation) for path in pictures])
    return torch.tensor((pixels / 255.0 - data.mean) / data.std, dtype=torch.float32).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("architecture", "k", "upper"), CASES)
def test_what_is_saved_is_what_is_opened(get_source, pictures, tmp_path, architecture, k, upper):
    model = make_model(get_source(architecture), k, upper)
    folder = model.save(tmp_path / "new" / "folder")
    again = load_model(folder)
    assert (again.classes, again.config, again.preprocessing) == (CLASSES, model.config, model.preprocessing)
    assert not again.network.training
    np.testing.assert_allclose(again.outputs(pictures), model.outputs(pictures), atol=1e-6)
    twice = load_model(again.save(tmp_path / "again"))
    assert weights_hash(twice.network) == weights_hash(model.network)


@pytest.mark.parametrize(("architecture", "k", "upper"), [*CASES, ("efficientvit_m0", 3, "drop")])
def test_a_model_that_was_not_cut_opens_with_timm(get_source, pictures, tmp_path, architecture, k, upper):
    model = make_model(get_source(architecture), k, upper)
    folder = model.save(tmp_path / "saved")
    said = json.loads((folder / "autotransfer.json").read_text(encoding="utf-8"))["opens_with_timm"]
    assert said == model.opens_with_timm
    whole = upper == "reinit" or k == len(model.source.levels)
    one_linear_layer = architecture not in ("levit_128s", "deit_tiny_distilled_patch16_224", "efficientvit_m0")
    assert said == (whole and one_linear_layer)
    if said:
        opened = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        images = normalised(model, pictures)
        with torch.inference_mode():
            torch.testing.assert_close(opened(images), model.network(images), rtol=1e-5, atol=1e-5)


def test_timms_own_transform_for_the_folder_gives_the_same_predictions(get_source, pictures, tmp_path):
    model = make_model(get_source("test_efficientnet"), 5)
    opened = timm.create_model(f"local-dir:{model.save(tmp_path / 'saved')}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(opened))
    with torch.inference_mode():
        found = opened(torch.stack([transform(Image.open(path)) for path in pictures])).softmax(dim=1)
    np.testing.assert_allclose(model.outputs(pictures), found.numpy(), atol=1e-5)


def test_predictions_name_image_label_and_probabilities(get_source, pictures):
    model = make_model(get_source("test_vit"), 3)
    expected = model.network(normalised(model, pictures)).softmax(dim=1).detach().numpy()
    frame = model.predict(pictures)
    assert list(frame.columns) == ["image", "label", "confidence", *(f"probability.{name}" for name in CLASSES)]
    assert frame["image"].to_list() == [str(path) for path in pictures]
    assert frame["label"].to_list() == [CLASSES[best] for best in expected.argmax(axis=1)]
    np.testing.assert_allclose(frame["confidence"], expected.max(axis=1), atol=1e-5)
    np.testing.assert_allclose(frame.iloc[:, 3:].to_numpy(float), expected, atol=1e-5)


def test_paths_and_bytes_are_the_same_images_in_any_number(get_source, pictures, monkeypatch):
    model = make_model(get_source("test_vit"), 3)
    expected = model.outputs(pictures)
    np.testing.assert_array_equal(model.outputs([path.read_bytes() for path in pictures]), expected)
    np.testing.assert_array_equal(model.outputs([str(path) for path in pictures]), expected)
    assert model.predict([pictures[0].read_bytes()])["image"].to_list() == ["<bytes>"]
    monkeypatch.setattr("autotransfer.transfer.model._PREDICT_AT_ONCE", 2)
    np.testing.assert_allclose(model.outputs(pictures), expected, atol=1e-6)
    assert model.outputs([]).shape == (0, len(CLASSES))
    assert len(model.predict([])) == 0


def test_a_file_that_is_no_image_is_told_by_name(get_source, tmp_path):
    (tmp_path / "notes.png").write_text("no image")
    with pytest.raises(DatasetError, match=r"notes\.png"):
        make_model(get_source("test_vit"), 3).predict([tmp_path / "notes.png"])


def test_a_saved_model_does_not_need_its_source_or_its_place(pictures, tmp_path):
    source = write_source(tmp_path / "source", "test_efficientnet")
    model = make_model(source, 2)
    expected = model.outputs(pictures)
    model.save(tmp_path / "saved").rename(tmp_path / "moved")
    for path in source.folder.iterdir():
        path.unlink()
    np.testing.assert_allclose(load_model(tmp_path / "moved").outputs(pictures), expected, atol=1e-6)


def test_saving_twice_replaces_the_first(get_source, pictures, tmp_path):
    make_model(get_source("test_vit"), 3).save(tmp_path / "saved")
    model = make_model(get_source("test_efficientnet"), 2)
    model.save(tmp_path / "saved")
    np.testing.assert_allclose(load_model(tmp_path / "saved").outputs(pictures), model.outputs(pictures), atol=1e-6)
    assert not list((tmp_path / "saved").glob("*.tmp"))


@pytest.mark.parametrize("name", ["autotransfer.json", "config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file_is_told(saved, name):
    (saved / name).unlink()
    with pytest.raises(ModelDirectoryError, match=rf"is not a model folder: it has no {name}.*--out"):
        load_model(saved)


def test_a_folder_that_does_not_exist_is_told(tmp_path):
    with pytest.raises(ModelDirectoryError, match=r"nowhere is not a model folder"):
        load_model(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["autotransfer.json", "config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b"\xff\xfe\x00"])
def test_a_damaged_file_is_told_with_its_path(saved, name, content):
    (saved / name).write_bytes(content)
    with pytest.raises(AutotransferError, match=name):
        load_model(saved)


@pytest.mark.parametrize("change", [{"config": {}}, {"classes": 3}, {"preprocessing": None}, {"config": {"depth": 1}}])
def test_a_description_of_another_kind_is_told(saved, change):
    path = saved / "autotransfer.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ModelDirectoryError, match=r"autotransfer\.json is not what this version"):
        load_model(saved)


def test_weights_of_another_network_are_told(saved):
    path = saved / "model.safetensors"
    weights = load_file(path)
    weights.pop("head.bias")
    save_file(weights, path)
    with pytest.raises(ModelDirectoryError, match=r"(?s)model\.safetensors cannot be loaded: .*head\.bias"):
        load_model(saved)


PLUGIN = """
from timm.models import register_model
from timm.models.resnet import BasicBlock, ResNet
from timm.models._builder import build_model_with_cfg

@register_model
def users_own_net(pretrained=False, **kwargs):
    return build_model_with_cfg(ResNet, "users_own_net", pretrained, block=BasicBlock, layers=(1, 1, 1, 1), **kwargs)
"""

FRESH_PROCESS = """
import json, sys
from autotransfer.transfer.model import load_model
folder, plugin, *pictures = sys.argv[1:]
try:
    load_model(folder)
    print(json.dumps("no plugin was needed"))
except Exception as error:
    print(json.dumps([type(error).__name__, str(error)]))
print(json.dumps(load_model(folder, plugins=[plugin]).outputs(pictures).tolist()))
"""


@pytest.mark.slow
def test_a_users_own_architecture_survives(pictures, tmp_path):
    """Saved with its code, which runs only when it is named."""
    plugin = tmp_path / "users_own_plugin.py"
    plugin.write_text(PLUGIN)
    load_plugins([str(plugin)])
    try:
        model = make_model(write_source(tmp_path / "source", "users_own_net"), 3, plugins=(str(plugin),))
        folder = model.save(tmp_path / "saved")
    finally:
        sys.modules.pop("users_own_plugin")
    plugin.unlink()
    (copy,) = (path for path in folder.rglob("*.py"))
    command = [sys.executable, "-c", FRESH_PROCESS, str(folder), str(copy), *map(str, pictures)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    (kind, message), probabilities = map(json.loads, output.stdout.splitlines())
    assert kind == SourceError.__name__
    assert "users_own_plugin" in message and "--plugin" in message and str(copy) in message
    np.testing.assert_allclose(probabilities, model.outputs(pictures), atol=1e-6)
