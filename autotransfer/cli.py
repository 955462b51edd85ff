"""The command line. Answers go to standard output, progress and errors to standard error.

Only what parses and prints is imported here; everything heavy is imported by the command that needs it, so
that `--help` and `--version` answer at once.
"""

import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

from autotransfer.errors import AutotransferError, SpaceError
from autotransfer.options import (
    Address,
    AsCsv,
    AsJson,
    Budget,
    Data,
    Device,
    ExecutorOption,
    Jobs,
    LabelColumns,
    Plugins,
    Sampler,
    Seed,
    Sources,
    Space,
    TaskOption,
)
from autotransfer.printing import (
    answer_console,
    print_frame,
    print_heading,
    print_json,
    print_line,
    print_recommendation,
    print_table,
)

if TYPE_CHECKING:
    from autotransfer.progress import ProgressListener

_T = TypeVar("_T")


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


@app.command()
def recommend(
    data: Data,
    space: Space = "default",
    budget: Budget = None,
    trials: Annotated[int | None, typer.Option(min=1, metavar="N", help="Limit on the number of trials.")] = None,
    gpu_budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="Limit on the time that GPUs work, all trials together.")
    ] = None,
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
    label_column: LabelColumns = None,
    task: TaskOption = None,
    sampler: Sampler = None,
    jobs: Jobs = None,
    executor: ExecutorOption = "local",
    address: Address = None,
    history: Annotated[
        bool, typer.Option("--history/--no-history", help="Start from what worked in your past studies.")
    ] = True,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Find, train and test the best model to transfer to DATA.

    Ctrl-C ends the search in good order: the answer is then the best of what is known.
    """
    from autotransfer.quantities import parse_count, parse_duration

    budget_seconds = _option("--budget", parse_duration, budget)
    gpu_seconds = _option("--gpu-budget", parse_duration, gpu_budget)
    largest = _option("--max-params", parse_count, max_params)
    slowest = _option("--max-latency", _positive, max_latency)
    _check_names(data, space)
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
            label_column=label_column or "label",
            task=task,
            sampler=sampler,
            jobs=jobs,
            executor=executor,
            address=address,
            gpu_budget=gpu_seconds,
            history=history,
            seed=seed,
            device=device,
            listeners=(progress,),
        )
    print_recommendation(recommendation, as_json=as_json)


@app.command()
def join(
    data: Data,
    study: Annotated[str, typer.Option(metavar="NAME", help="Name of the study that `recommend` runs elsewhere.")],
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="Its Optuna storage: a database, or a journal file that both see.")
    ] = None,
    jobs: Jobs = None,
    executor: ExecutorOption = "local",
    address: Address = None,
    device: Device = "auto",
    tracking_uri: Annotated[
        str | None, typer.Option(metavar="URI", help="Its MLflow store; a local SQLite file by default.")
    ] = None,
) -> None:
    """Run trials of a study that another process or machine recommends from, until its search ends.

    DATA is this machine's copy of the same images.
    """
    from autotransfer.datasets import check_exists

    check_exists(data)
    with _working() as progress:
        from autotransfer.recommendation.joining import join as run

        ended = run(
            data,
            study=study,
            storage=storage,
            jobs=jobs,
            executor=executor,
            address=address,
            device=device,
            tracking_uri=tracking_uri,
            listeners=(progress,),
        )
    print_line(answer_console(), f"{ended} trials of study '{study}' ended here; it is over, or the budget is spent")


@app.command()
def score(
    data: Data,
    space: Space = "default",
    source: Sources = None,
    plugin: Plugins = None,
    label_column: LabelColumns = None,
    task: TaskOption = None,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Rank every source and level for DATA by its proxies, without training: the quick answer."""
    _refuse_both(as_json, as_csv)
    _check_names(data, space)
    with _working() as progress:
        from autotransfer.search.scoring import score as run

        scores = run(
            data,
            space=space,
            sources=source or None,
            plugins=plugin or (),
            label_column=label_column or "label",
            task=task,
            seed=seed,
            device=device,
            listeners=(progress,),
        )
    print_frame(scores, as_json=as_json, as_csv=as_csv)


