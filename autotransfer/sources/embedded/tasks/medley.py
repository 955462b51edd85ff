"""Medley: several tasks at once, for sources that should know a little of everything."""

import torch

from autotransfer.sources.embedded.tasks._base import GENERATED, Task


class Medley:
    """The classes of several tasks side by side, each task with an equal share of every batch (see `Task`).

    Args:
        tasks: what to mix; labels of a later task follow those of the earlier ones.
    """

    name = "medley"
    provenance = GENERATED

    def __init__(self, tasks: tuple[Task, ...]) -> None:
        self._tasks = tasks
        self.class_names = tuple(f"{task.name}: {name}" for task in tasks for name in task.class_names)
        self.summary = "an equal mixture of tasks (" + "; ".join(f"{t.name}: {t.summary}" for t in tasks) + ")"

    def batch(
        self, generator: torch.Generator, count: int, image_size: int, *, difficulty: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw a mixture, task after task, see `Task.batch`."""
        images, labels, offset = [], [], 0
        for index, task in enumerate(self._tasks):
            share = count // len(self._tasks) + (index < count % len(self._tasks))
            if share:
                drawn, drawn_labels = task.batch(generator, share, image_size, difficulty=difficulty)
                images.append(drawn)
                labels.append(drawn_labels + offset)
            offset += len(task.class_names)
        return torch.cat(images), torch.cat(labels)
