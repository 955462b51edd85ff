"""The main job through the command line, with real parts: digits in, a trained model and its evidence out."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import optuna
import pandas as pd
import pytest
from mlflow import MlflowClient, pyfunc
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import CliRunner

import autotransfer
from autotransfer.cli import app
from autotransfer.datasets import load_dataset
from autotransfer.search.study import open_storage

SOURCES = ("embedded:test_convnext2.scenes", "embedded:mobilenetv3_small_050.textures")
SPACE = """
sources: [{sources}]
parameters:
  epochs: {{min: 1, max: 2}}
probing: {{max_train_images: 60, max_val_images: 20}}
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with 140 real digits in class folders and a space that is quickly searched."""
    folder = tmp_path_factory.mktemp("main-job")
    digits = load_digits()
    for index, (pixels, label) in enumerate(zip(digits.images[:400], digits.target[:400], strict=True)):
        if label > 3:
            continue
        path = folder / "digits" / str(label) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 15.9).astype(np.uint8)).resize((32, 32)).save(path)
    (folder / "space.yaml").write_text(SPACE.format(sources=", ".join(SOURCES)))
    return folder


@pytest.fixture(scope="module")
def environment(work):
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("AUTOTRANSFER_", "MLFLOW_"))}
    return {
        **kept,
        "AUTOTRANSFER_HOME": str(work / "home"),
        "AUTOTRANSFER_CACHE_DIR": str(work / "cache"),
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
    }


@pytest.fixture(scope="module")
def command(work, environment):
    def run(*arguments, check=True):
        words = [sys.executable, "-m", "autotransfer.cli", *map(str, arguments)]
        done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=work, timeout=300)
        assert not check or done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def answer(work, command):
    """What `recommend --json` prints."""
    done = command("recommend", "digits", "--space", "space.yaml", "--trials", 4, "--out", "out", "--json")
    return json.loads(done.stdout)


def runs(work):
    client = MlflowClient(f"sqlite:///{work}/home/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("autotransfer").experiment_id], max_results=1000)
    return client, found


def study_runs(work, name):
    client, found = runs(work)
    (parent,) = [run for run in found if run.data.tags.get("autotransfer.study") == name and _parent(run) is None]
    return client, parent, [run for run in found if _parent(run) == parent.info.run_id]


def _parent(run):
    return run.data.tags.get("mlflow.parentRunId")


def test_the_answer_beats_chance_and_comes_with_both_baselines(answer):
    test, baselines = answer["test"], answer["baselines"]
    assert test["low"] <= test["value"] <= test["high"]
    assert test["value"] > 0.5 > baselines["majority_class"]["value"]
    assert {"majority_class", "linear_probe", "from_scratch"} == set(baselines)
    assert answer["negative_transfer"]["verdict"] in {"yes", "no", "undecided"}
    assert answer["why"]


def test_the_test_score_is_that_of_the_saved_model(work, answer):
    dataset = load_dataset(work / "digits", seed=0)
    test = dataset.samples.iloc[dataset.rows("test")]
    predictions = autotransfer.load(work / "out").predict(list(test["image"]))
    assert answer["test"]["n"] == len(test)
    assert (predictions["label"].to_numpy() == test["label"].to_numpy()).mean() == pytest.approx(
        answer["test"]["value"]
    )


def test_every_trial_is_a_nested_run_with_its_parameters(work, answer):
    trials = pd.read_csv(work / "out" / "trials.csv")
    _, parent, children = study_runs(work, answer["study"])
    assert len(children) == len(trials)
    assert sum(run.data.params["transferred_layers"] == "0" for run in children) >= 1
    for run in children:
        row = trials.set_index("number").loc[int(run.data.tags["autotransfer.trial"])]
        assert run.data.params["source"] == row["source"]
        assert int(run.data.params["frozen_layers"]) == row["frozen_layers"]
        assert float(run.data.params["learning_rate"]) == pytest.approx(row["learning_rate"])
        assert {"complete": "FINISHED", "pruned": "KILLED", "fail": "FAILED"}[row["state"]] == run.info.status
        if row["transferred_layers"] > 0:
            assert "proxy.logme" in run.data.metrics
        if row["state"] == "complete":
            assert run.data.metrics["val.accuracy"] == pytest.approx(row["value"])
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["test.accuracy"] == pytest.approx(answer["test"]["value"])


def test_mlflow_loads_the_model_and_predicts_from_paths_and_bytes(work, answer):
    client, parent, _ = study_runs(work, answer["study"])
    (logged,) = client.search_logged_models(
        [parent.info.experiment_id], filter_string=f"source_run_id='{parent.info.run_id}'"
    )
    model = pyfunc.load_model(logged.artifact_location)
    images = sorted((work / "digits").rglob("*.png"))[:5]
    expected = autotransfer.load(work / "out").predict(images)
    by_path = model.predict(pd.DataFrame({"image": [str(image) for image in images]}))
    by_bytes = model.predict(pd.DataFrame({"image": [image.read_bytes() for image in images]}))
    columns = [name for name in expected if name.startswith("probability.")]
    assert list(by_path["label"]) == list(by_bytes["label"]) == list(expected["label"])
    np.testing.assert_allclose(by_path[columns], expected[columns], atol=1e-5)
    np.testing.assert_allclose(by_bytes[columns], expected[columns], atol=1e-5)


def test_predict_prints_what_the_loaded_model_says(work, command, answer):
    images = sorted((work / "digits").rglob("*.png"))[::20]
    printed = command("predict", "out", *images, "--csv").stdout
    (work / "printed.csv").write_text(printed)
    expected = autotransfer.load(work / "out").predict(images)
    columns = [name for name in expected if name.startswith("probability.")]
    np.testing.assert_allclose(pd.read_csv(work / "printed.csv")[columns], expected[columns], atol=1e-5)


def test_score_ranks_every_source_and_level_without_training(work, command):
    scores = json.loads(command("score", "digits", "--space", "space.yaml", "--json").stdout)
    assert {row["source"] for row in scores} == set(SOURCES)
    assert [row["rank"] for row in scores] == list(range(1, len(scores) + 1))
    assert len(scores) == 4 + 5
    assert all(row["logme"] is not None and 0 <= row["linear_probe"] <= 1 for row in scores)


@pytest.mark.slow
def test_the_same_seed_and_number_of_trials_give_the_same_recommendation_where_no_past_counts(work, command, answer):
    again = command(
        "recommend", "digits", "--space", "space.yaml", "--trials", 4, "--no-history", "--out", "again", "--json"
    )  # fmt: skip
    second = json.loads(again.stdout)
    assert second["study"] != answer["study"]
    assert second["config"] == answer["config"]
    assert second["test"] == answer["test"]
    first, other = (pd.read_csv(work / folder / "trials.csv").drop(columns="seconds") for folder in ("out", "again"))
    pd.testing.assert_frame_equal(first, other)


def test_in_memory_and_on_disk_the_probabilities_are_the_same(work, monkeypatch, environment):
    for key in ("AUTOTRANSFER_HOME", "AUTOTRANSFER_CACHE_DIR"):
        monkeypatch.setenv(key, environment[key])
    from autotransfer.settings import settings

    settings.cache_clear()
    try:
        found = autotransfer.recommend(
            work / "digits",
            space=str(work / "space.yaml"),
            sources=[SOURCES[0]],
            trials=2,
            out=work / "api",
            study="api",
        )
    finally:
        settings.cache_clear()
    images = [path.read_bytes() for path in sorted((work / "digits").rglob("*.png"))[::10]]
    loaded = autotransfer.load(work / "api")
    np.testing.assert_allclose(loaded.outputs(images), found.model.outputs(images), atol=1e-5)


def finished_trials(work, name):
    path = work / "home" / "studies" / f"{name}.journal"
    if not path.exists():
        return {}
    try:
        study = optuna.load_study(study_name=name, storage=open_storage(f"journal:{path}"))
    except KeyError:  # its journal is there a moment before the study
        return {}
    return {t.number: (t.state, t.value, t.datetime_complete) for t in study.trials if t.state.is_finished()}


def start(work, environment, *arguments):
    words = [sys.executable, "-m", "autotransfer.cli", "recommend", "digits", "--space", "space.yaml", *arguments]
    return subprocess.Popen(
        list(map(str, words)), cwd=work, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_trials(work, name, process, number):
    deadline = time.monotonic() + 120
    while len(finished_trials(work, name)) < number:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.slow
def test_a_killed_study_is_resumed_without_losing_or_repeating_a_trial(work, environment, command):
    process = start(work, environment, "--trials", 6, "--study", "killed")
    wait_for_trials(work, "killed", process, 3)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = finished_trials(work, "killed")
    done = command(
        "recommend", "digits", "--space", "space.yaml", "--trials", 6, "--study", "killed", "--resume", "--json",
        "--out", "resumed",
    )  # fmt: skip
    after = finished_trials(work, "killed")
    assert {number: after[number] for number in before} == before
    assert len(after) > len(before)
    trials = pd.read_csv(work / "resumed" / "trials.csv")
    complete = trials[trials["state"] == "complete"]
    assert not complete.duplicated(["source", "transferred_layers", "frozen_layers", "learning_rate"]).any()
    assert json.loads(done.stdout)["test"]["value"] > 0.5
    assert not any(state == optuna.trial.TrialState.RUNNING for state, *_ in after.values())


@pytest.mark.slow
def test_another_process_joins_a_study_and_the_first_answers(work, environment):
    leader = start(work, environment, "--trials", 12, "--study", "shared", "--jobs", 1, "--out", "shared", "--json")
    words = [sys.executable, "-m", "autotransfer.cli", "join", "digits", "--study", "shared"]
    while not (work / "home" / "studies" / "shared.journal").exists():
        assert leader.poll() is None, leader.communicate()[1]
        time.sleep(0.2)
    time.sleep(1)  # the study is made a moment after its journal
    guest = subprocess.run(words, cwd=work, env=environment, capture_output=True, text=True, timeout=300)
    stdout, stderr = leader.communicate(timeout=300)
    assert (leader.returncode, guest.returncode) == (0, 0), stderr + guest.stderr
    journal = open_storage(f"journal:{work}/home/studies/shared.journal")
    trials = optuna.load_study(study_name="shared", storage=journal).trials
    trained = [t for t in trials if t.user_attrs.get("trained")]
    assert len(trained) in (12, 13)  # two that choose on two machines may each take the last
    workers = {trial.user_attrs["worker"] for trial in trained}
    ended = int(guest.stdout.split()[0])
    assert ended == sum(not t.user_attrs["worker"].endswith(f":{leader.pid}") for t in trials)
    assert len(workers) == (2 if ended else 1)
    assert json.loads(stdout)["study"] == "shared"
    _, parent, nested = study_runs(work, "shared")
    assert parent.info.status == "FINISHED"
    assert {int(run.data.tags["autotransfer.trial"]) for run in nested} >= {trial.number for trial in trained}
    late = subprocess.run(words, cwd=work, env=environment, capture_output=True, text=True, timeout=300)
    assert late.returncode == 2
    assert "the search of study 'shared' is over; there is nothing to join" in late.stderr


@pytest.mark.slow
def test_ctrl_c_ends_a_search_of_several_processes_too(work, environment):
    process = start(work, environment, "--budget", "10m", "--study", "several", "--jobs", 2, "--out", "several")
    wait_for_trials(work, "several", process, 2)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert "answering with what is known" in stderr
    assert (work / "several" / "model.safetensors").is_file()
    states = [state for state, *_ in finished_trials(work, "several").values()]
    journal = open_storage(f"journal:{work}/home/studies/several.journal")
    assert all(
        trial.state in (*states, optuna.trial.TrialState.WAITING)
        for trial in optuna.load_study(study_name="several", storage=journal).trials
    )


@pytest.mark.slow
def test_ctrl_c_ends_the_search_and_still_answers(work, environment):
    process = start(work, environment, "--budget", "10m", "--study", "stopped", "--json", "--out", "stopped")
    wait_for_trials(work, "stopped", process, 2)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 0, stderr
    assert json.loads(stdout)["study"] == "stopped"
    assert "answering with what is known" in stderr
    assert (work / "stopped" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["join", "digits", "--study", "nobody"], "there is no study 'nobody'"),
        (["recommend", "digits", "--gpu-budget", "5m", "--device", "cpu"], "give --budget instead"),
        (["recommend", "digits", "--address", "auto"], "give --executor ray too"),
        (["recommend", "digits", "--space", "nothing"], "there is no search space 'nothing'"),
        (["recommend", "digits", "--metric", "accurracy"], "unknown metric 'accurracy'"),
        (["recommend", "digits", "--source", "embedded:none"], "no embedded source matches"),
        (["recommend", "digits", "--source", "resnet18.a1_in1k"], "--space offline"),
        (["recommend", "digits", "--space", "space.yaml", "--max-params", "10"], "--max-params"),
        (["recommend", "digits", "--space", "space.yaml", "--study", "none", "--resume"], "no study 'none' to resume"),
        (["recommend", "digits", "--space", "space.yaml", "--out", "space.yaml"], "space.yaml is a file"),
        (["predict", "digits", "x.png"], "is not a model folder"),
    ],
)
def test_a_mistake_gets_one_clear_error(work, environment, answer, arguments, message, monkeypatch):
    monkeypatch.chdir(work)
    done = CliRunner().invoke(app, arguments, env=environment)
    assert done.exit_code == 2 and isinstance(done.exception, SystemExit)
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_a_mistake_is_an_exit_status_and_no_traceback(command):
    done = command("recommend", "missing", check=False)
    assert done.returncode == 2
    assert "No such file or folder" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_a_source_that_cannot_be_fetched_is_skipped_with_its_name(work, command):
    done = command(
        "score", "digits", "--space", "space.yaml", "--source", "resnet18.a1_in1k", "--source", SOURCES[0], "--json"
    )
    assert "skipped resnet18.a1_in1k" in done.stderr
    assert {row["source"] for row in json.loads(done.stdout)} == {SOURCES[0]}