@app.command()
def predict(
    model_dir: Annotated[Path, typer.Argument(metavar="MODEL_DIR", help="Folder that `recommend` wrote the model to.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="Image files to label.")],
    plugin: Plugins = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Label IMAGES with a recommended model."""
    _refuse_both(as_json, as_csv)
    with redirect_stdout(sys.stderr):
        from autotransfer import load

        predictions = load(model_dir, plugins=plugin or ()).predict(images)
    if not (as_json or as_csv):
        predictions = predictions[["image", "label", "confidence"]]
    print_frame(predictions, as_json=as_json, as_csv=as_csv)


@app.command()
def sources(
    pattern: Annotated[
        str, typer.Argument(metavar="[PATTERN]", help="Which: resnet*, embedded:*, local-dir:models/*.")
    ] = "embedded:*",
    plugin: Plugins = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """List the sources that a PATTERN names, those most promising by published figures first.

    Without PATTERN: those that came with autotransfer. Expected is in standard deviations between sources, before
    anything is downloaded; 0 is the mean of all published ones.
    """
    _refuse_both(as_json, as_csv)
    with redirect_stdout(sys.stderr):
        from autotransfer.search.shortlist import describe_sources
        from autotransfer.sources import find_sources, load_plugins

        load_plugins(plugin or [])
        found = describe_sources(find_sources([pattern]))
    print_frame(found, as_json=as_json, as_csv=as_csv)
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
        print_json(found)
        return
    rows = ((row["space"], row["description"], ", ".join(row["sources"]), row["file"]) for row in found)
    print_table(("space", "description", "sources", "file"), rows)


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
    print_recommendation(recommendation, as_json=False)


cache_app = typer.Typer(help="Decoded images, probe features and activations kept on this machine.")
app.add_typer(cache_app, name="cache")


@cache_app.command("show")
def cache_show(as_json: AsJson = False) -> None:
    """Show what the cache holds and its limit."""
    from autotransfer.disk_cache import usage
    from autotransfer.quantities import format_bytes
    from autotransfer.settings import settings

    found = usage(settings().cache_dir)
    if as_json:
        kinds = {kind.kind: {"files": kind.files, "bytes": kind.size} for kind in found}
        print_json({"folder": str(settings().cache_dir), "limit_bytes": int(settings().cache_limit), "kinds": kinds})
        return
    console = answer_console()
    rows = [(kind.kind, str(kind.files), format_bytes(kind.size)) for kind in found]
    rows.append(("together", str(sum(kind.files for kind in found)), format_bytes(sum(kind.size for kind in found))))
    print_table(("kind", "files", "size"), rows)
    print_line(console, f"{settings().cache_dir}, limit {format_bytes(settings().cache_limit)}")


@cache_app.command("clear")
def cache_clear() -> None:
    """Empty the cache: everything in it can be computed again. Studies and models are kept."""
    from autotransfer.disk_cache import clear
    from autotransfer.quantities import format_bytes
    from autotransfer.settings import settings

    before = clear(settings().cache_dir)
    files, size = sum(kind.files for kind in before), sum(kind.size for kind in before)
    print_line(answer_console(), f"{files} files ({format_bytes(size)}) removed from {settings().cache_dir}")


@app.command()
def doctor(as_json: AsJson = False) -> None:
    """Show versions, device, hub, caches and stores of this machine."""
    with redirect_stdout(sys.stderr):
        from autotransfer.doctor import examine

        findings = examine()
    if as_json:
        print_json(findings)
        return
    console = answer_console()
    for section, found in findings.items():
        print_heading(console, section)
        for name, finding in found.items():
            print_line(console, f"  {name}: {finding}")


def main() -> None:
    """Entry point of the `autotransfer` program."""
    # Threads that wait by spinning cost two concurrent processes half their speed, and one alone gains nothing.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
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


def _check_names(data: Path, space: str) -> None:
    """A mistyped path or space is told before the heavy imports, not seconds later."""
    from autotransfer.datasets import check_exists
    from autotransfer.search.space import find_space

    check_exists(data)
    find_space(space)


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


if __name__ == "__main__":
    main()
