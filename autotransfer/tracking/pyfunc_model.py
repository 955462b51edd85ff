"""The recommended model as an MLflow model: image paths, bytes or base64 text in, labels out.

The logged model carries autotransfer's own code and a two-line loading script instead of a pickle, so it
loads where autotransfer is not installed, and with any Python that its requirements support.
"""

import base64
import binascii
import importlib
import io
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, LoggedModelStatus
from mlflow.models import Model
from mlflow.models.signature import ModelSignature
from mlflow.types.schema import ColSpec, DataType, Schema

from autotransfer.task import Task

REQUIREMENTS = (
    "torch",
    "torchvision",
    "timm",
    "pandas",
    "pillow",
    "safetensors",
    "pydantic",
    "pydantic-settings",
    "scikit-learn",
    "torchmetrics",
)

_LOADING_SCRIPT = """from mlflow.models import set_model

from autotransfer.tracking.pyfunc_model import RecommendedModel

set_model(RecommendedModel())
"""
_SMALL_BYTES = 200_000


class RecommendedModel(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # MLflow's classes are untyped for us
    """What `mlflow.pyfunc.load_model` loads: a folder that autotransfer saved, behind MLflow's `predict`."""

    def load_context(self, context: Any) -> None:
        """Load the saved model, after the plugins (which travel as code) that its source needs."""
        import autotransfer

        folder = Path(context.artifacts["model"])
        for plugin in plugin_files(folder):
            if plugin.stem not in sys.modules:
                importlib.import_module(plugin.stem)
        self._model = autotransfer.load(folder)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Label, confidence and `probability.<class>` of each image.

        Args:
            context: MLflow's; the model is already loaded from it.
            model_input: a DataFrame with a column `image`: paths, encoded images as bytes, or as base64 text.
            params: none are used.
        """
        predictions: pd.DataFrame = self._model.predict([read_image(value) for value in model_input["image"]])
        return predictions.drop(columns="image", errors="ignore").reset_index(drop=True)


def read_image(value: str | bytes | bytearray | memoryview | os.PathLike[str]) -> str | bytes:
    """The path or the encoded bytes that a cell means: text is a path if that file exists, else base64 if it is.

    >>> read_image("aGVsbG8=")
    b'hello'
    >>> read_image("photos/missing.jpg")
    'photos/missing.jpg'
    """
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    text = os.fspath(value)
    if _is_file(text):
        return text
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        return base64.b64decode("".join(encoded.split()), validate=True) or text
    except (binascii.Error, ValueError):
        return text


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):  # base64 text is too long for a file name
        return False


def plugin_files(folder: Path) -> list[Path]:
    """The plugin files that a saved model needs, from its `autotransfer.json`; none where it names none."""
    card = folder / "autotransfer.json"
    if not card.is_file():
        return []
    named = json.loads(card.read_text(encoding="utf-8")).get("plugin_files") or []
    return [path if path.is_absolute() else folder / path for path in map(Path, named)]


def requirements() -> list[str]:
    """The packages that the model needs, pinned to the versions it was trained with."""
    pinned = []
    for name in REQUIREMENTS:
        try:
            # The local part (2.6.0+cu124) names a build that the package index does not have.
            pinned.append(f"{name}=={version(name).partition('+')[0]}")
        except PackageNotFoundError:
            pinned.append(name)
    return pinned


def copy_package(destination: Path) -> Path:
    """Copy autotransfer's code, without weights and caches, to `destination`/autotransfer."""
    package = Path(__file__).resolve().parents[1]
    for path in package.rglob("*"):
        wanted = path.suffix == ".py" or path.name == "py.typed"
        wanted = wanted or (path.suffix == ".json" and path.stat().st_size <= _SMALL_BYTES)
        if wanted and path.is_file() and "__pycache__" not in path.parts:
            target = destination / package.name / path.relative_to(package)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    return destination / package.name


def signature(classes: list[str], task: Task) -> ModelSignature:
    """`image` -> the columns of `TrainedModel.predict`.

    The input is declared as string because MLflow lets bytes pass a string column, in pandas, and a JSON
    request's text unchanged: declared as binary, paths in JSON would be taken for base64.
    """
    from autotransfer.transfer.model import prediction_columns

    types = {str: DataType.string, float: DataType.double}
    outputs = [ColSpec(types[kind], name) for name, kind in prediction_columns(classes, task)]
    return ModelSignature(inputs=Schema([ColSpec(DataType.string, "image")]), outputs=Schema(outputs))


def input_example(image: str) -> pd.DataFrame | None:
    """One image as base64 text, made small where it is large; None where there is no such file."""
    if not image or not _is_file(image):
        return None
    content = Path(image).read_bytes()
    if len(content) > _SMALL_BYTES:
        from PIL import Image

        with Image.open(io.BytesIO(content)) as opened:
            small = opened.convert("RGB")
        small.thumbnail((512, 512))
        buffer = io.BytesIO()
        small.save(buffer, format="JPEG", quality=90)
        content = buffer.getvalue()
    return pd.DataFrame({"image": [base64.b64encode(content).decode("ascii")]})


def log_model(client: MlflowClient, run_id: str, folder: Path, image: str = "") -> str:
    """Log the model saved in `folder` under the name "model" of a run; returns MLflow's model id.

    The steps are those of `mlflow.models.Model.log`, taken through the client: that method writes to the
    process's global tracking URI, which is the user's, not ours.

    Args:
        client: of the store that has the run.
        run_id: the run that made the model.
        folder: what `Recommendation.save` wrote.
        image: path of an image for the input example.
    """
    run = client.get_run(run_id)
    logged = client.create_logged_model(
        run.info.experiment_id, name="model", source_run_id=run_id, params=dict(run.data.params)
    )
    status = LoggedModelStatus.FAILED
    try:
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        with tempfile.TemporaryDirectory(prefix="autotransfer-") as temporary, _mlflow_at_rest():
            script = Path(temporary, "load_recommended_model.py")
            script.write_text(_LOADING_SCRIPT, encoding="utf-8")
            code = [copy_package(Path(temporary)), *(path for path in plugin_files(folder) if path.is_file())]
            local = Path(temporary, "model")
            mlflow.pyfunc.save_model(
                path=str(local),
                mlflow_model=Model(
                    artifact_path=logged.artifact_location,
                    run_id=run_id,
                    model_uuid=logged.model_id,
                    model_id=logged.model_id,
                ),
                python_model=str(script),
                artifacts={"model": str(folder)},
                code_paths=[str(path) for path in code],
                pip_requirements=[f"mlflow=={version('mlflow')}", *requirements()],
                signature=signature(*_outputs(folder)),
                input_example=input_example(image),
            )
            for cache in list(local.rglob("__pycache__")):
                shutil.rmtree(cache, ignore_errors=True)
            client.log_model_artifacts(logged.model_id, str(local))
        status = LoggedModelStatus.READY
    finally:
        client.finalize_logged_model(logged.model_id, status)
    return str(logged.model_id)


def register_model(client: MlflowClient, model_id: str, run_id: str, name: str, alias: str) -> str:
    """Make the logged model a new version of a registered model, and point the alias at it; returns the version."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    try:
        created = client.create_model_version(name, f"models:/{model_id}", run_id, model_id=model_id)
    except MlflowException:
        # Without a server, MLflow 3.17 looks that address up in the process's global store, not in the client's
        # (a TODO in its SqlAlchemyStore.create_model_version); when that is mended, this branch can go.
        source = client.get_logged_model(model_id).artifact_location
        created = client.create_model_version(name, source, run_id, model_id=model_id)
    client.set_registered_model_alias(name, alias, created.version)
    # The UI finds a logged model's registered versions by this tag.
    client.set_logged_model_tags(
        model_id, {"mlflow.modelVersions": json.dumps([{"name": name, "version": created.version}])}
    )
    return str(created.version)


def _outputs(folder: Path) -> tuple[list[str], Task]:
    """Names and meaning of a saved model's outputs."""
    card = folder / "autotransfer.json"
    found = json.loads(card.read_text(encoding="utf-8")) if card.is_file() else {}
    return [str(name) for name in found.get("classes") or []], found.get("task", "classification")


@contextmanager
def _mlflow_at_rest() -> Iterator[None]:
    """Keep MLflow from progress bars, and from copying the uv.lock of the project the user stands in into the model."""
    wanted = {"MLFLOW_UV_AUTO_DETECT": "false", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}
    before = {name: os.environ.get(name) for name in wanted}
    logger = logging.getLogger("mlflow.pyfunc")
    level = logger.level
    os.environ.update(wanted)
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
