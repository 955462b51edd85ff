import json
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import autotransfer
import autotransfer.recommendation
from autotransfer import doctor
from autotransfer.cli import app
from autotransfer.errors import DatasetError
from autotransfer.search.events import Notice
from autotransfer.sources import hub
from autotransfer.transfer.config import TransferConfig

HEAVY = ("torch", "timm", "mlflow", "optuna", "pandas", "pydantic", "numpy", "sklearn")
COMMANDS = ("recommend", "score", "predict", "sources", "spaces", "demo", "doctor")


class Call:
    """Stands in for `recommend` or `score`: keeps its arguments, tells a listener, answers."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.data: Any = None
        self.options: dict[str, Any] = {}

    def __call__(self, data: Any, **options: Any) -> Any:
        self.data, self.options = data, options
        for listener in options["listeners"]:
            listener(Notice("at work"))
        print("a library's chatter")
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def alternative(
    trial: int | None, source: str, upper: str, score: float, parameters: int, size: float
) -> dict[str, Any]:
    shape = {"transferred_layers": 2, "upper_layers": upper, "frozen_layers": 1}
    size_and_time = {"parameters": parameters, "size_mb": size, "latency_ms": 1.25}
    return {"trial": trial, "source": source, "val_score": score, **shape, **size_and_time}


def an_answer() -> Any:
    config = TransferConfig(
        source="embedded:b", transferred_layers=2, upper_layers="reinit", frozen_layers=1, learning_rate=1e-3
    )
    score = types.SimpleNamespace(metric="accuracy", value=0.93, low=0.9, high=0.96, n=360)
    baseline = types.SimpleNamespace(metric="accuracy", value=0.85, low=0.8, high=0.9, n=360)
    ranking = pd.DataFrame(
        {
            "source": ["embedded:b", "embedded:b", "embedded:a", "embedded:b"],
            "level": [2, 1, 1, 3],
            "parameters": [1_200_000, 600_000, 5_000, 2_000_000],
            "linear_probe": [0.9, 0.8, np.nan, 0.5],
            "logme": np.float32([0.5, 0.4, 0.3, 0.2]),
        }
    )
    return types.SimpleNamespace(
        config=config,
        test=score,
        baselines={"linear_probe": baseline},
        why=["It won [by 8 points]."],
        alternatives=[
            alternative(4, "embedded:b", "reinit", 0.95, 2_000_000, 8.0),
            alternative(None, "embedded:a", "drop", 0.85, 5_000, 0.02),
        ],
        sources=ranking,
        trials=pd.DataFrame({"state": ["complete", "pruned", "complete"]}),
        cost={"probing": 2.0, "search": 61.0},
        study="digits-0",
        storage="/home/me/digits-0.log",
        tracking_uri="sqlite:////home/me/mlflow.db",
        folder=Path("/out/digits"),
        to_dict=lambda: {"study": "digits-0", "test": {"value": np.float64(0.93), "low": float("nan")}},
    )


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def recommend(monkeypatch: pytest.MonkeyPatch) -> Call:
    call = Call(an_answer())
    monkeypatch.setattr(autotransfer.recommendation, "recommend", call, raising=False)
    return call


@pytest.fixture
def score(monkeypatch: pytest.MonkeyPatch) -> Call:
    call = Call(an_answer().sources.assign(rank=[1, 2, 3, 4]))
    module = types.ModuleType("autotransfer.search.scoring")
    module.score = call  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return call


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)])
def test_help_and_version_import_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom autotransfer.cli import app\n"
        f"try:\n    app({arguments!r})\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        f"print(*(name for name in {HEAVY!r} if name in sys.modules), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout
    # Typer (0.29) itself imports pydantic once a command has parameters.
    allowed = set() if arguments[0].startswith("--") else {"pydantic"}
    assert set(result.stderr.split()) <= allowed


def test_version_is_the_packages(run: Any) -> None:
    assert run("--version").stdout.strip() == f"autotransfer {autotransfer.__version__}"


def test_help_lists_every_command(run: Any) -> None:
    assert all(name in run("--help").stdout for name in COMMANDS)


def test_recommend_hands_every_option_on(run: Any, recommend: Call) -> None:
    options = "--space quick --budget 10m --trials 7 --metric f1 --max-latency 12.5 --max-params 20M --source a*"
    more = "--source embedded:* --plugin mine --out o --tracking-uri u --storage s --study n --resume --seed 3"
    targets = "--label-column a --label-column b --task regression --device cpu --sampler tpe"
    where = "--jobs 3 --executor ray --address auto --gpu-budget 5m --no-history"
    result = run("recommend", "photos", *options.split(), *more.split(), *targets.split(), *where.split())
    assert result.exit_code == 0, result.output
    assert recommend.data == Path("photos")
    assert {name: value for name, value in recommend.options.items() if name != "listeners"} == {
        "space": "quick",
        "budget": 600.0,
        "trials": 7,
        "metric": "f1",
        "max_latency": 12.5,
        "max_params": 20_000_000,
        "sources": ["a*", "embedded:*"],
        "plugins": ["mine"],
        "out": Path("o"),
        "tracking_uri": "u",
        "storage": "s",
        "study": "n",
        "resume": True,
        "label_column": ["a", "b"],
        "task": "regression",
        "sampler": "tpe",
        "jobs": 3,
        "executor": "ray",
        "address": "auto",
        "gpu_budget": 300.0,
        "history": False,
        "seed": 3,
        "device": "cpu",
    }


def test_recommend_prints_the_answer_and_its_evidence(run: Any, recommend: Call) -> None:
    result = run("recommend", "photos")
    for expected in (
        "source: embedded:b",
        "levels: first 2 of 3, 1 frozen, above: reinitialised",
        "test accuracy: 0.9300 [0.9000, 0.9600], 360 images",
        "- It won [by 8 points].",
        "+0.0800",
        "2 + new above",
        "8.00",
        "probe",
        "1.25",
        "1.2M",
        "trials: 2 complete, 1 pruned",
        "probing 2.0s, search 1m 1s",
        "study: digits-0 in /home/me/digits-0.log",
        "model = autotransfer.load('/out/digits')",
    ):
        assert expected in result.stdout
    assert "at work" in result.stderr


def test_recommend_ends_with_how_to_open_mlflow(run: Any, recommend: Call) -> None:
    recommend.answer.mlflow_run_url = "http://127.0.0.1:5000/#/experiments/1/runs/abc"
    assert run("recommend", "photos").stdout.splitlines()[-2:] == [
        "  mlflow ui --backend-store-uri 'sqlite:////home/me/mlflow.db'",
        "  open http://127.0.0.1:5000/#/experiments/1/runs/abc",
    ]


def test_json_is_all_of_standard_output(run: Any, recommend: Call) -> None:
    result = run("recommend", "photos", "--json")
    assert json.loads(result.stdout) == {"study": "digits-0", "test": {"value": 0.93, "low": None}}
    assert "a library's chatter" in result.stderr


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--budget", "10q"),
        ("--budget", "0s"),
        ("--max-params", "lots"),
        ("--max-latency", "-1"),
        ("--max-latency", "nan"),
        ("--trials", "0"),
        ("--seed", "-1"),
        ("--device", "tpu"),
    ],
)
def test_bad_values_are_refused_by_the_options_name(run: Any, recommend: Call, option: str, value: str) -> None:
    result = run("recommend", "photos", option, value)
    assert result.exit_code == 2
    assert option in result.stderr
    assert recommend.data is None


def test_errors_a_user_can_act_on_have_no_traceback(run: Any, recommend: Call) -> None:
    recommend.answer = DatasetError("photos: no such path [here]")
    result = run("recommend", "photos")
    assert result.exit_code == 2
    assert "Error: photos: no such path [here]" in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_unexpected_errors_keep_their_traceback(run: Any, recommend: Call) -> None:
    recommend.answer = RuntimeError("a bug")
    assert isinstance(run("recommend", "photos").exception, RuntimeError)


def test_an_interrupt_exits_with_130(run: Any, recommend: Call) -> None:
    recommend.answer = KeyboardInterrupt()
    assert run("recommend", "photos").exit_code == 130


def test_score_prints_a_table_json_or_csv(run: Any, score: Call) -> None:
    table = run("score", "photos", "--source", "a").stdout
    assert "embedded:a" in table and "5k" in table
    assert score.options["sources"] == ["a"]
    rows = json.loads(run("score", "photos", "--json").stdout)
    assert rows[2]["source"] == "embedded:a" and rows[2]["linear_probe"] is None
    assert run("score", "photos", "--csv").stdout.splitlines()[0] == "source,level,parameters,linear_probe,logme,rank"
    assert run("score", "photos", "--csv", "--json").exit_code == 2


def test_predict_prints_labels_and_in_csv_probabilities(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.DataFrame({"image": ["x.png"], "label": ["7"], "confidence": [0.8], "probability.7": [0.8]})
    model = types.SimpleNamespace(predict=lambda paths: frame)
    monkeypatch.setattr(autotransfer, "load", lambda folder, plugins: model, raising=False)
    table = run("predict", "model", "x.png").stdout
    assert "0.8" in table and "probability" not in table
    assert run("predict", "model", "x.png", "--csv").stdout == frame.to_csv(index=False)


def test_sources_lists_the_embedded_ones(run: Any) -> None:
    found = json.loads(run("sources", "--json").stdout)
    assert {row["kind"] for row in found} == {"embedded"}
    assert len(found) >= 3


def test_sources_shows_what_is_published_of_them_best_first(run: Any) -> None:
    found = json.loads(run("sources", "resnet18.*", "--json").stdout)
    assert [row["expected"] for row in found] == sorted((row["expected"] for row in found), reverse=True)
    assert {"parameters", "gmacs", "top1", "pretraining"} < set(found[0])
    assert all(isinstance(row["parameters"], int) for row in found)
    table = run("sources", "resnet18.*").stdout
    assert "11.7M" in table and "in1k" in table
    assert run("sources", "resnet18.*", "--csv").stdout.startswith("source,kind,parameters,gmacs,top1,pretraining,")


def test_sources_says_nothing_where_nothing_is_published(run: Any) -> None:
    assert all(row["expected"] is None for row in json.loads(run("sources", "--json").stdout))
    assert run("sources").stdout.split().count("-") >= 3


def test_sources_that_do_not_exist_are_an_error(run: Any) -> None:
    result = run("sources", "embedded:zz*")
    assert result.exit_code == 2
    assert "no embedded source matches 'zz*'" in result.stderr


def test_doctor_finds_every_section(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    findings = json.loads(run("doctor", "--json").stdout)
    assert set(findings) == {"versions", "device", "hub", "caches", "tracking", "embedded sources"}
    assert "not asked" in next(iter(findings["hub"].values()))
    assert "torch" in run("doctor").stdout


def test_doctor_does_not_wait_for_a_silent_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    never = threading.Event()
    monkeypatch.setattr(hub, "_head", lambda address, timeout: str(never.wait(5)))
    assert hub.hub_state("https://hub", 0.05) == "not reachable: no answer within 0.05 s"
    never.set()


def test_doctor_hides_passwords_and_counts_bytes(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"12345")
    assert doctor.folder_size(tmp_path) == 5
    assert doctor.folder_size(tmp_path / "none") == 0
    assert doctor.hide_password("http://a:b@host") == "http://a:***@host"
