"""Distilled: agree with a teacher that has seen photographs, on pictures that are none.

Knowledge distillation by function matching (Hinton, Vinyals, Dean, 2015; Beyer et al., CVPR 2022): teacher and
student see the same picture, and the student learns the teacher's whole distribution over ImageNet's classes.
The pictures are collages of the other tasks' images, so no photograph is needed and none is used: even far from
photographs a teacher's answers carry what it knows (Asano and Saeed, ICLR 2023, distil from one single image).
"""

from pathlib import Path
from typing import cast

import timm
import torch
from timm.data import ImageNetInfo, resolve_model_data_config
from torch import nn
from torch.nn import functional as F

from autotransfer.errors import SourceError
from autotransfer.sources.embedded.tasks import canvas
from autotransfer.sources.embedded.tasks._base import Task

_TEACHER_SIZE = 96
_LARGEST_CLOSE_UP = 2.0


class Distilled:
    """Collages of other tasks' images, labelled by a teacher (see `Task`).

    Args:
        tasks: whose images are laid over each other.
        teacher: a network over ImageNet-1k's classes, or the timm name of one (`local-dir:FOLDER` works);
            None where no picture will be drawn, only names read.

    Raises:
        SourceError: the teacher cannot be opened, or has other classes.
    """

    name = "distilled"
    summary = "a collage of surfaces, scenes, fractals and characters; the label is what a teacher sees in it"

    def __init__(self, tasks: tuple[Task, ...], teacher: str | nn.Module | None = None) -> None:
        self._tasks = tasks
        self._teacher = _open(teacher) if isinstance(teacher, str) else teacher
        names = ImageNetInfo("imagenet-1k").label_descriptions()
        # two pairs of ImageNet's classes share their first name
        self.class_names = tuple(f"{index:03d} {name.split(',')[0]}" for index, name in enumerate(names))
        self.provenance = "no photographs, fonts or downloaded data were used; "
        if self._teacher is not None:
            classes = int(cast(int, self._teacher.num_classes))
            if classes != len(self.class_names):
                raise SourceError(f"the teacher must know ImageNet-1k's 1000 classes but has {classes}.")
            self._teacher.eval().requires_grad_(False)
            shown = Path(teacher.removeprefix("local-dir:")).name if isinstance(teacher, str) else "the teacher"
            self.provenance += f"the labels are the answers of {shown}"

    def batch(
        self, generator: torch.Generator, count: int, image_size: int, *, difficulty: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw collages, see `Task.batch`; labels are the teacher's probabilities, float32 [count, 1000]."""
        images = self.collages(generator, count, image_size, difficulty=difficulty)
        return images, self._answers(images)

    def collages(
        self, generator: torch.Generator, count: int, image_size: int, *, difficulty: float = 1.0
    ) -> torch.Tensor:
        """Lay close-ups of each task's images over those of another, [count, 3, image_size, image_size].

        The border between the two is a level line of smooth noise, as of things that lie before each other; it
        moves out of the picture for about half of the images.
        """
        parts = []
        for index, task in enumerate(self._tasks):
            share = count // len(self._tasks) + (index < count % len(self._tasks))
            if share:
                parts.append(task.batch(generator, share, image_size, difficulty=difficulty)[0])
        images = torch.cat(parts)
        device = images.device
        images = _close_ups(generator, images[torch.randperm(count, generator=generator, device=device)])
        others = _close_ups(generator, images[torch.randperm(count, generator=generator, device=device)])
        persistence = canvas.uniform(generator, (count,), 0.2, 0.7)
        height = canvas.fractal_noise(generator, count, image_size, persistence)
        cover = torch.sigmoid((height + canvas.uniform(generator, (count, 1, 1, 1), -4, 0.5)) * 12)
        mixed = images + cover * (others - images)
        turned = mixed[:, torch.randperm(3, generator=generator, device=device)]
        return torch.where(canvas.coin(generator, count, 0.3), turned, mixed).clamp(0, 1)

    @torch.no_grad()
    def _answers(self, images: torch.Tensor) -> torch.Tensor:
        if self._teacher is None:
            raise SourceError(
                "a distilled source is built with a teacher: --teacher NAME, a timm network over ImageNet-1k such as "
                "mobilenetv2_100.ra_in1k or local-dir:FOLDER."
            )
        teacher = self._teacher.to(images.device)
        data = resolve_model_data_config(teacher)
        mean, std = (torch.tensor(data[key], device=images.device).view(1, 3, 1, 1) for key in ("mean", "std"))
        larger = F.interpolate(images, size=(_TEACHER_SIZE, _TEACHER_SIZE), mode="bilinear", align_corners=False)
        with torch.autocast(images.device.type, torch.bfloat16):
            logits = teacher(((larger - mean) / std).contiguous(memory_format=torch.channels_last))
        return torch.softmax(logits.float(), 1)


def _close_ups(generator: torch.Generator, images: torch.Tensor) -> torch.Tensor:
    """Cut a window of 1 to 1/2 of the side, turned and perhaps mirrored, out of each image."""
    count = len(images)
    maps = canvas.affine_maps(generator, count, degrees=45, scale=(1 / _LARGEST_CLOSE_UP, 1.0), shear=0.2)
    mirror = torch.where(canvas.coin(generator, count, 0.5).view(-1, 1, 1), -1.0, 1.0)
    room = 1 - maps.abs().sum(-1, keepdim=True).clamp(max=1)
    centre = canvas.uniform(generator, (count, 2, 1), -1, 1) * room
    grid = F.affine_grid(torch.cat((maps * mirror, centre), -1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _open(name: str) -> nn.Module:
    try:
        return cast(nn.Module, timm.create_model(name, pretrained=True))
    except Exception as error:
        raise SourceError(f"the teacher {name!r} cannot be opened: {error}") from error
