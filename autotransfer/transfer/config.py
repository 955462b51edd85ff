"""The transfer configuration: the unit that a trial evaluates."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

UpperLayers = Literal["drop", "reinit"]
Augmentation = Literal["none", "light", "flip"]
Optimizer = Literal["adamw", "sgd"]
Imbalance = Literal["none", "loss", "sampler"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True)
class TransferConfig:
    """Which source, how much of it, and how it is trained. Hashable and JSON-able.

    Attributes:
        source: name of the source.
        transferred_layers: k, 0..K: the first k levels keep their pretrained weights; 0 is from scratch.
        upper_layers: what happens above k: `drop` cuts it off, `reinit` keeps it freshly initialised.
        frozen_layers: f, 0..k: the first f levels do not train; f = k is feature extraction.
        learning_rate: peak learning rate of the optimizer.
        weight_decay: on weights that are not norms or biases.
        epochs: passes over the training images; 0 keeps the head that the linear probe solved.
        batch_size: images per step of the optimizer; what does not fit into memory is accumulated.
        image_size: side of the square input in pixels.
        optimizer: `adamw` or `sgd` (Nesterov momentum 0.9), as timm makes them.
        layer_decay: 0..1: every group of layers learns at this fraction of the rate of the one above; 1 is off.
        warmup: 0..1: the part of all steps in which the learning rate rises, before it falls as a cosine.
        clip_grad: largest norm of the gradient; 0 is off.
        ema_decay: 0..1: of a moving average of the weights, which is what is scored and kept; 0 is off.
        early_stopping: epochs without a better validation score after which training ends, with the best
            epoch's weights; 0 is off.
        augmentation: `none`, `light` (shift, scale, colour) or `flip` (light, and mirrored left to right).
        randaugment: 0..30: magnitude of two random operations an image (Cubuk et al., 2020); 0 is off.
        mixup: alpha of mixup (Zhang et al., 2018); 0 is off.
        cutmix: alpha of CutMix (Yun et al., 2019); 0 is off. With both, each batch gets one of them.
        random_erasing: 0..1: probability of erasing a rectangle of an image (Zhong et al., 2020).
        cached_views: with frozen levels: how many augmented views of each image are kept as activations of the
            frozen part, instead of running it in every epoch; 0 is off.
        label_smoothing: 0..1.
        drop_rate: dropout before the classifier, 0..1.
        imbalance: what is done about rare classes: `loss` weighs them up, `sampler` draws them more often.
        head: where the classifier starts: `linear_probe` (solved on the features) or `random`.
        precision: of the forward and backward pass; `auto` is bfloat16 (float16 on older ones) on a GPU and
            float32 on a CPU.
        compile: run the network through `torch.compile`.
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
    optimizer: Optimizer = "adamw"
    layer_decay: float = 1.0
    warmup: float = 0.1
    clip_grad: float = 1.0
    ema_decay: float = 0.0
    early_stopping: int = 0
    augmentation: Augmentation = "light"
    randaugment: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    random_erasing: float = 0.0
    cached_views: int = 0
    label_smoothing: float = 0.1
    drop_rate: float = 0.0
    imbalance: Imbalance = "none"
    head: Literal["linear_probe", "random"] = "linear_probe"
    precision: Precision = "auto"
    compile: bool = False

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

    From scratch nothing can be dropped or frozen; at full depth there is nothing above to reinitialise; without
    frozen levels there are no activations to keep.
    """
    if not config.frozen_layers or config.mixup or config.cutmix:  # mixed images need the whole network
        config = config.replace(cached_views=0)
    if config.transferred_layers == 0:
        return config.replace(upper_layers="reinit", frozen_layers=0, head="random", cached_views=0)
    if config.transferred_layers == level_count:
        return config.replace(upper_layers="drop")
    return config
