"""Distilled sources: the pictures are generated, the labels are a teacher's answers."""

from pathlib import Path
from typing import ClassVar

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from autotransfer.errors import SourceError
from autotransfer.sources.embedded.build import build, main
from autotransfer.sources.embedded.tasks import Distilled, Glyphs, Textures, batch_generator, make_task
from autotransfer.sources.embedded.training import loss_of
from autotransfer.sources.embedded.zoo import ZooEntry

TINY = ZooEntry(
    architecture="test_resnet",
    task="distilled",
    image_size=32,
    steps=2,
    batch_size=8,
    good_at="nothing",
    bad_at="everything",
)


class MeanColour(nn.Module):
    """A teacher whose first three classes are the mean of the channels."""

    num_classes = 1000
    pretrained_cfg: ClassVar = {"input_size": (3, 96, 96), "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return F.pad(images.float().mean((2, 3)) * 8, (0, 997))


def drawn(task: Distilled, index: int = 0, count: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    return task.batch(batch_generator(0, "train", index), count, 32)


def test_labels_are_what_the_teacher_sees_in_the_very_image() -> None:
    images, labels = drawn(Distilled((Glyphs(), Textures()), MeanColour()))
    assert images.shape == (16, 3, 32, 32) and labels.shape == (16, 1000)
    larger = F.interpolate(images, size=(96, 96), mode="bilinear")
    expected = torch.softmax(MeanColour()(larger), 1)
    torch.testing.assert_close(labels, expected, atol=0.02, rtol=0.05)  # the teacher answers in bfloat16
    assert labels[:, :3].std(0).min() > 0


def test_collages_are_images_and_a_function_of_the_seed() -> None:
    task = Distilled((Glyphs(), Textures()), MeanColour())
    images, labels = drawn(task)
    assert images.dtype == torch.float32 and images.min() >= 0 and images.max() <= 1
    assert images.flatten(1).std(1).min() > 1e-3
    again = drawn(Distilled((Glyphs(), Textures()), MeanColour()))
    assert torch.equal(images, again[0]) and torch.equal(labels, again[1])
    assert not torch.equal(images, drawn(task, index=1)[0])


def test_without_a_teacher_it_knows_its_classes_and_says_what_it_needs() -> None:
    task = make_task("distilled")
    assert len(set(task.class_names)) == 1000
    with pytest.raises(SourceError, match="--teacher"):
        task.batch(batch_generator(0, "train", 0), 4, 32)


def test_a_teacher_with_other_classes_or_none_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="1000 classes but has 10"):
        Distilled((Glyphs(),), timm.create_model("test_resnet", num_classes=10))
    with pytest.raises(SourceError, match="no-such"):
        make_task("distilled", f"local-dir:{tmp_path}/no-such")


def test_the_loss_is_least_where_the_student_answers_like_the_teacher() -> None:
    teacher = torch.softmax(torch.randn(6, 1000), 1)
    student = teacher.log().requires_grad_()
    loss = loss_of(student, teacher)
    loss.backward()
    assert student.grad is not None and student.grad.abs().max() < 1e-4
    assert loss < loss_of(torch.randn(6, 1000), teacher)
    classes = torch.arange(6)
    assert torch.equal(loss_of(student, classes), F.cross_entropy(student, classes))


def test_the_recipe_names_the_teacher_in_the_card(tmp_path: Path) -> None:
    teacher = tmp_path / "a_teacher.in1k"
    teacher.mkdir()
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet").state_dict(), teacher / "model.safetensors")
    (teacher / "config.json").write_text('{"architecture": "test_resnet", "num_classes": 1000}')
    result = build(TINY, tmp_path / "out", held_out=16, teacher=f"local-dir:{teacher}")
    assert result is not None
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "the labels are the answers of a_teacher.in1k" in card and "--teacher TEACHER" in card
    assert str(tmp_path) not in card


def test_the_command_line_asks_for_the_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("autotransfer.sources.embedded.zoo.ZOO", (TINY,))
    with pytest.raises(SystemExit) as ended:
        main([TINY.name, "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert "--teacher" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
