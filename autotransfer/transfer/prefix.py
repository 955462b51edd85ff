"""The frozen prefix: the part of a network that does not train, run once and replayed from its activations.

For any timm architecture, by its modules alone: one pass shows which modules of the frozen levels run before
anything that trains, and the output of the last of them (the boundary) is what the rest of the network goes on
from. While it trains, those modules are replaced: the boundary by one that returns kept activations, the
others by ones that return zeros of the right shape (timm's code between modules, such as adding positions, still
runs, on nothing). Whether a network allows that is not assumed but tried: it must say the same on a batch of
real images, or it trains without.
"""

import contextlib
import hashlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from autotransfer.transfer.surgery import TransferModel

logger = logging.getLogger(__name__)

_LARGEST_DIFFERENCE = 1e-3  # of the features' own spread


class _ReachedError(Exception):
    """The boundary has spoken: the rest of the pass is not needed."""


class _Replayed(nn.Module):
    """Stands for a frozen module: returns what it is told to, and knows what the module knows."""

    def __init__(self, original: nn.Module, example: Any) -> None:
        super().__init__()
        self.__dict__["_original"] = original  # not a child: its parameters are not there to be trained
        self.example = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), example)  # its shape, no memory
        self.value: Any = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_original"], name)

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.value


@dataclass(frozen=True)
class FrozenPrefix:
    """The frozen part of one network.

    Attributes:
        model: the network.
        boundary: the module whose output the rest goes on from; empty where all but the classifier is frozen,
            and the features themselves are kept.
        shape: of one image's activations.
    """

    model: TransferModel
    boundary: str
    shape: tuple[int, ...]
    _stubs: dict[str, _Replayed]
    _image_shape: tuple[int, ...]

    @torch.no_grad()
    def activations(self, images: Tensor) -> Tensor:
        """What the frozen part says about normalised images [n, 3, H, W]: [n, *shape]."""
        was_training = self.model.training
        with self._replaced(self._originals, replays_features=False):
            self.model.eval()
            found = self._boundary_output(images) if self.boundary else self.model.features(images)
            self.model.train(was_training)
        return found

    @contextlib.contextmanager
    def replaying(self) -> Iterator[None]:
        """The frozen modules out of the network, and `feed` in their place, for a while."""
        with self._replaced(self._stubs, replays_features=not self.boundary):
            yield

    @property
    def _originals(self) -> dict[str, nn.Module]:
        return {name: stub.__dict__["_original"] for name, stub in self._stubs.items()}

    @contextlib.contextmanager
    def _replaced(self, modules: Mapping[str, nn.Module], *, replays_features: bool) -> Iterator[None]:
        before = {name: self.model.backbone.get_submodule(name) for name in modules}
        replayed_before = self.model.replays_features
        for name, module in modules.items():
            _put(self.model.backbone, name, module)
        self.model.replays_features = replays_features
        try:
            yield
        finally:
            self.model.replays_features = replayed_before
            for name, module in before.items():
                _put(self.model.backbone, name, module)

    def _boundary_output(self, images: Tensor) -> Tensor:
        reached: list[Tensor] = []

        def stop(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            reached.append(output)
            raise _ReachedError

        hook = self.model.backbone.get_submodule(self.boundary).register_forward_hook(stop)
        try:
            with contextlib.suppress(_ReachedError):
                self.model.features(images)
        finally:
            hook.remove()
        return reached[0]

    def identity(self) -> str:
        """A hash of the frozen weights and statistics, of where they end, and of the kind of network."""
        digest = hashlib.blake2b(f"{type(self.model.backbone).__name__}/{self.boundary}".encode(), digest_size=16)
        with self._replaced(self._originals, replays_features=False):
            for name, tensor in self.model.backbone.named_parameters():
                if not tensor.requires_grad:
                    _add(digest, name, tensor)
            for name, buffer in self.model.backbone.named_buffers():
                if name.rpartition(".")[0] in self.model.frozen_modules:
                    _add(digest, name, buffer)
        return digest.hexdigest()

    def feed(self, activations: Tensor) -> Tensor:
        """Lay activations [n, *shape] ready; returns what to call the network with.

        That is the activations themselves where they are the features, else images without a content.
        """
        if not self.boundary:
            return activations
        count, nothing = len(activations), torch.zeros((), device=activations.device)
        for name, stub in self._stubs.items():
            stub.value = activations if name == self.boundary else _blank(stub.example, count, nothing)
        return nothing.expand(count, *self._image_shape)


def find_prefix(model: TransferModel, images: Tensor) -> FrozenPrefix | None:
    """The frozen prefix of a network, None where it has none or cannot be cut there.

    Args:
        model: from `transfer`; it is left in evaluation mode.
        images: at least two normalised images of the target, on the model's device: what is tried on.
    """
    if not model.frozen_modules:
        return None
    model.eval()
    if not any(parameter.requires_grad for parameter in _behind_features(model)):
        with torch.inference_mode():
            features = model.features(images)
        return FrozenPrefix(model, "", tuple(features.shape[1:]), {}, tuple(images.shape[1:]))
    try:
        prefix = _traced(model, images)
        if prefix is not None and _says_the_same(prefix, images):
            return prefix
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as error:
        logger.debug("replaying failed: %s", error)
    logger.info("the frozen levels of this architecture cannot be replayed: they run in every epoch")
    return None


def _behind_features(model: TransferModel) -> list[nn.Parameter]:
    own = {id(parameter) for parameter in model.classifier.parameters()}
    return [parameter for parameter in model.backbone.parameters() if id(parameter) not in own]


@torch.inference_mode()
def _traced(model: TransferModel, images: Tensor) -> FrozenPrefix | None:
    """One pass: the largest frozen modules that run once, before anything that trains."""
    backbone = model.backbone
    frozen = {
        name: module
        for name, module in backbone.named_modules()
        if name in model.frozen_modules and not any(p.requires_grad for p in module.parameters())
    }
    finished: list[str] = []
    calls: dict[str, int] = {}
    outputs: dict[str, Any] = {}
    training_begins: list[int] = []

    def note(name: str, output: Any) -> None:
        calls[name] = calls.get(name, 0) + 1
        outputs[name] = output
        if not training_begins:
            finished.append(name)

    hooks = [m.register_forward_hook(lambda _m, _i, out, name=n: note(name, out)) for n, m in frozen.items()]
    for module in backbone.modules():
        if any(p.requires_grad for p in module.parameters(recurse=False)):
            hooks.append(module.register_forward_pre_hook(lambda _m, _i: training_begins.append(1)))
    try:
        model.features(images)
    finally:
        for hook in hooks:
            hook.remove()
    once = [name for name in finished if calls[name] == 1]
    largest = [name for name in once if not any(name.startswith(f"{other}.") for other in once)]
    if not largest or not isinstance(outputs[largest[-1]], Tensor) or len(outputs[largest[-1]]) != len(images):
        return None
    stubs = {name: _Replayed(frozen[name], outputs[name]) for name in largest}
    boundary = largest[-1]
    return FrozenPrefix(model, boundary, tuple(outputs[boundary].shape[1:]), stubs, tuple(images.shape[1:]))


@torch.inference_mode()
def _says_the_same(prefix: FrozenPrefix, images: Tensor) -> bool:
    whole = prefix.model.features(images)
    activations = prefix.activations(images)
    with prefix.replaying():
        replayed = prefix.model.features(prefix.feed(activations))
    if replayed.shape != whole.shape:
        return False
    difference = (replayed - whole).abs().max()
    return bool(difference <= _LARGEST_DIFFERENCE * whole.std().clamp_min(1e-6))


def _blank(example: Any, count: int, nothing: Tensor) -> Any:
    """Zeros in the shape of a module's output, for another number of images; they take no memory."""
    return tree_map_only(Tensor, lambda tensor: nothing.to(tensor.dtype).expand(count, *tensor.shape[1:]), example)


def _add(digest: Any, name: str, tensor: Tensor) -> None:
    digest.update(name.encode())
    digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())


def _put(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent) if parent else network, last, module)
