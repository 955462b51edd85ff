import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn

from autotransfer.errors import SourceError
from autotransfer.sources.embedded.build import build, main
from autotransfer.sources.embedded.export import open_exported, write_weights_and_config
from autotransfer.sources.embedded.tasks import Glyphs
from autotransfer.sources.embedded.training import held_out_accuracy, train
from autotransfer.sources.embedded.zoo import ZOO, ZooEntry

TINY = ZooEntry(
    architecture="test_resnet",
    task="glyphs",
    image_size=32,
    steps=4,
    batch_size=16,
    good_at="nothing",
    bad_at="everything",
)


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_recipe_runs_from_generator_to_model_card(tmp_path: Path) -> None:
    destination = tmp_path / TINY.name
    result = build(TINY, destination, held_out=64)
    assert result is not None and result.images == 64
    assert sorted(path.name for path in destination.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert open_exported(destination).num_classes == 200
    card = (destination / "README.md").read_text(encoding="utf-8")
    assert "# test_resnet.glyphs" in card and "4 steps of 16 fresh images" in card
    assert str(tmp_path) not in card
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in destination.iterdir())


def test_exported_model_answers_like_the_trained_one(tmp_path: Path) -> None:
    run = train(TINY, Glyphs(), steps=2)
    write_weights_and_config(tmp_path, TINY, Glyphs(), run.model)
    images = torch.rand(8, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(open_exported(tmp_path)(images), run.model(images), atol=2e-2, rtol=2e-2)


def test_same_seed_trains_the_same_weights() -> None:
    first, second = (train(TINY, Glyphs(), steps=2).model for _ in range(2))
    assert same_weights(first, second)
    assert not same_weights(first, train(TINY, Glyphs(), steps=2, seed=1).model)


def test_a_stopped_build_continues_where_it_was(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run.pt"
    task = Glyphs()
    steps_done = []
    while not steps_done or steps_done[-1] < 3:
        run = train(TINY, task, steps=3, checkpoint=checkpoint, max_seconds=1e-4)
        steps_done.append(run.steps_done)
    assert steps_done == [1, 2, 3] and run.is_complete
    assert same_weights(run.model, train(TINY, task, steps=3).model)


def test_command_line_builds_and_says_when_it_stopped_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("autotransfer.sources.embedded.zoo.ZOO", (TINY,))
    common = [TINY.name, "--out", str(tmp_path / "out"), "--work-dir", str(tmp_path / "work"), "--steps", "2"]
    assert main([*common, "--max-seconds", "0"]) == 3
    assert not (tmp_path / "out" / TINY.name / "config.json").exists()
    assert main(common) == 0
    assert "on its own task" in capsys.readouterr().out
    config = json.loads((tmp_path / "out" / TINY.name / "config.json").read_text(encoding="utf-8"))
    assert config["architecture"] == "test_resnet"


def test_list_names_every_entry(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    output = capsys.readouterr().out
    assert all(entry.name in output for entry in ZOO)


def test_unknown_name_ends_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["no-such"])
    assert ended.value.code == 2
    assert "resnet10t.glyphs" in capsys.readouterr().err


def test_weights_that_overflow_half_precision_are_refused(tmp_path: Path) -> None:
    model = timm.create_model("test_resnet", num_classes=200)
    with torch.no_grad():
        model.fc.bias[0] = 1e6
    with pytest.raises(SourceError, match=r"fc\.bias does not fit into float16"):
        write_weights_and_config(tmp_path, TINY, Glyphs(), model)


def test_too_large_an_architecture_is_refused(tmp_path: Path) -> None:
    model = timm.create_model("resnet18", num_classes=200)
    with pytest.raises(SourceError, match="at most 2500000 are allowed"):
        write_weights_and_config(tmp_path, TINY, Glyphs(), model)


def test_counters_of_batch_norm_stay_integers(tmp_path: Path) -> None:
    run = train(TINY, Glyphs(), steps=2)
    write_weights_and_config(tmp_path, TINY, Glyphs(), run.model)
    state = load_file(tmp_path / "model.safetensors")
    counters = [value for key, value in state.items() if key.endswith("num_batches_tracked")]
    assert counters and all(counter == 2 and counter.dtype == torch.int64 for counter in counters)


def test_accuracy_is_measured_on_the_number_of_images_asked() -> None:
    class Constant(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.one_hot(torch.zeros(len(images), dtype=torch.long), 2).float()

    accuracy = held_out_accuracy(Constant(), Glyphs(2), image_size=8, images=300)
    assert 0.4 < accuracy < 0.6
    assert (accuracy * 300) % 1 == pytest.approx(0, abs=1e-6)
