"""What is expected of a source before it is downloaded, from what timm has published about it.

Published fine-tuning results say little of single sources and something of their order: ImageNet accuracy, less
where pretraining was self-supervised. Other figures (parameters, GMACs, larger pretraining data) do not improve on
that by enough to count; `tests/benchmarks/hub_prior.py` measures the coefficients and compares.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files

from autotransfer.sources.published import Published


@dataclass(frozen=True)
class HubPrior:
    """Measured coefficients.

    Attributes:
        weights: of features that `describe` names, in standard deviations between sources of one target.
        accuracy: logit of ImageNet accuracy by size and data, for sources that have neither such a classifier nor a
            fine-tuned version with one; a standard deviation below what such models have on average, because size
            alone is no reason to be first.
        centre: the mean over all published models, which is subtracted.
        origin: what it was measured on.
    """

    weights: Mapping[str, float]
    accuracy: Mapping[str, float]
    centre: float = 0.0
    origin: str = ""

    def expect(self, published: Published) -> float:
        """Expected transfer, in standard deviations between sources of one target; 0 is the mean published one."""
        described = self.describe(published)
        return sum(weight * described[name] for name, weight in self.weights.items()) - self.centre

    def describe(self, published: Published) -> dict[str, float]:
        """The features by name; a missing accuracy is that of the fine-tuned version, else by size and data."""
        described = {
            "parameters": math.log10(published.parameters),
            "macs": math.log10(max(published.macs, 1e6)),
            "larger_data": float(published.is_larger_pretraining),
            "self_supervised": float(published.method == "self-supervised"),
            "distilled": float(published.method == "distilled"),
        }
        measured = published.top1 if published.top1 is not None else published.tuned_top1
        if measured is not None:
            top1 = math.log(measured / (1 - measured))
        else:
            top1 = sum(weight * {**described, "one": 1.0}[name] for name, weight in self.accuracy.items())
        return {"top1": top1, **described}

    def to_json(self) -> str:
        """As text; the inverse of `from_json`."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "HubPrior":
        """From what `to_json` wrote."""
        return cls(**json.loads(text))


@cache
def shipped_hub_prior() -> HubPrior:
    """The coefficients that come with autotransfer."""
    return HubPrior.from_json((files("autotransfer.search") / "hub_prior.json").read_text(encoding="utf-8"))
