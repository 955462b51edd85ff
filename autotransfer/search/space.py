"""The search space: a YAML file, validated, with every error said at once."""

import hashlib
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from autotransfer.errors import ProxyError, SpaceError
from autotransfer.quantities import parse_duration
from autotransfer.task import Task

_REPOSITORY_SPACES = Path(__file__).parents[2] / "search_spaces"


def _default_proxies() -> list[str]:
    from autotransfer.proxies import DEFAULT_PROXIES  # imports torch

    return list(DEFAULT_PROXIES)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FloatRange(_Strict):
    """A range of a real hyperparameter, zero or more."""

    min: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    max: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> "FloatRange":
        if not self.min <= self.max:
            raise ValueError(f"min must be at most max, but got {self.min} > {self.max}")
        if self.log and self.min <= 0:
            raise ValueError(f"a log range needs min > 0, but got {self.min}")
        return self


class IntRange(_Strict):
    """A range of a whole number, both ends included."""

    min: Annotated[int, Field(ge=1)]
    max: Annotated[int, Field(ge=1)]
    step: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _ordered(self) -> "IntRange":
        if self.min > self.max:
            raise ValueError(f"min must be at most max, but got {self.min} > {self.max}")
        return self

    def largest(self, limit: int | None = None) -> int:
        """The largest member that is at most `limit` (and at least `min`)."""
        upper = self.max if limit is None else max(self.min, min(limit, self.max))
        return upper - (upper - self.min) % self.step


class Parameters(_Strict):
    """What the study chooses for every trial."""

    upper_layers: list[Literal["drop", "reinit"]] = Field(default=["drop", "reinit"], min_length=1)
    learning_rate: FloatRange = FloatRange(min=1e-4, max=1e-2, log=True)
    weight_decay: FloatRange = FloatRange(min=1e-4, max=1e-1, log=True)
    epochs: IntRange = IntRange(min=2, max=12, step=2)


class Training(_Strict):
    """What is the same for every trial."""

    batch_size: Annotated[int, Field(ge=2, le=4096)] = 32
    optimizer: Literal["adamw", "sgd"] = "adamw"
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    clip_grad: Annotated[float, Field(ge=0)] = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    early_stopping: Annotated[int, Field(ge=0)] = 0
    augmentation: Literal["none", "light", "flip"] = "light"
    randaugment: Annotated[int, Field(ge=0, le=30)] = 0
    mixup: Annotated[float, Field(ge=0)] = 0.0
    cutmix: Annotated[float, Field(ge=0)] = 0.0
    random_erasing: Annotated[float, Field(ge=0, le=1)] = 0.0
    cached_views: Annotated[int, Field(ge=0, le=64)] = 4
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    drop_rate: Annotated[float, Field(ge=0, lt=1)] = 0.0
    imbalance: Literal["none", "loss", "sampler"] = "none"
    head: Literal["linear_probe", "random"] = "linear_probe"
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    compile: bool = False
    max_image_size: Annotated[int, Field(ge=16)] | None = None

    def check(self, task: Task) -> None:
        """Refuse what the task lacks, before anything is trained.

        Raises:
            SpaceError: rare classes are to count more where there are none.
        """
        if self.imbalance == "sampler" and task != "classification":
            raise SpaceError(f"training.imbalance: sampler needs one class an image, not {task}. Choose loss or none.")
        if self.imbalance == "loss" and task == "regression":
            raise SpaceError("training.imbalance: loss needs classes or labels; numbers have none. Choose none.")


class Probing(_Strict):
    """How much the probe looks at."""

    max_train_images: Annotated[int, Field(ge=20)] = 2000
    max_val_images: Annotated[int, Field(ge=20)] = 1000
    max_sources: Annotated[int, Field(ge=1, description="of more that patterns match, the most promising")] = 60
    race_above: Annotated[int, Field(ge=1, description="more sources than this race")] = 12
    race_images: Annotated[int, Field(ge=20, description="training images that all of them are probed on")] = 300
    race_keep: Annotated[float, Field(gt=0, le=1, description="this fraction, best first, is probed in full")] = 0.34


class Pruning(_Strict):
    """Which trials end early."""

    proxy_keep: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.5, description="this fraction of the (source, level) pairs, best first, may be trained"
    )
    startup_trials: Annotated[int, Field(ge=1)] = 4
    warmup_epochs: Annotated[int, Field(ge=0, description="no learning curve is judged in these first epochs")] = 1


