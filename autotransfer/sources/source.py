"""A source: one pretrained model that can be transferred, and what is known of it before and after loading."""

import hashlib
import json
import logging
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from torch import nn

from autotransfer.errors import SourceError
from autotransfer.sources.hub import hub_or_cache
from autotransfer.sources.levels import Level, classifier_parameters, find_levels, whole_network
from autotransfer.sources.published import Published, find_published

logger = logging.getLogger(__name__)

SourceKind = Literal["timm", "hf-hub", "local-dir", "embedded"]

# What building or running an architecture raises when its arguments or its images do not suit it.
_ARCHITECTURE_FAILS = (RuntimeError, TypeError, ValueError, AssertionError, LookupError, AttributeError)


@dataclass(frozen=True)
class DataConfig:
    """How a source wants its images: timm's names and meanings.

    Attributes:
        image_size: side of the square input in pixels that the source was pretrained at.
        fixed_image_size: True where the architecture takes no other size.
        mean, std: per channel, of inputs scaled to [0, 1].
        interpolation: PIL resampling by name.
    """

    image_size: int
    fixed_image_size: bool
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str


@dataclass(frozen=True)
class Source:
    """One pretrained model, named as timm names it.

    Attributes:
        name: what users write and read: `resnet18.a1_in1k`, `hf-hub:org/model`, `local-dir:/models/x`,
            `embedded:NAME`.
        timm_name: what `timm.create_model` is given.
        kind: where the weights come from.
    """

    name: str
    timm_name: str
    kind: SourceKind

    @property
    def folder(self) -> Path | None:
        """The folder that holds the weights, for sources that are on this machine."""
        return Path(self.timm_name.removeprefix("local-dir:")) if self.kind in ("local-dir", "embedded") else None

    @cached_property
    def published(self) -> Published | None:
        """What timm has published about this source; None for any other's."""
        return find_published(self.timm_name) if self.folder is None else None

    @cached_property
    def architecture(self) -> str:
        """Timm's name of the architecture, without the pretrained tag."""
        return str(self._description["architecture"])

    @cached_property
    def model_args(self) -> dict[str, Any]:
        """Arguments that turn the architecture into this source's variant."""
        return dict(self._description.get("model_args") or {})

    @cached_property
    def pretrained_cfg(self) -> dict[str, Any]:
        """Timm's `pretrained_cfg` as a plain dictionary."""
        return dict(self._description["pretrained_cfg"])

    @cached_property
    def data_config(self) -> DataConfig:
        """Timm's data configuration of this source.

        Raises:
            SourceError: `pretrained_cfg` holds values that are no sizes or statistics.
        """
        from timm.data import resolve_data_config

        try:
            config = resolve_data_config(pretrained_cfg=self.pretrained_cfg)
            return DataConfig(
                image_size=int(config["input_size"][-1]),
                fixed_image_size=bool(self.pretrained_cfg.get("fixed_input_size", False)),
                mean=_three_numbers(config["mean"]),
                std=_three_numbers(config["std"]),
                interpolation=str(config["interpolation"]),
            )
        except (TypeError, ValueError) as error:
            raise SourceError(
                f"source '{self.name}': pretrained_cfg does not say what images it takes: {_reason(error)}. "
                "input_size is [3, height, width]; mean and std have three numbers each."
            ) from error

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """Where this source can be cut, 1..K from the input, with size and cost at its own image size.

        An architecture that cannot be cut has one level, the whole network.

        Raises:
            SourceError: the architecture cannot be built or run.
        """
        import torch

        # Looking must not change what is drawn next, and needs the autograd graph wherever it is asked for.
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            model = self.build()
            try:
                return find_levels(model, self.data_config.image_size)
            except (SourceError, *_ARCHITECTURE_FAILS) as error:
                reason = _reason(error)
            try:
                level = whole_network(model, self.data_config.image_size)
            except _ARCHITECTURE_FAILS as error:
                raise SourceError(f"source '{self.name}' cannot be used: {_reason(error)}") from error
        logger.warning("source '%s' is offered at full depth only: %s", self.name, reason)
        return (level,)

    @cached_property
    def has_classifier(self) -> bool:
        """True where the source carries a trained classifier (LEEP and NCE need one)."""
        return int(self.pretrained_cfg.get("num_classes") or 0) > 0

    def build(self, num_classes: int | None = None, **model_args: Any) -> nn.Module:
        """The architecture with fresh weights, initialised as timm initialises it.

        Args:
            num_classes: outputs of the classifier; the source's own number where None.
            **model_args: further arguments of the architecture.

        Raises:
            SourceError: timm does not know the architecture, or it does not take its arguments.
        """
        import timm

        if not timm.is_model(self.architecture):
            raise SourceError(
                f"source '{self.name}': timm knows no architecture '{self.architecture}'. If it is your own, give "
                "the Python file that registers it with --plugin."
            )
        classes = self.pretrained_cfg.get("num_classes") if num_classes is None else num_classes
        try:
            model: nn.Module = timm.create_model(
                self.architecture, pretrained=False, num_classes=classes, **{**self.model_args, **model_args}
            )
        except _ARCHITECTURE_FAILS as error:
            raise SourceError(f"source '{self.name}' cannot be built: {_reason(error)}") from error
        return model

    def load(self) -> nn.Module:
        """The pretrained network with its own classifier, on the CPU, in evaluation mode.

        Raises:
            SourceError: the weights cannot be fetched or do not fit the architecture.
        """
        import timm

        try:
            with self._access():
                model: nn.Module = timm.create_model(self.timm_name, pretrained=True)
        except Exception as error:  # timm and the hub raise a dozen kinds; each means: no weights
            raise SourceError(f"source '{self.name}' cannot be loaded: {_reason(error)}") from error
        return model.float().eval()

    def code_identity(self) -> str:
        """What a forward pass depends on beside the weights: the architecture, its arguments, timm's version."""
        import timm

        arguments = json.dumps(self.model_args, sort_keys=True, default=str)
        return f"{self.architecture} {arguments} timm {timm.__version__}"

    def parameter_count(self) -> int:
        """Number of weights without the source's own classifier."""
        return self.levels[-1].parameter_count

    def _access(self) -> AbstractContextManager[None]:
        return nullcontext() if self.folder is not None else hub_or_cache()

    @cached_property
    def _description(self) -> dict[str, Any]:
        import timm
        from timm.models import load_model_config_from_hf
        from timm.models._hub import load_model_config_from_path

        try:
            if self.folder is not None:
                cfg, architecture, model_args = load_model_config_from_path(self.folder)
                return {"architecture": architecture, "pretrained_cfg": cfg, "model_args": model_args}
            if self.kind == "hf-hub":
                repository = self.timm_name.removeprefix("hf-hub:")
                with self._access():
                    cfg, architecture, model_args = load_model_config_from_hf(repository)
                return {"architecture": architecture, "pretrained_cfg": cfg, "model_args": model_args}
        except Exception as error:  # the hub client and the JSON parser raise many kinds: no description
            where = "" if self.folder is None else f" in {self.folder / 'config.json'}"
            raise SourceError(f"source '{self.name}' cannot be read: {_reason(error)}{where}") from error
        default = timm.get_pretrained_cfg(self.timm_name)
        if default is None:
            raise SourceError(f"source '{self.name}': timm knows no pretrained weights of that name.")
        return {"architecture": self.timm_name.split(".")[0], "pretrained_cfg": default.to_dict()}


def weights_hash(model: nn.Module) -> str:
    """A hash of all weights and statistics of a network: equal networks, equal hash (hex, 32 digits)."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def has_trained_classifier(model: nn.Module) -> bool:
    """True where the network carries classifier weights."""
    return bool(classifier_parameters(model))


def _three_numbers(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _reason(error: Exception) -> str:
    """What went wrong in one line: the first that says more than that something went wrong."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    if isinstance(error, KeyError):
        return f"{error} is missing"
    if isinstance(error, LocalEntryNotFoundError):
        return "the model hub cannot be reached, and its files are not in this machine's hub cache"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2] if lines[0].endswith(":") else lines[:1])[:300]
