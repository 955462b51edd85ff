"""The command line. Answers go to standard output, progress and errors to standard error.

Only what parses and prints is imported here; everything heavy is imported by the command that needs it, so
that `--help` and `--version` answer at once.
"""

import json
import math
import numbers
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup

from autotransfer.errors import AutotransferError, SpaceError

if TYPE_CHECKING:
    import pandas as pd

    from autotransfer.progress import ProgressListener
    from autotransfer.recommendation import Recommendation

_T = TypeVar("_T")

# Standard output that is no terminal has no width: wide enough that no table is cut.
_PIPE_WIDTH = 200
_SHOWN_SOURCES = 10


class _Commands(TyperGroup):
    """Tells what a user can act on in one line, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except AutotransferError as error:
            message = Text.assemble(("Error: ", "bold red"), (str(error), "red"))
            Console(stderr=True).print(message, soft_wrap=True)
            raise typer.Exit(2) from error


app = typer.Typer(
    cls=_Commands,
    name="autotransfer",
    help="Which pretrained model to transfer to your labelled images, how much of it, and how.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(asked: bool) -> None:
    if asked:
        from autotransfer import __version__

        typer.echo(f"autotransfer {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


Data = Annotated[Path, typer.Argument(metavar="DATA", help="Folder of images in class folders, or a CSV manifest.")]
Space = Annotated[str, typer.Option(metavar="NAME|FILE", help="Search space: see `autotransfer spaces`.")]
Budget = Annotated[str | None, typer.Option(metavar="TIME", help="Wall-clock limit: 90s, 10m, 1h30m.")]
Sources = Annotated[
    list[str] | None,
    typer.Option(
        "--source",
        metavar="PATTERN",
        help="Sources to try instead of the space's: timm name or glob, embedded:NAME, local-dir:PATH, "
        "hf-hub:ORG/MODEL. Repeatable.",
    ),
]
Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        metavar="MODULE",
        help="Python module or file that registers architectures with timm. Repeatable.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV and nothing else on standard output.")]


@app.command()
def recommend(
    data: Data,
    space: Space = "default",
    budget: Budget = None,
    trials: Annotated[int | None, typer.Option(min=1, metavar="N", help="Limit on the number of trials.")] = None,
    metric: Annotated[str | None, typer.Option(metavar="NAME", help="Objective, such as accuracy.")] = None,
    max_latency: Annotated[
        float | None, typer.Option(metavar="MS", help="Slowest acceptable prediction, milliseconds an image.")
    ] = None,
    max_params: Annotated[
        str | None, typer.Option(metavar="COUNT", help="Largest acceptable model: 20M, 500k.")
    ] = None,
    source: Sources = None,
    plugin: Plugins = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for the model and the evidence.")] = None,
    tracking_uri: Annotated[
        str | None, typer.Option(metavar="URI", help="MLflow store; a local SQLite file by default.")
    ] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="Optuna storage; a local journal file by default.")
    ] = None,
    study: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the study.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted study.")] = False,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Find, train and test the best model to transfer to DATA.

    Ctrl-C ends the search in good order: the answer is then the best of what is known.
    """
    from autotransfer.quantities import parse_count, parse_duration

    budget_seconds = _option("--budget", parse_duration, budget)
    largest = _option("--max-params", parse_count, max_params)
    slowest = _option("--max-latency", _positive, max_latency)
    with _working(budget_seconds) as progress:
        from autotransfer.recommendation import recommend as run

        recommendation = run(
            data,
            space=space,
            budget=budget_seconds,
            trials=trials,
            metric=metric,
            max_latency=slowest,
            max_params=largest,
            sources=source or None,
            plugins=plugin or (),
            out=out,
            tracking_uri=tracking_uri,
            storage=storage,
            study=study,
            resume=resume,
            seed=seed,
            device=device,
            listeners=(progress,),
        )
    _print_recommendation(recommendation, as_json=as_json)


