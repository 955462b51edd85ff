"""Label sets and numbers, end to end: from a manifest to a model that predicts, in the product and through MLflow."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient, pyfunc
from mlflow.entities import LoggedModel
from PIL import Image
from sklearn.datasets import load_digits
from small_study import CONVNEXT

import autotransfer
from autotransfer import settings
from autotransfer.recommendation import Recommendation

LABELS = {"even": {0, 2, 4, 6, 8}, "has a loop": {0, 6, 8, 9}, "below three": {0, 1, 2}}
SPACE = {
    "sources": [CONVNEXT],
    "parameters": {"upper_layers": ["drop"], "epochs": {"min": 4, "max": 4}},
    "training": {"augmentation": "none"},
}


def write_images(folder: Path, count: int = 240) -> pd.DataFrame:
    """Digits as files, with what is on each: `image`, `digit`, and `ink` (how much of it is bright)."""
    digits, rows = load_digits(), []
    folder.mkdir(parents=True)
    for index in range(count):
        grey = Image.fromarray((digits.images[index] * 255 / 16).astype(np.uint8)).resize((32, 32))
        grey.save(folder / f"{index:04d}.png")
        rows.append({"image": f"{folder.name}/{index:04d}.png", "digit": digits.target[index]})
        rows[-1]["ink"] = 1000 + 10 * digits.images[index].mean()
    return pd.DataFrame(rows)


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    table = write_images(folder / "images")
    for name, members in LABELS.items():
        table[name] = table["digit"].isin(members).astype(int)
    table[["image", *LABELS]].to_csv(folder / "labels.csv", index=False)
    table[["image", "ink"]].rename(columns={"ink": "label"}).to_csv(folder / "ink.csv", index=False)
    (folder / "space.yaml").write_text(yaml.safe_dump(SPACE))
    return folder


def recommend(work: Path, manifest: str) -> Recommendation:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUTOTRANSFER_HOME", str(work / "home"))
        patch.setenv("AUTOTRANSFER_CACHE_DIR", str(work / "cache"))
        settings.settings.cache_clear()
        found = autotransfer.recommend(
            work / manifest, space=str(work / "space.yaml"), trials=3, out=work / f"{manifest}.answer", device="cpu"
        )
    settings.settings.cache_clear()
    return found


@pytest.fixture(scope="module")
def labels(work) -> Recommendation:
    return recommend(work, "labels.csv")


@pytest.fixture(scope="module")
def numbers(work) -> Recommendation:
    return recommend(work, "ink.csv")


def test_label_sets_are_recognised_learnt_and_predicted(labels, work):
    assert labels.model.task == "multilabel"
    assert labels.test.metric == "average_precision"
    assert set(labels.baselines) == {"label_frequencies", "linear_probe", "from_scratch"}
    assert labels.test.low > labels.baselines["label_frequencies"].high
    assert labels.test.value > 0.8
    images = sorted((work / "images").glob("*.png"))[:40]
    predicted = labels.predict(images)
    probabilities = predicted[[f"probability.{name}" for name in LABELS]].to_numpy()
    assert list(predicted.columns) == ["image", "label", *(f"probability.{name}" for name in LABELS)]
    assert ((probabilities > 0) & (probabilities < 1)).all()
    expected = ["; ".join(np.array(list(LABELS))[row >= 0.5]) for row in probabilities]
    assert predicted["label"].to_list() == expected
    truth = pd.read_csv(work / "labels.csv")[list(LABELS)].to_numpy()[:40]
    assert ((probabilities >= 0.5) == truth).mean() > 0.8


def test_numbers_are_recognised_learnt_and_predicted(numbers, work):
    assert numbers.model.task == "regression"
    assert numbers.test.metric == "r2"
    assert set(numbers.baselines) == {"mean_value", "linear_probe", "from_scratch"}
    assert numbers.baselines["mean_value"].value < 0.1 < 0.5 < numbers.test.value
    predicted = numbers.predict(sorted((work / "images").glob("*.png")))
    assert list(predicted.columns) == ["image", "value.label"]
    truth = pd.read_csv(work / "ink.csv")["label"]
    assert np.corrcoef(predicted["value.label"], truth)[0, 1] > 0.7
    assert predicted["value.label"].between(truth.min() - 50, truth.max() + 50).all()


def logged_model(found: Recommendation) -> LoggedModel:
    """The model that MLflow keeps of a study."""
    client = MlflowClient(found.tracking_uri)
    experiment = client.get_experiment_by_name("autotransfer")
    models = client.search_logged_models([experiment.experiment_id])
    tags = {model.model_id: client.get_run(model.source_run_id).data.tags for model in models}
    (wanted,) = [model for model in models if tags[model.model_id]["autotransfer.study"] == found.study]
    return wanted


@pytest.mark.parametrize("kind", ["labels", "numbers"])
def test_the_saved_model_and_mlflows_say_the_same(kind, request, work):
    found: Recommendation = request.getfixturevalue(kind)
    images = [str(path) for path in sorted((work / "images").glob("*.png"))[:5]]
    expected = found.predict(images)
    loaded = autotransfer.load(found.folder)
    assert loaded.task == found.model.task
    pd.testing.assert_frame_equal(loaded.predict(images), expected, atol=1e-4)
    answer = json.loads((found.folder / "recommendation.json").read_text())
    assert answer["task"] == found.model.task
    model = pyfunc.load_model(str(logged_model(found).artifact_location))
    answered = model.predict(pd.DataFrame({"image": images}))
    pd.testing.assert_frame_equal(answered, expected.drop(columns="image"), atol=1e-4)
