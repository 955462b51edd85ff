import base64
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import requests
from mlflow import MlflowClient

from autotransfer.errors import TrackingError
from autotransfer.search.events import (
    EpochFinished,
    Notice,
    PhaseStarted,
    SourceProbed,
    SourceSkipped,
    StudyFailed,
    StudyFinished,
    StudyStarted,
    TrialFinished,
    TrialStarted,
)
from autotransfer.tracking import MlflowTracker
from autotransfer.transfer.config import TransferConfig

CONFIG = TransferConfig(
    source="embedded:glyphs", transferred_layers=3, upper_layers="drop", frozen_layers=1, learning_rate=1e-3
)
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def started(resumed=False, **params):
    params = {"dataset": "/data/My birds/", "seed": 0, **params}
    return StudyStarted("birds", resumed, "accuracy", params=params, tags={"space": "quick"})


def finished(number, state="complete", value=0.5, reason=""):
    return TrialFinished(number, state, value, reason, 2.5, 0.5, 0, None)


def play(tracker, *events):
    for event in events:
        tracker(event)


def children(client, parent):
    runs = client.search_runs([client.get_run(parent).info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    return {int(run.data.tags["autotransfer.trial"]): run for run in runs}


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def store(tmp_path):
    return f"sqlite:///{tmp_path}/new/folder/mlflow.db"


@pytest.fixture
def server(tmp_path):
    """A real MLflow server; yields its address and a function that stops it."""
    port = free_port()
    arguments = ["server", "--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--workers", "1"]
    arguments += ["--artifacts-destination", str(tmp_path / "artifacts"), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd=tmp_path,
    )

    def stop():
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    uri = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            try:
                if requests.get(f"{uri}/health", timeout=1).ok:
                    break
            except requests.RequestException:
                time.sleep(0.25)
        yield uri, stop
    finally:
        stop()


@pytest.fixture
def saved(tmp_path):
    """A recommendation's folder whose plugin stands in for the trained model."""
    folder = tmp_path / "answer"
    folder.mkdir()
    plugin = tmp_path / "toy_plugin.py"
    plugin.write_text(
        textwrap.dedent(
            """
            import autotransfer, pandas as pd

            class Toy:
                classes = ("cat", "dog")
                def predict(self, images):
                    kinds = [type(image).__name__ for image in images]
                    return pd.DataFrame({"image": kinds, "label": ["dog" + k for k in kinds], "confidence": 0.75,
                                         "probability.cat": 0.25, "probability.dog": 0.75})

            autotransfer.load = lambda folder: Toy()
            """
        )
    )
    (folder / "autotransfer.json").write_text(json.dumps({"plugin_files": [str(plugin)], "classes": ["cat", "dog"]}))
    (folder / "recommendation.json").write_text(json.dumps({"classes": ["cat", "dog"]}))
    (folder / "trials.csv").write_text("number,value\n0,0.5\n")
    (folder / "pixel.png").write_bytes(PIXEL)
    return folder


def whole_study(tracker, folder):
    play(
        tracker,
        started(),
        PhaseStarted("probing"),
        SourceSkipped("big", "does not fit"),
        SourceSkipped("odd", "no levels"),
        SourceProbed("embedded:glyphs", 4, 1.0, False),
        Notice("hello"),
        TrialStarted(0, CONFIG, {"logme": 0.7, "knn": 0.6}, role="prior"),
        EpochFinished(0, 1, {"train.loss": 1.0, "val.accuracy": 0.4}, 0.5),
        EpochFinished(0, 2, {"train.loss": 0.5, "val.accuracy": 0.5}, 0.5),
        finished(0),
        TrialStarted(1, CONFIG),
        finished(1, "pruned", None, "worse than the median"),
        TrialStarted(2, CONFIG),
        finished(2, "failed", None, "out of memory"),
        StudyFinished("birds", str(folder), {"test.accuracy": 0.9}, {"verdict": "positive"}, str(folder / "pixel.png")),
    )


def check_run_tree(uri, parent):
    client = MlflowClient(uri)
    run = client.get_run(parent)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == run.data.tags["autotransfer.study"] == "birds"
    assert run.data.params == {"dataset": "/data/My birds/", "seed": "0", "metric": "accuracy"}
    assert run.data.metrics == {"test.accuracy": 0.9}
    assert run.data.tags["space"] == "quick" and run.data.tags["verdict"] == "positive"
    assert run.data.tags["autotransfer.skipped_sources"] == "big: does not fit\nodd: no levels"
    assert {file.path for file in client.list_artifacts(parent)} == {"recommendation.json", "trials.csv"}
    trials = children(client, parent)
    assert [trials[number].info.status for number in range(3)] == ["FINISHED", "KILLED", "FAILED"]
    assert [trials[number].data.tags["autotransfer.state"] for number in range(3)] == ["complete", "pruned", "failed"]
    assert trials[2].data.tags["autotransfer.reason"] == "out of memory"
    assert trials[0].data.tags["autotransfer.role"] == "prior"
    assert trials[0].data.params == {name: str(value) for name, value in CONFIG.to_dict().items()}
    metrics = trials[0].data.metrics
    assert (metrics["proxy.logme"], metrics["value"], metrics["seconds"]) == (0.7, 0.5, 2.5)
    curve = client.get_metric_history(trials[0].info.run_id, "val.accuracy")
    assert [(point.step, point.value) for point in curve] == [(1, 0.4), (2, 0.5)]


def test_a_study_becomes_a_tree_of_runs(store, saved, caplog, capfd):
    tracker = MlflowTracker(store)
    whole_study(tracker, saved)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")
    check_run_tree(store, tracker.parent_run_id)
    assert tracker.ui_command == f"mlflow ui --backend-store-uri {store}"
    assert tracker.ui_url == f"http://127.0.0.1:5000/#/experiments/1/runs/{tracker.parent_run_id}"


def test_a_study_becomes_a_tree_of_runs_on_a_server(server, saved, caplog):
    uri, _ = server
    tracker = MlflowTracker(uri)
    whole_study(tracker, saved)
    assert not [record for record in caplog.records if record.name.startswith("autotransfer")]
    check_run_tree(uri, tracker.parent_run_id)
    version = MlflowClient(uri).get_model_version_by_alias("autotransfer-My-birds", "recommended")
    assert version.run_id == tracker.parent_run_id
    assert version.source.startswith("models:/m-")
    assert tracker.ui_command is None
    assert tracker.ui_url.startswith(f"{uri}/#/experiments/")


@pytest.mark.slow
def test_the_registered_model_predicts_with_only_the_code_it_carries(store, saved, tmp_path):
    whole_study(MlflowTracker(store), saved)
    script = f"""
import base64, mlflow, pandas as pd
mlflow.set_tracking_uri({store!r})
model = mlflow.pyfunc.load_model("models:/autotransfer-My-birds@recommended")
import autotransfer, json
assert "/code/" in autotransfer.__file__, autotransfer.__file__
content = open({str(saved / "pixel.png")!r}, "rb").read()
text = base64.b64encode(content).decode()
one = lambda value: model.predict(pd.DataFrame({{"image": [value]}}))["label"].tolist()
mixed = model.predict(pd.DataFrame({{"image": [{str(saved / "pixel.png")!r}, content, text]}}))
print(json.dumps([one(content), one({str(saved / "pixel.png")!r}), one(text), mixed["label"].tolist(),
    list(mixed.columns), model.predict(model.input_example)["label"].tolist(),
    [c.name for c in model.metadata.signature.outputs.inputs]]))
"""
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    columns = ["label", "confidence", "probability.cat", "probability.dog"]
    assert json.loads(answer.stdout.splitlines()[-1]) == [
        ["dogbytes"],
        ["dogstr"],
        ["dogbytes"],
        ["dogstr", "dogbytes", "dogbytes"],
        columns,
        ["dogbytes"],
        columns,
    ]


def test_the_logged_model_carries_code_without_weights_and_pinned_requirements(store, saved):
    whole_study(MlflowTracker(store), saved)
    client = MlflowClient(store)
    version = client.get_model_version_by_alias("autotransfer-My-birds", "recommended")
    model = Path(version.source.removeprefix("file://"))
    files = {str(path.relative_to(model)) for path in model.rglob("*") if path.is_file()}
    assert {"code/toy_plugin.py", "code/autotransfer/py.typed", "code/autotransfer/errors.py"} <= files
    assert not [name for name in files if name.endswith((".safetensors", ".pkl", ".pyc", "uv.lock"))]
    pinned = (model / "requirements.txt").read_text()
    assert all(f"\n{name}==" in pinned for name in ("torch", "timm", "pillow", "pydantic-settings", "torchmetrics"))


def test_resume_reopens_the_study_and_closes_trials_that_were_killed(store):
    killed = MlflowTracker(store)
    play(killed, started(), TrialStarted(0, CONFIG), finished(0), TrialStarted(1, CONFIG))
    resumed = MlflowTracker(store)
    play(resumed, started(resumed=True, seed=1, trials=20))
    client = MlflowClient(store)
    assert resumed.parent_run_id == killed.parent_run_id
    parent = client.get_run(resumed.parent_run_id)
    assert parent.info.status == "RUNNING"
    assert parent.data.params["seed"] == "0" and parent.data.params["trials"] == "20"
    trials = children(client, resumed.parent_run_id)
    assert (trials[0].info.status, trials[1].info.status) == ("FINISHED", "KILLED")


def test_resume_of_a_finished_or_failed_study_runs_again(store, caplog):
    tracker = MlflowTracker(store)
    play(tracker, started(), TrialStarted(0, CONFIG), StudyFailed("birds", "no usable source"))
    client = MlflowClient(store)
    run = client.get_run(tracker.parent_run_id)
    assert (run.info.status, run.data.tags["autotransfer.reason"]) == ("FAILED", "no usable source")
    assert children(client, tracker.parent_run_id)[0].info.status == "KILLED"
    again = MlflowTracker(store)
    again(started(resumed=True))
    assert again.parent_run_id == tracker.parent_run_id
    assert client.get_run(again.parent_run_id).info.status == "RUNNING"
    assert not caplog.records


def test_a_new_study_of_the_same_name_is_a_new_run(store):
    first, second = MlflowTracker(store), MlflowTracker(store)
    first(started())
    second(started())
    assert first.parent_run_id != second.parent_run_id


@pytest.mark.parametrize("uri", ["http://127.0.0.1:{port}", "postgresql://me:secret@127.0.0.1:{port}/mlflow"])
def test_a_store_that_is_not_there_is_told_soon_and_without_its_password(uri):
    begin = time.monotonic()
    with pytest.raises(TrackingError, match=r"127\.0\.0\.1") as raised:
        MlflowTracker(uri.format(port=free_port()))
    assert time.monotonic() - begin < 15
    assert "secret" not in str(raised.value)


def test_a_server_that_accepts_and_stays_silent_is_told_soon():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        begin = time.monotonic()
        with pytest.raises(TrackingError):
            MlflowTracker(f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert time.monotonic() - begin < 15


def test_a_file_that_is_no_database_is_told(tmp_path):
    (tmp_path / "notes.db").write_text("not a database " * 100)
    with pytest.raises(TrackingError, match=r"notes\.db"):
        MlflowTracker(f"sqlite:///{tmp_path}/notes.db")


@pytest.mark.slow
def test_a_server_that_dies_is_one_warning_and_the_study_goes_on(server, saved, caplog):
    uri, stop = server
    tracker = MlflowTracker(uri)
    play(tracker, started(), TrialStarted(0, CONFIG))
    stop()
    begin = time.monotonic()
    with caplog.at_level(logging.WARNING, logger="autotransfer"):
        play(tracker, EpochFinished(0, 1, {"val.accuracy": 0.4}, 0.5), finished(0))
        for number in range(1, 20):
            play(tracker, TrialStarted(number, CONFIG), finished(number))
    assert time.monotonic() - begin < 30
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("autotransfer")]
    assert len([message for message in messages if "could not write to it" in message]) == 1