@app.command()
def score(
    data: Data,
    space: Space = "default",
    source: Sources = None,
    plugin: Plugins = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Rank every source and level for DATA by its proxies, without training: the quick answer."""
    _refuse_both(as_json, as_csv)
    with _working() as progress:
        from autotransfer.search.scoring import score as run

        scores = run(
            data,
            space=space,
            sources=source or None,
            plugins=plugin or (),
            seed=seed,
            device=device,
            listeners=(progress,),
        )
    _print_frame(scores, as_json=as_json, as_csv=as_csv)


@app.command()
def predict(
    model_dir: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="Folder that `recommend` wrote the model to.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Image files to label.")],
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Label IMAGES with a recommended model."""
    _refuse_both(as_json, as_csv)
    with redirect_stdout(sys.stderr):
        from autotransfer.recommendation import load

        predictions = load(model_dir).predict(images)
    if not (as_json or as_csv):
        predictions = predictions[["image", "label", "confidence"]]
    _print_frame(predictions, as_json=as_json, as_csv=as_csv)


@app.command()
def sources(
    pattern: Annotated[
        str, typer.Argument(metavar="[PATTERN]", help="Which: resnet*, embedded:*, local-dir:models/*.")
    ] = "embedded:*",
    plugin: Plugins = None,
    as_json: AsJson = False,
) -> None:
    """List the sources that a PATTERN names; without one, those that came with autotransfer."""
    with redirect_stdout(sys.stderr):
        from autotransfer.sources import find_sources, load_plugins

        load_plugins(plugin or [])
        found = [{"source": source.name, "kind": source.kind} for source in find_sources([pattern])]
    if as_json:
        _print_json(found)
        return
    _print_table(("source", "kind"), (row.values() for row in found))
    Console(stderr=True).print(f"{len(found)} sources match '{pattern}'.", highlight=False, markup=False)


@app.command()
def spaces(as_json: AsJson = False) -> None:
    """List the search spaces that came with autotransfer."""
    with redirect_stdout(sys.stderr):
        from autotransfer.search.space import list_spaces, load_space

        found = [
            {
                "space": name,
                "description": load_space(name).description,
                "sources": list(load_space(name).sources),
                "file": str(path),
            }
            for name, path in list_spaces().items()
        ]
    if as_json:
        _print_json(found)
        return
    rows = ((row["space"], row["description"], ", ".join(row["sources"]), row["file"]) for row in found)
    _print_table(("space", "description", "sources", "file"), rows)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the images, the model and the evidence.")] = Path(
        "autotransfer-demo"
    ),
    budget: Annotated[str, typer.Option(metavar="TIME", help="Wall-clock limit: 90s, 10m, 1h30m.")] = "2m",
    seed: Seed = 0,
) -> None:
    """Recommend a model for scikit-learn's digits from the embedded sources; needs no network."""
    from autotransfer.quantities import parse_duration

    budget_seconds = _option("--budget", parse_duration, budget)
    with _working(budget_seconds) as progress:
        from autotransfer.recommendation import recommend as run
        from autotransfer.recommendation.demo import write_demo_dataset

        recommendation = run(
            write_demo_dataset(out / "digits"),
            space="offline",
            budget=budget_seconds,
            out=out / "recommendation",
            seed=seed,
            listeners=(progress,),
        )
    _print_recommendation(recommendation, as_json=False)


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show versions, device, hub, caches and stores of this machine."""
    with redirect_stdout(sys.stderr):
        from autotransfer.doctor import examine

        findings = examine()
    if as_json:
        _print_json(findings)
        return
    console = _answer()
    for section, found in findings.items():
        _heading(console, section)
        for name, finding in found.items():
            _line(console, f"  {name}: {finding}")


def main() -> None:
    """Entry point of the `autotransfer` program."""
    app()


@contextmanager
def _working(budget_seconds: float | None = None) -> Iterator["ProgressListener"]:
    """Progress on standard error, which also gets whatever a library prints while it works."""
    # Settled before standard output is redirected, and before rich's live display wraps both streams.
    console = Console(stderr=True)
    with redirect_stdout(sys.stderr):
        from autotransfer.progress import ProgressListener

        with ProgressListener(console, budget_seconds=budget_seconds) as progress:
            yield progress


def _option(name: str, parse: Callable[[Any], _T], value: Any) -> _T | None:
    """The parsed value of an option; errors name the option."""
    if value is None:
        return None
    try:
        return parse(value)
    except SpaceError as error:
        raise SpaceError(f"{name}: {error}") from error


def _positive(value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise SpaceError(f"expected a number greater than zero, but got {value:g}.")
    return value


def _refuse_both(as_json: bool, as_csv: bool) -> None:
    if as_json and as_csv:
        raise SpaceError("--json and --csv exclude each other; give one of them.")


def _print_recommendation(recommendation: "Recommendation", *, as_json: bool) -> None:
    if as_json:
        _print_json(recommendation.to_dict())
        return
    console = _answer()
    _print_answer(console, recommendation)
    _print_evidence(console, recommendation)
    _print_whereabouts(console, recommendation)


def _print_answer(console: Console, recommendation: "Recommendation") -> None:
    config, test = recommendation.config, recommendation.test
    _heading(console, "Recommendation")
    _line(console, f"  source: {config.source if not config.from_scratch else 'none: train from scratch'}")
    _line(console, f"  levels: {_levels(recommendation)}")
    _line(console, f"  test {test.metric}: {_interval(test)}, {test.n} images")
    for sentence in recommendation.why:
        _line(console, f"  - {sentence}")


def _print_evidence(console: Console, recommendation: "Recommendation") -> None:
    test = recommendation.test
    _heading(console, "Against the baselines, on the same test images")
    rows = [("recommendation", _interval(test), "")]
    for name, baseline in recommendation.baselines.items():
        rows.append((name.replace("_", " "), _interval(baseline), f"{test.value - baseline.value:+.4f}"))
    _print_table(("model", f"{test.metric} (95% interval)", "recommendation is"), rows, console)

    ranked = recommendation.sources
    if len(ranked) > 0 and "source" in ranked.columns:
        best = ranked.drop_duplicates("source")
        _heading(console, f"Ranking of sources: the best level of each, before training ({len(best)} in all)")
        wanted = ("source", "level", "parameters", "linear_probe", "logme", "h_score", "knn")
        shown = best[[name for name in wanted if name in best.columns]].head(_SHOWN_SOURCES)
        ranks = ((str(rank), *row) for rank, row in enumerate(_cells(shown), start=1))
        _print_table(("", *map(str, shown.columns)), ranks, console)

    _heading(console, "Trials and cost")
    if "state" in recommendation.trials.columns:
        counts = recommendation.trials["state"].value_counts()
        states = ", ".join(f"{count} {state}" for state, count in counts.items())
        _line(console, f"  trials: {states or 'none'}")
    _line(console, f"  {_cost(recommendation.cost)}")


def _print_whereabouts(console: Console, recommendation: "Recommendation") -> None:
    _heading(console, "Where everything lies")
    _line(console, f"  study: {recommendation.study} in {recommendation.storage}")
    if recommendation.folder is not None:
        _line(console, f"  model and evidence: {recommendation.folder}")
        _heading(console, "Load it")
        _line(console, "  import autotransfer")
        _line(console, f"  model = autotransfer.load({str(recommendation.folder)!r})")
        _line(console, '  model.predict(["new.jpg"])')
    uri = recommendation.tracking_uri
    if not uri:
        return
    _heading(console, "See every trial in MLflow")
    command = getattr(recommendation, "mlflow_command", None)
    address = getattr(recommendation, "mlflow_run_url", None)
    if command is None and not uri.startswith(("http://", "https://")):
        command = f"mlflow ui --backend-store-uri '{uri}'"
    if command:
        _line(console, f"  {command}")
    _line(console, f"  open {address or (uri if not command else 'http://127.0.0.1:5000')}")


def _levels(recommendation: "Recommendation") -> str:
    """How much is transferred: "first k of K, f frozen, above: dropped"."""
    config, ranked = recommendation.config, recommendation.sources
    if config.from_scratch:
        return "none, everything is trained from scratch"
    all_levels = 0
    if {"source", "level"} <= set(ranked.columns):
        all_levels = int(ranked.loc[ranked["source"] == config.source, "level"].nunique())
    of_all = f" of {all_levels}" if all_levels >= config.transferred_layers else ""
    above = {"drop": "dropped", "reinit": "reinitialised"}[config.upper_layers]
    if of_all and config.transferred_layers == all_levels:
        above = "nothing"
    return f"first {config.transferred_layers}{of_all}, {config.frozen_layers} frozen, above: {above}"


def _interval(score: Any) -> str:
    return f"{score.value:.4f} [{score.low:.4f}, {score.high:.4f}]"


def _cost(cost: Mapping[str, float]) -> str:
    """Seconds by phase and trials by state in one line."""
    from autotransfer.quantities import format_duration

    parts = []
    for name, value in cost.items():
        label = name.removeprefix("seconds.").removesuffix("_seconds").replace("_", " ").replace(".", " ")
        counted = name.startswith("trials") or isinstance(value, int)
        parts.append(f"{label} {value:g}" if counted else f"{label} {format_duration(value)}")
    return ", ".join(parts)


def _answer() -> Console:
    """Standard output, wide enough when it is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PIPE_WIDTH)


