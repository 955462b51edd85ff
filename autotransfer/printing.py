"""How answers look on standard output: tables, JSON, CSV, and the recommendation."""

import json
import math
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import pandas as pd

    from autotransfer.recommendation import Recommendation

# Standard output that is no terminal has no width: wide enough that no table is cut.
_PIPE_WIDTH = 200
_SHOWN_SOURCES = 10


def print_recommendation(recommendation: "Recommendation", *, as_json: bool) -> None:
    """The whole answer, for people or as JSON."""
    if as_json:
        print_json(recommendation.to_dict())
        return
    console = answer_console()
    _print_answer(console, recommendation)
    _print_alternatives(console, recommendation)
    _print_evidence(console, recommendation)
    _print_whereabouts(console, recommendation)


def _print_answer(console: Console, recommendation: "Recommendation") -> None:
    config, test = recommendation.config, recommendation.test
    print_heading(console, "Recommendation")
    print_line(console, f"  source: {config.source if not config.from_scratch else 'none: train from scratch'}")
    print_line(console, f"  levels: {_levels(recommendation)}")
    print_line(console, f"  test {test.metric}: {_interval(test)}, {test.n} images")
    for sentence in recommendation.why:
        print_line(console, f"  - {sentence}")


def _print_alternatives(console: Console, recommendation: "Recommendation") -> None:
    """What else could be taken, where something is smaller or faster."""
    rows = recommendation.alternatives
    if len(rows) < 2:
        return
    print_heading(console, "Alternatives: nothing tried is better in score, size and latency at once")
    columns = (
        "trial",
        "source",
        "levels",
        "frozen",
        f"val {recommendation.test.metric}",
        "parameters",
        "MB",
        "ms/image",
    )
    cells = [
        (
            "probe" if row["trial"] is None else row["trial"],
            row["source"],
            f"{row['transferred_layers']}{' + new above' if row['upper_layers'] == 'reinit' else ''}",
            row["frozen_layers"],
            f"{row['val_score']:.4f}",
            _cell("parameters", row["parameters"]),
            f"{row['size_mb']:.2f}",
            f"{row['latency_ms']:.2f}",
        )
        for row in rows[:_SHOWN_SOURCES]
    ]
    print_table(columns, cells, console)


def _print_evidence(console: Console, recommendation: "Recommendation") -> None:
    test = recommendation.test
    print_heading(console, "Against the baselines, on the same test images")
    rows = [("recommendation", _interval(test), "")]
    for name, baseline in recommendation.baselines.items():
        rows.append((name.replace("_", " "), _interval(baseline), f"{test.value - baseline.value:+.4f}"))
    print_table(("model", f"{test.metric} (95% interval)", "recommendation is"), rows, console)

    ranked = recommendation.sources
    if len(ranked) > 0 and "source" in ranked.columns:
        best = ranked.drop_duplicates("source")
        print_heading(console, f"Ranking of sources: the best level of each, before training ({len(best)} in all)")
        wanted = ("source", "level", "parameters", "linear_probe", "logme", "knn", "ncti")
        shown = best[[name for name in wanted if name in best.columns]].head(_SHOWN_SOURCES)
        ranks = ((str(rank), *row) for rank, row in enumerate(_cells(shown), start=1))
        print_table(("", *map(str, shown.columns)), ranks, console)

    print_heading(console, "Trials and cost")
    if "state" in recommendation.trials.columns:
        counts = recommendation.trials["state"].value_counts()
        states = ", ".join(f"{count} {state}" for state, count in counts.items())
        print_line(console, f"  trials: {states or 'none'}")
    print_line(console, f"  {_cost(recommendation.cost)}")


def _print_whereabouts(console: Console, recommendation: "Recommendation") -> None:
    print_heading(console, "Where everything lies")
    print_line(console, f"  study: {recommendation.study} in {recommendation.storage}")
    if recommendation.folder is not None:
        print_line(console, f"  model and evidence: {recommendation.folder}")
        print_heading(console, "Load it")
        print_line(console, "  import autotransfer")
        print_line(console, f"  model = autotransfer.load({str(recommendation.folder)!r})")
        print_line(console, '  model.predict(["new.jpg"])')
    uri = recommendation.tracking_uri
    if not uri:
        return
    print_heading(console, "See every trial in MLflow")
    command = getattr(recommendation, "mlflow_command", None)
    address = getattr(recommendation, "mlflow_run_url", None)
    if command is None and not uri.startswith(("http://", "https://")):
        command = f"mlflow ui --backend-store-uri '{uri}'"
    if command:
        print_line(console, f"  {command}")
    print_line(console, f"  open {address or (uri if not command else 'http://127.0.0.1:5000')}")


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


def answer_console() -> Console:
    """Standard output, wide enough when it is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PIPE_WIDTH)


def print_heading(console: Console, title: str) -> None:
    """A title in bold after an empty line."""
    console.print()
    console.print(Text(title, style="bold"), soft_wrap=True)


def print_line(console: Console, line: str) -> None:
    """One line as it is, never cut and never coloured."""
    console.print(line, markup=False, soft_wrap=True)


def print_table(columns: Sequence[str], rows: Iterable[Iterable[object]], console: Console | None = None) -> None:
    """A plain table."""
    table = Table(box=None, pad_edge=True, header_style="bold")
    for column in columns:
        table.add_column(Text(column), overflow="fold")
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))
    (console or answer_console()).print(table)


def print_frame(frame: "pd.DataFrame", *, as_json: bool, as_csv: bool) -> None:
    """A data frame as a table, JSON records or CSV."""
    if as_csv:
        typer.echo(frame.to_csv(index=False), nl=False)
    elif as_json:
        print_json(json.loads(frame.to_json(orient="records", double_precision=15)))
    else:
        print_table([str(name) for name in frame.columns], _cells(frame))


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


def print_json(value: Any) -> None:
    """Valid JSON: null for what it cannot say."""
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
