"""The table of embedded sources: which architecture learns which task, and for how long.

A new source is a new row. Architectures are timm's registered ones, narrowed by `model_args` where they would
not fit into 2.5 MB of float16.
"""

from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from autotransfer.errors import SourceError


@dataclass(frozen=True, kw_only=True)
class ZooEntry:
    """One source to build.

    Attributes:
        architecture: a model name that timm registers.
        task: a name that `tasks.make_task` knows.
        model_args: arguments of `timm.create_model` beside the number of classes; JSON values only.
        image_size: side of the square training images in pixels.
        steps: optimizer steps of the full recipe.
        batch_size: images per step.
        learning_rate: peak of the one-cycle schedule.
        curriculum: share of the steps over which the task's difficulty rises from 0 to 1; 0 for none.
        teacher: for the model card, whose answers the shipped weights learned and its licence; empty without one.
        good_at: for the model card, what the source should help with.
        bad_at: for the model card, where it should not be expected to.
    """

    architecture: str
    task: str
    model_args: MappingProxyType[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    image_size: int = 48
    steps: int = 3000
    batch_size: int = 128
    learning_rate: float = 3e-3
    curriculum: float = 0.0
    teacher: str = ""
    good_at: str
    bad_at: str

    @property
    def name(self) -> str:
        """The source's name in timm's manner: architecture, dot, tag."""
        return f"{self.architecture}.{self.task}"


_NARROW_RESNET = MappingProxyType({"channels": (32, 64, 96, 160)})
# timm starts ConvNeXt's layer scale at 1e-6, which would cost a short training most of its steps.
_PLAIN_CONVNEXT = MappingProxyType({"ls_init_value": 1.0, "stem_type": "overlap_act"})
_TEACHER = "MobileNetV2 1.0, ImageNet-1k, TensorFlow's published weights, Apache-2.0"
_SMALL_VIT = MappingProxyType({"img_size": 48, "patch_size": 8, "embed_dim": 96, "num_heads": 3})

ZOO: tuple[ZooEntry, ...] = (
    ZooEntry(
        architecture="resnet10t",
        task="glyphs",
        model_args=_NARROW_RESNET,
        steps=2000,
        good_at="digits, letters, symbols, line drawings",
        bad_at="colour, surfaces and photographs",
    ),
    ZooEntry(
        architecture="resnet10t",
        task="scenes",
        model_args=_NARROW_RESNET,
        steps=1300,
        good_at="signs, emblems and objects before a busy ground",
        bad_at="fine texture and colour names (its task ignores colour)",
    ),
    ZooEntry(
        architecture="resnet10t",
        task="textures",
        model_args=_NARROW_RESNET,
        steps=1300,
        good_at="surfaces, materials, colour, aerial images",
        bad_at="outlines: characters, signs and hands",
    ),
    ZooEntry(
        architecture="resnet10t",
        task="distilled",
        model_args=_NARROW_RESNET,
        image_size=64,
        steps=1300,
        teacher=_TEACHER,
        good_at="photographs, satellite images, things with colour and texture",
        bad_at="single characters and line drawings",
    ),
    ZooEntry(
        architecture="mobilenetv3_small_050",
        task="glyphs",
        image_size=64,
        steps=1500,
        learning_rate=5e-3,
        good_at="digits, letters, symbols, line drawings",
        bad_at="colour, surfaces and photographs",
    ),
    ZooEntry(
        architecture="mobilenetv3_small_050",
        task="textures",
        image_size=64,
        steps=1300,
        learning_rate=5e-3,
        good_at="surfaces, materials, colour, aerial images",
        bad_at="outlines: on characters, signs and hands it does worse than random features",
    ),
    ZooEntry(
        architecture="test_convnext2",
        task="scenes",
        model_args=_PLAIN_CONVNEXT,
        steps=1600,
        learning_rate=4e-3,
        curriculum=0.5,
        good_at="signs, emblems and objects before a busy ground",
        bad_at="single characters (digits hardly better than random features), colour, photographs",
    ),
    ZooEntry(
        architecture="test_convnext2",
        task="glyphs",
        model_args=_PLAIN_CONVNEXT,
        steps=2000,
        learning_rate=4e-3,
        curriculum=0.5,
        good_at="digits, letters, symbols, line drawings",
        bad_at="colour, surfaces and photographs",
    ),
    ZooEntry(
        architecture="test_convnext2",
        task="distilled",
        model_args=_PLAIN_CONVNEXT,
        image_size=64,
        steps=1300,
        learning_rate=4e-3,
        teacher=_TEACHER,
        good_at="little: mostly among the last on the benchmark's datasets; the task is too much for it",
        bad_at="characters, hands and cells, where training from scratch does better",
    ),
    ZooEntry(
        architecture="test_vit",
        task="fractals",
        model_args=_SMALL_VIT,
        steps=1400,
        learning_rate=2e-3,
        curriculum=0.6,
        good_at="the layout of branching and scattered shapes; the only transformer of the zoo",
        bad_at="detail below its 8-pixel patches; short training suits transformers least",
    ),
)


def zoo_entry(name: str) -> ZooEntry:
    """Look up an entry by its name.

    Raises:
        SourceError: the table has no such entry.

    Example:
        >>> zoo_entry("resnet10t.glyphs").image_size
        48
    """
    for entry in ZOO:
        if entry.name == name:
            return entry
    known = ", ".join(entry.name for entry in ZOO)
    raise SourceError(f"The embedded zoo has no entry {name!r}. Entries: {known}. Add a row to zoo.py for a new one.")