def _heading(console: Console, title: str) -> None:
    console.print()
    console.print(Text(title, style="bold"), soft_wrap=True)


def _line(console: Console, line: str) -> None:
    console.print(line, markup=False, soft_wrap=True)


def _print_table(columns: Sequence[str], rows: Iterable[Iterable[object]], console: Console | None = None) -> None:
    table = Table(box=None, pad_edge=True, header_style="bold")
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    (console or _answer()).print(table)


def _print_frame(frame: "pd.DataFrame", *, as_json: bool, as_csv: bool) -> None:
    if as_csv:
        typer.echo(frame.to_csv(index=False), nl=False)
    elif as_json:
        _print_json(json.loads(frame.to_json(orient="records", double_precision=15)))
    else:
        _print_table([str(name) for name in frame.columns], _cells(frame))


def _cells(frame: "pd.DataFrame") -> Iterator[list[str]]:
    """The rows of a table as people read them: three digits, large counts with a unit."""
    for row in frame.itertuples(index=False):
        yield [_cell(str(name), value) for name, value in zip(frame.columns, row, strict=True)]


def _cell(column: str, value: Any) -> str:
    from autotransfer.quantities import format_count

    if value is None or value != value:  # NaN
        return "-"
    if column in ("parameters", "flops"):
        return format_count(value)
    if isinstance(value, numbers.Real) and not isinstance(value, numbers.Integral):
        return f"{float(value):.4g}"
    return str(value)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(_valid_json(value), indent=2, allow_nan=False))


def _valid_json(value: Any) -> Any:
    """What JSON can say: null for NaN and infinity, plain numbers for NumPy's, text for anything else."""
    if isinstance(value, Mapping):
        return {str(key): _valid_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_valid_json(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    return str(value)


if __name__ == "__main__":
    main()
