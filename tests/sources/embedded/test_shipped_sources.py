import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

from autotransfer.errors import SourceError
from autotransfer.sources import embedded
from autotransfer.sources.embedded import embedded_folder, embedded_names
from autotransfer.sources.embedded.export import MAX_BYTES
from autotransfer.sources.embedded.tasks import TASKS, batch_generator, make_task
from autotransfer.sources.embedded.training import held_out_accuracy
from autotransfer.sources.embedded.zoo import ZOO, zoo_entry


def config_of(name: str) -> dict:
    return json.loads((embedded_folder(name) / "config.json").read_text(encoding="utf-8"))


def test_every_entry_of_the_zoo_is_shipped() -> None:
    assert set(embedded_names()) == {entry.name for entry in ZOO}


def test_shipped_sources_differ_in_architecture_and_task() -> None:
    assert len({entry.architecture for entry in ZOO}) >= 3
    assert len({entry.task for entry in ZOO}) >= 3


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(SourceError, match=r"no-such.*resnet10t\.glyphs"):
        embedded_folder("no-such")
    with pytest.raises(SourceError, match="tasks"):
        embedded_folder("tasks")
    with pytest.raises(SourceError, match=r"resnet10t\.glyphs"):
        zoo_entry("no-such")


def test_finding_sources_imports_nothing_heavy() -> None:
    # Run by path, because what the packages above import is not this module's doing.
    code = (
        "import runpy, sys; module = runpy.run_path(sys.argv[1]); assert module['embedded_names']();"
        "print([m for m in ('torch', 'timm', 'numpy', 'safetensors') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(embedded.__file__)]
    output = subprocess.run(command, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


@pytest.mark.parametrize("name", embedded_names())
def test_opens_with_timm_alone_in_float32(name: str) -> None:
    folder = embedded_folder(name)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = config_of(name)
    saved = load_file(folder / "model.safetensors")
    assert config["architecture"] == zoo_entry(name).architecture
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, saved[key].to(tensor.dtype)), key
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert model.num_classes == config["num_classes"] == len(config["label_names"])
    assert model.num_features == config["num_features"]
    assert model.get_classifier().out_features == config["num_classes"]
    size = config["pretrained_cfg"]["input_size"][1]
    for side in (size, 2 * size):
        with torch.inference_mode():
            output = model(torch.zeros(1, 3, side, side))
        assert output.shape == (1, config["num_classes"])
        assert torch.isfinite(output).all()


@pytest.mark.parametrize("name", embedded_names())
def test_preprocessing_is_the_training_one(name: str) -> None:
    model = timm.create_model(f"local-dir:{embedded_folder(name)}", pretrained=False)
    data_config = timm.data.resolve_model_data_config(model)
    size = zoo_entry(name).image_size
    assert tuple(data_config["input_size"]) == (3, size, size)
    assert tuple(data_config["mean"]) == tuple(data_config["std"]) == (0.5, 0.5, 0.5)
    assert data_config["interpolation"] == "bilinear"
    assert data_config["crop_pct"] == 1.0


@pytest.mark.parametrize("name", embedded_names())
def test_classes_are_those_of_its_task(name: str) -> None:
    assert config_of(name)["label_names"] == list(make_task(zoo_entry(name).task).class_names)


@pytest.mark.parametrize("name", embedded_names())
def test_weights_are_small_and_half_precision(name: str) -> None:
    weights = embedded_folder(name) / "model.safetensors"
    assert weights.stat().st_size <= MAX_BYTES
    floats = [t for t in load_file(weights).values() if t.is_floating_point()]
    assert {t.dtype for t in floats} == {torch.float16}
    variances = [t for key, t in load_file(weights).items() if key.endswith("running_var")]
    assert all((t > 0).all() for t in variances)


def test_all_sources_together_stay_under_twenty_megabytes() -> None:
    files = [file for name in embedded_names() for file in embedded_folder(name).iterdir()]
    assert sum(file.stat().st_size for file in files) < 20_000_000
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in files)


@pytest.mark.parametrize("name", embedded_names())
def test_card_states_what_is_true(name: str) -> None:
    card = (embedded_folder(name) / "README.md").read_text(encoding="utf-8")
    config = config_of(name)
    folder = embedded_folder(name)
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert card.startswith("---\n") and "license: apache-2.0" in card
    assert config["pretrained_cfg"]["license"] == "apache-2.0"
    assert f"# {name}\n" in card
    assert f"`{config['architecture']}`" in card
    assert f"| classes | {config['num_classes']} |" in card
    assert f"| parameters | {sum(p.numel() for p in model.parameters()):,} |" in card
    stated = float(card.split("| accuracy on its own task | ")[1].split("%")[0]) / 100
    entry = zoo_entry(name)
    assert stated > 10 / config["num_classes"]
    if entry.task in TASKS:
        measured = held_out_accuracy(model, TASKS[entry.task](), image_size=entry.image_size, images=512, seed=1)
        assert abs(measured - stated) < 0.08


TEACHER = Path(__file__).resolve().parents[4] / "shared" / "sources" / "mobilenetv2_100_224.in1k"


@pytest.mark.skipif(not TEACHER.exists(), reason="the teacher is not beside this checkout")
@pytest.mark.parametrize("name", [entry.name for entry in ZOO if entry.task == "distilled"])
def test_card_of_a_distilled_source_states_what_is_true(name: str) -> None:
    folder, entry = embedded_folder(name), zoo_entry(name)
    card = (folder / "README.md").read_text(encoding="utf-8")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    stated = float(card.split("| accuracy on its own task | ")[1].split("%")[0]) / 100
    task = make_task(entry.task, f"local-dir:{TEACHER}")
    assert f"the labels are the answers of {TEACHER.name} ({entry.teacher})" in card and "Apache-2.0" in entry.teacher
    assert abs(held_out_accuracy(model, task, image_size=entry.image_size, images=512, seed=1) - stated) < 0.08


@pytest.mark.parametrize("name", embedded_names())
def test_intermediate_levels_are_reachable(name: str) -> None:
    model = timm.create_model(f"local-dir:{embedded_folder(name)}", pretrained=True).eval()
    entry = zoo_entry(name)
    images, _ = TASKS["medley"]().batch(batch_generator(0, "held-out", 0), 4, entry.image_size)
    with torch.inference_mode():
        levels = model.forward_intermediates(images, intermediates_only=True)
    assert len(levels) >= 4
    assert all(level.ndim == 4 and level.flatten(1).std(0).max() > 0 for level in levels)


def test_a_folder_without_config_is_no_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half-built").mkdir()
    (tmp_path / "half-built" / "model.safetensors").touch()
    monkeypatch.setattr("autotransfer.sources.embedded._ROOT", tmp_path)
    assert embedded_names() == ()
    with pytest.raises(SourceError, match="Embedded sources: none"):
        embedded_folder("half-built")
