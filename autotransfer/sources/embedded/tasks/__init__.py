"""Pretraining tasks: endless labelled images, generated from a seed, one file per task.

A new task is a class that honours `Task` and one line in `TASKS`; `Distilled` alone also needs a teacher.
"""

from collections.abc import Callable

from autotransfer.sources.embedded.tasks._base import Task, batch_generator
from autotransfer.sources.embedded.tasks.distilled import Distilled
from autotransfer.sources.embedded.tasks.fractals import Fractals
from autotransfer.sources.embedded.tasks.glyphs import Glyphs
from autotransfer.sources.embedded.tasks.medley import Medley
from autotransfer.sources.embedded.tasks.scenes import Scenes
from autotransfer.sources.embedded.tasks.textures import Textures

__all__ = [
    "TASKS",
    "Distilled",
    "Fractals",
    "Glyphs",
    "Medley",
    "Scenes",
    "Task",
    "Textures",
    "batch_generator",
    "make_task",
]

TASKS: dict[str, Callable[[], Task]] = {
    "fractals": Fractals,
    "glyphs": Glyphs,
    "medley": lambda: Medley((Glyphs(), Textures(), Scenes(), Fractals())),
    "scenes": Scenes,
    "textures": Textures,
}


def make_task(name: str, teacher: str | None = None) -> Task:
    """Make the task of this name: a key of `TASKS`, or `distilled`, which draws pictures only with a teacher."""
    if name == Distilled.name:
        return Distilled((Textures(), Scenes(), Fractals(), Glyphs()), teacher)
    return TASKS[name]()
