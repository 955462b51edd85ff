"""The transfer configuration: the unit that a trial evaluates."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

UpperLayers = Literal["drop", "reinit"]
Augmentation = Literal["none", "light", "flip"]


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """Which source, how much of it, and how it is trained. Hashable and JSON-able.

    Attributes:
        source: name of the source.
        transferred_layers: k, 0..K: the first k levels keep their pretrained weights; 0 is from scratch.
        upper_layers: what happens above k: `drop` cuts it off, `reinit` keeps it freshly initialised.
        frozen_layers: f, 0..k: the first f levels do not train; f = k is feature extraction.
        learning_rate: peak learning rate of AdamW.
        weight_decay: of AdamW, on weights that are not norms or biases.
        epochs: passes over the training images; 0 keeps the head that the linear probe solved.
        batch_size: images per step.
        image_size: side of the square input in pixels.
        augmentation: `none`, `light` (shift, scale, colour) or `flip` (light, and mirrored left to right).
        label_smoothing: 0..1.
        drop_rate: dropout before the classifier, 0..1.
        head: where the classifier starts: `linear_probe` (solved on the features) or `random`.
    """

    source: str
    transferred_layers: int
    upper_layers: UpperLayers
    frozen_layers: int
    learning_rate: float
    weight_decay: float = 0.05
    epochs: int = 10
    batch_size: int = 32
    image_size: int = 224
    augmentation: Augmentation = "light"
    label_smoothing: float = 0.1
    drop_rate: float = 0.0
    head: Literal["linear_probe", "random"] = "linear_probe"

    @property
    def from_scratch(self) -> bool:
        """True where nothing is transferred."""
        return self.transferred_layers == 0

    @property
    def feature_extraction(self) -> bool:
        """True where every layer that is there keeps the source's weights: only the head is learnt."""
        return 0 < self.transferred_layers == self.frozen_layers and self.upper_layers == "drop"

    @property
    def linear_probe(self) -> bool:
        """True where the head is solved on fixed features and nothing is trained by gradient descent."""
        return self.feature_extraction and self.epochs == 0

    def replace(self, **changes: Any) -> "TransferConfig":
        """The same configuration with some values changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """As a JSON-able dictionary, keys as the attributes."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "TransferConfig":
        """The inverse of `to_dict`."""
        return cls(**values)


def canonical(config: TransferConfig, level_count: int) -> TransferConfig:
    """The one way to write configurations that mean the same network.

    From scratch nothing can be dropped or frozen; at full depth there is nothing above to reinitialise.
    """
    if config.transferred_layers == 0:
        return config.replace(upper_layers="reinit", frozen_layers=0, head="random")
    if config.transferred_layers == level_count:
        return config.replace(upper_layers="drop")
    return config
