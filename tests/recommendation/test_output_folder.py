"""What the output folder promises: all of the answer is in it, its README is right, and no file is ever half."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from small_study import CONVNEXT, config_of

import autotransfer
from autotransfer.errors import ModelDirectoryError
from autotransfer.transfer.model import TrainedModel

FILES = {
    *("config.json", "model.safetensors", "autotransfer.json"),
    *("recommendation.json", "trials.csv", "sources.csv", "README.md"),
}


@pytest.fixture(params=[2, 4], ids=["cut", "whole"])
def saved(request, recommendation, workshop, digits, tmp_path):
    """The recommendation with a cut network and with a whole one, saved: (recommendation, folder)."""
    config = config_of(CONVNEXT, request.param)
    with workshop.started(config, digits.rows("train")) as (network, _):
        pass
    model = replace(
        recommendation.model,
        network=network.eval(),
        config=config,
        source=workshop.source(CONVNEXT),
        preprocessing=workshop.source(CONVNEXT).data_config,
    )
    changed = replace(recommendation, model=model, config=config)
    return changed, changed.save(tmp_path / "my answer")


def python_blocks(folder: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def test_the_folder_holds_the_answer_and_nothing_else(saved):
    _, folder = saved
    assert {path.name for path in folder.iterdir()} == FILES


def test_the_json_holds_the_evidence(saved):
    recommendation, folder = saved
    found = json.loads((folder / "recommendation.json").read_text(encoding="utf-8"))
    assert found["test"] == {
        name: getattr(recommendation.test, name) for name in ("metric", "value", "low", "high", "n")
    }
    assert found["config"] == recommendation.config.to_dict()
    assert found["classes"] == ["1", "3", "5", "8", "9"]
    assert set(found["baselines"]) == {"majority_class", "linear_probe", "from_scratch"}
    assert found["negative_transfer"]["verdict"] in ("no", "yes", "undecided")
    assert found["why"] == recommendation.why
    assert found["alternatives"] == recommendation.alternatives
    assert found["cost"] == recommendation.cost
    assert (found["study"], found["storage"]) == ("digits", "journal:/studies/digits.journal")


def test_the_tables_read_back(saved):
    recommendation, folder = saved
    pd.testing.assert_frame_equal(pd.read_csv(folder / "sources.csv"), recommendation.sources)
    trials = pd.read_csv(folder / "trials.csv")
    assert trials["value"].to_list() == pytest.approx(recommendation.trials["value"].to_list())


def test_the_loaded_model_predicts_as_the_recommended_one(saved, digits):
    recommendation, folder = saved
    images = digits.samples["image"].iloc[:5].to_list()
    pd.testing.assert_frame_equal(autotransfer.load(folder).predict(images), recommendation.predict(images))


def test_the_readmes_python_runs_as_it_stands(saved, digits, monkeypatch):
    recommendation, folder = saved
    image = shutil.copy(digits.samples["image"].iloc[0], folder.parent / "image.jpg")
    monkeypatch.chdir(folder.parent)
    first, *others = python_blocks(folder)
    scope: dict[str, object] = {}
    exec(first, scope)
    assert isinstance(scope["model"], TrainedModel)
    assert scope["model"].predict([image])["label"].item() in recommendation.model.classes
    assert len(others) == int(recommendation.model.opens_with_timm)
    for block in others:
        exec(block, scope)
        images = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            by_timm, ours = scope["model"].eval()(images), recommendation.model.network(images)
        assert np.allclose(by_timm, ours, atol=1e-5)


def test_the_readme_says_what_was_found(saved):
    recommendation, folder = saved
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert CONVNEXT in text
    assert f"accuracy on 30 test images: {recommendation.test.value:.4f}" in text
    for sentence in recommendation.why:
        assert f"- {sentence}" in text
    for name in FILES - {"README.md"}:
        assert f"`{name}`" in text


def test_the_readme_is_right_where_the_folder_is_the_current_one(recommendation, tmp_path, monkeypatch):
    (tmp_path / "answer").mkdir()
    monkeypatch.chdir(tmp_path / "answer")
    recommendation.save(".")
    assert 'autotransfer.load("answer")' in python_blocks(tmp_path / "answer")[0]


def test_saving_again_replaces_the_earlier_answer(saved):
    recommendation, folder = saved
    again = replace(recommendation, study="second", why=["It won again."])
    assert again.save(folder) == folder
    assert {path.name for path in folder.iterdir()} == FILES
    assert json.loads((folder / "recommendation.json").read_text())["study"] == "second"
    assert "It won again." in (folder / "README.md").read_text()


@pytest.mark.parametrize("name", sorted(FILES))
def test_where_the_disk_is_full_an_earlier_file_stays_whole_and_no_rest_is_left(recommendation, tmp_path, name):
    folder = recommendation.save(tmp_path / "answer")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.MonkeyPatch.context() as patch:
        fill_disk(patch, name)
        with pytest.raises(OSError, match="No space left"):
            replace(recommendation, study="second").save(folder)
    after = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(after) == set(before)
    assert after[name] == before[name]
    assert timm.is_model(json.loads(after["config.json"])["architecture"])


def fill_disk(patch: pytest.MonkeyPatch, name: str) -> None:
    """Stands in for a disk that is full in the middle of the file of that name."""
    from autotransfer.transfer import model as model_module

    write_text, save_file = Path.write_text, model_module.save_file

    def half_text(path: Path, text: str, **options: object) -> int:
        if path.name.startswith(name):
            write_text(path, text[: len(text) // 2])
            raise OSError(28, "No space left on device")
        return write_text(path, text, **options)

    def half_weights(tensors: dict, path: Path, **options: object) -> None:
        if name == "model.safetensors":
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save_file(tensors, path, **options)

    patch.setattr(Path, "write_text", half_text)
    patch.setattr(model_module, "save_file", half_weights)


def test_a_folder_that_is_incomplete_is_told_when_it_is_opened(saved):
    _, folder = saved
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelDirectoryError, match=r"has no model\.safetensors"):
        autotransfer.load(folder)
