"""What timm has published about its pretrained models: known before anything is downloaded.

The table `published.csv` is made from timm's results by `tests/benchmarks/hub_table.py`.
"""

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Published:
    """The figures of one pretrained model.

    Attributes:
        parameters: with the classifier of its pretraining (of 1000 classes where timm's results lack the model).
        macs: multiply-adds of one image of `image_size`, forward.
        image_size: side in pixels.
        top1: ImageNet-1k accuracy at that size, 0..1; None where it has no classifier of these classes.
        tuned_top1: where `top1` is None, that of the published model which was fine-tuned from this one, if any.
        pretraining: data in the order of training: `in1k`, `in21k+in1k`, `laion2b`; empty where it is not known.
        method: `supervised`, `distilled`, `self-supervised`, `image-text`, or empty.
    """

    parameters: int
    macs: float
    image_size: int
    top1: float | None
    tuned_top1: float | None
    pretraining: str
    method: str

    @property
    def is_larger_pretraining(self) -> bool:
        """True where it has seen more than ImageNet-1k."""
        return self.pretraining not in ("", "in1k")


def find_published(timm_name: str) -> Published | None:
    """The figures of a model by timm's name with tag, alone or on the hub; None where there are none.

    Example:
        >>> find_published("resnet50.a1_in1k").parameters, find_published("hf-hub:timm/resnet50.a1_in1k").pretraining
        (25560000, 'in1k')
    """
    return published_models().get(timm_name.removeprefix("hf-hub:timm/"))


@cache
def published_models() -> dict[str, Published]:
    """All figures, by timm's name with tag."""
    text = (files("autotransfer.sources") / "published.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return {
        row["name"]: Published(
            parameters=round(float(row["parameters"]) * 1e6),
            macs=float(row["gmacs"]) * 1e9,
            image_size=int(row["image_size"]),
            top1=_fraction(row["top1"]),
            tuned_top1=_fraction(row["tuned_top1"]),
            pretraining=row["pretraining"],
            method=row["method"],
        )
        for row in rows
    }


def _fraction(percent: str) -> float | None:
    return round(float(percent) / 100, 5) if percent else None
