"""Surgery: from a source to the network that a transfer configuration means.

Works on any timm architecture, because it relies on timm's contract alone: the levels of
`forward_intermediates` (`autotransfer.sources.levels`), `prune_intermediate_layers` for cutting, and timm's
own initialisation for what is not transferred.
"""

from typing import Any

import torch
from torch import Tensor, nn

from autotransfer.errors import SourceError
from autotransfer.sources import Source
from autotransfer.sources.levels import classifier_parameters, parameters_behind, pooled_features
from autotransfer.transfer.config import UpperLayers


class TransferModel(nn.Module):
    """A network with the first k levels of a source, maybe fresh levels above, and a classifier.

    At full depth the backbone is timm's own network with timm's own classifier where that is one linear
    layer (so that timm opens what is saved); cut networks get a classifier on the pooled output of level k.

    Attributes:
        backbone: the timm network, pruned where `upper_layers` is `drop`.
        head: the classifier of a cut network, else None.
        frozen_modules: names of the backbone's modules that belong to the frozen levels.
        replays_features: the network is called with its features instead of with images.
    """

    def __init__(self, backbone: nn.Module, *, cut_at: int | None, head: nn.Linear | None, drop_rate: float):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.drop_rate = drop_rate
        self._cut_at = cut_at
        self.frozen_modules: frozenset[str] = frozenset()
        self.replays_features = False
        self._fixed_modules: tuple[nn.Module, ...] = ()

    @property
    def classifier(self) -> nn.Linear:
        """The last linear layer: [num_classes, D]."""
        if self.head is not None:
            return self.head
        network: Any = self.backbone
        classifier: nn.Linear = network.get_classifier()
        return classifier

    def features(self, images: Tensor) -> Tensor:
        """What the classifier reads: [n, D]."""
        if self.replays_features:
            return images
        if self._cut_at is None:
            return pooled_features(self.backbone, images)
        return level_features(self.backbone, images, self._cut_at)

    def forward(self, images: Tensor) -> Tensor:
        """Logits: [n, num_classes] from normalised images [n, 3, H, W]."""
        features = nn.functional.dropout(self.features(images), self.drop_rate, self.training)
        logits: Tensor = self.classifier(features)
        return logits

    def train(self, mode: bool = True) -> "TransferModel":
        """Training mode, in which frozen levels stay in evaluation mode (their norm statistics are fixed)."""
        if self.replays_features:  # no other module runs
            self.training = mode
            return self
        super().train(mode)
        for module in self._fixed_modules:
            module.eval()
        return self

    def freeze(self, parameters: frozenset[str], modules: frozenset[str]) -> None:
        """Fix parts of the backbone, named as the source's levels name them."""
        for name, parameter in self.backbone.named_parameters():
            if name in parameters:
                parameter.requires_grad_(False)
        self.frozen_modules = modules
        self._fixed_modules = tuple(
            module
            for name, module in self.backbone.named_modules()
            if name in modules and name.rpartition(".")[0] not in modules
        )
        self.train(self.training)


def transfer(
    source: Source,
    *,
    transferred_layers: int,
    upper_layers: UpperLayers,
    frozen_layers: int,
    num_classes: int,
    drop_rate: float = 0.0,
    pretrained: nn.Module | None = None,
) -> TransferModel:
    """Build the network that transfers the first k levels of `source`.

    Args:
        source: where the weights come from.
        transferred_layers: k, 0..K: levels that keep the source's weights (the stem belongs to level 1).
        upper_layers: `drop` or `reinit` what lies above k; without meaning for k = 0 and k = K.
        frozen_layers: f, 0..k: the first f levels do not train.
        num_classes: outputs of the new classifier, at least two.
        drop_rate: dropout before the classifier, 0..1.
        pretrained: the loaded source, to save loading it again; it is not changed.

    Returns:
        The network on the CPU, in training mode, its classifier at zero weight where it is not timm's own.

    Raises:
        SourceError: k or f out of range.
    """
    level_count = len(source.levels)
    if not 0 <= transferred_layers <= level_count:
        raise SourceError(
            f"transferred_layers must be 0..{level_count} for '{source.name}' but got {transferred_layers}."
        )
    if not 0 <= frozen_layers <= transferred_layers:
        raise SourceError(
            f"frozen_layers must be 0..{transferred_layers} (transferred_layers) but got {frozen_layers}."
        )
    model = build_network(
        source,
        transferred_layers=transferred_layers,
        upper_layers=upper_layers,
        num_classes=num_classes,
        drop_rate=drop_rate,
    )
    if transferred_layers:
        level = source.levels[transferred_layers - 1]
        weights = pretrained if pretrained is not None else source.load()
        _copy_level(weights, model.backbone, level.parameters, level.modules)
    if frozen_layers:
        level = source.levels[frozen_layers - 1]
        model.freeze(level.parameters, level.modules)
    return model.train()