class Space(_Strict):
    """A search space, as users write it in YAML."""

    name: str = ""
    description: str = ""
    sources: list[str] = Field(min_length=1)
    plugins: list[str] = []
    metric: str = "auto"
    budget: str | float | None = None
    trials: Annotated[int, Field(ge=1)] | None = None
    proxies: list[str] = Field(default_factory=_default_proxies)
    sampler: Literal["proxy", "tpe", "gp", "random"] = "proxy"
    parameters: Parameters = Parameters()
    training: Training = Training()
    probing: Probing = Probing()
    pruning: Pruning = Pruning()

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, value: str) -> str:
        from autotransfer.transfer.evaluation import METRIC_NAMES

        if value not in ("auto", *METRIC_NAMES):
            raise ValueError(f"unknown metric '{value}'; choose one of: auto, {', '.join(METRIC_NAMES)}")
        return value

    @field_validator("budget")
    @classmethod
    def _is_duration(cls, value: str | float | None) -> str | float | None:
        if value is not None:
            try:
                parse_duration(value)
            except SpaceError as error:
                raise ValueError(str(error)) from error
        return value

    @field_validator("proxies")
    @classmethod
    def _known_proxies(cls, value: list[str]) -> list[str]:
        from autotransfer.proxies import get_proxy

        for name in value:
            try:
                get_proxy(name)
            except ProxyError as error:
                raise ValueError(str(error)) from error
        return value

    def identity(self) -> str:
        """A hash of what makes trials comparable: all but name, description, budget, trials, sampler."""
        text = self.model_dump_json(exclude={"name", "description", "budget", "trials", "sampler"})
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def list_spaces() -> dict[str, Path]:
    """The spaces that come with autotransfer, by name."""
    packaged = Path(str(files("autotransfer"))) / "search_spaces"
    folder = packaged if packaged.is_dir() else _REPOSITORY_SPACES
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find_space(name: str | Path) -> Path:
    """The file of a space that is named or given by its path.

    Raises:
        SpaceError: no such space.
    """
    path = Path(name) if str(name).endswith((".yaml", ".yml")) else list_spaces().get(str(name))
    if path is None or not path.is_file():
        raise SpaceError(f"there is no search space '{name}'. Name one of {', '.join(list_spaces())}, or a .yaml file.")
    return path


def load_space(name: str | Path, **overrides: Any) -> Space:
    """Read a space by name or from a YAML file.

    Args:
        name: `default`, `quick`, ... or the path of a file.
        **overrides: values that win over the file's (None: the file's holds).

    Raises:
        SpaceError: no such space, not YAML, or not valid; says every error with its key.
    """
    path = find_space(name)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SpaceError(f"{path} is not a YAML file: {error}") from error
    if not isinstance(content, dict):
        raise SpaceError(f"{path} must hold keys and values (sources:, parameters:, ...).")
    given = {key: value for key, value in overrides.items() if value is not None}
    try:
        return Space.model_validate({"name": path.stem, **content, **given})
    except ValidationError as error:
        raise SpaceError(_explain(path, given, error)) from error


def _explain(path: Path, given: Mapping[str, Any], error: ValidationError) -> str:
    problems = error.errors()
    argued = all(problem["loc"] and problem["loc"][0] in given for problem in problems)
    where = "the arguments" if argued else f"{path} and the arguments" if given else str(path)
    lines = [f"Found {len(problems)} error{'s' if len(problems) > 1 else ''} in {where}:"]
    for problem in problems:
        key = ".".join(str(part) for part in problem["loc"]) or "(whole file)"
        lines.append(f"  {key}: {problem['msg'].removeprefix('Value error, ')}{_allowed(problem)}")
    return "\n".join(lines)


def _allowed(problem: Any) -> str:
    if problem["type"] != "extra_forbidden":
        return f" (got {problem['input']!r})" if problem["type"] != "missing" else ""
    model: Any = Space
    for part in problem["loc"][:-1]:
        if isinstance(part, str) and part in model.model_fields:
            model = model.model_fields[part].annotation
    return f"; the keys here are: {', '.join(getattr(model, 'model_fields', {}))}"