def build_network(
    source: Source,
    *,
    transferred_layers: int,
    upper_layers: UpperLayers,
    num_classes: int,
    drop_rate: float = 0.0,
) -> TransferModel:
    """The same network as `transfer` builds, all weights fresh: what saved weights are loaded into."""
    cut = upper_layers == "drop" and 0 < transferred_layers < len(source.levels)
    backbone = source.build(num_classes)
    _drop_nothing_before_the_classifier(backbone)
    if cut:
        level = source.levels[transferred_layers - 1]
        network: Any = backbone
        network.prune_intermediate_layers([level.timm_index], prune_norm=True, prune_head=True)
        head = nn.Linear(level.channels, num_classes)
        return TransferModel(backbone, cut_at=level.timm_index, head=head, drop_rate=drop_rate)
    if is_linear_classifier(backbone, source.data_config.image_size):
        return TransferModel(backbone, cut_at=None, head=None, drop_rate=drop_rate)
    network = backbone
    network.reset_classifier(0)
    head = nn.Linear(source.levels[-1].channels, num_classes)
    return TransferModel(backbone, cut_at=None, head=head, drop_rate=drop_rate)


def level_features(network: Any, images: Tensor, timm_index: int) -> Tensor:
    """Pooled features of one level: the mean over positions of its output, [n, D]."""
    (output,) = network.forward_intermediates(images, indices=[timm_index], stop_early=True, intermediates_only=True)
    return pool(output)


def pool(output: Tensor) -> Tensor:
    """The mean over positions: [n, D, H, W] -> [n, D]."""
    return output.mean(dim=tuple(range(2, output.ndim)))


def is_linear_classifier(model: nn.Module, image_size: int) -> bool:
    """True where one linear layer is all that lies between the pooled features and the logits.

    Looked up in the autograd graph: VOLO adds what an auxiliary head says, EfficientViT normalises first.
    """
    network: Any = model
    classifier = network.get_classifier()
    if not isinstance(classifier, nn.Linear):
        return False
    was_training = model.training
    model.eval()
    image = torch.zeros(1, 3, image_size, image_size)
    with torch.enable_grad():
        between = parameters_behind(model(image)) - parameters_behind(pooled_features(model, image))
    model.train(was_training)
    return between == {id(parameter) for parameter in classifier.parameters()}


def _drop_nothing_before_the_classifier(network: Any) -> None:
    """Turn off an architecture's own dropout at its head (0.2 in GhostNet, ReXNet): `drop_rate` says it for all."""
    if hasattr(network, "drop_rate"):
        network.drop_rate = 0.0
    classifier = network.get_classifier()
    holder = next((module for module in network.modules() if classifier in module.children()), network)
    for module in holder.children():
        if isinstance(module, nn.Dropout):
            module.p = 0.0


@torch.no_grad()
def _copy_level(weights: nn.Module, network: nn.Module, parameters: frozenset[str], modules: frozenset[str]) -> None:
    """Copy a level's parameters, and the saved buffers (norm statistics) of its modules.

    Buffers that are not saved are tables that an architecture computes for the size of its images.
    """
    excluded = classifier_parameters(weights)
    theirs = dict(weights.named_parameters())
    for name, parameter in network.named_parameters():
        if name in parameters and name not in excluded:
            parameter.copy_(theirs[name])
    saved = weights.state_dict()
    for name, buffer in network.named_buffers():
        if name.rpartition(".")[0] in modules and name in saved:
            buffer.copy_(saved[name])
