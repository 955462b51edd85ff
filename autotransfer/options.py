"""The options that several commands share."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from autotransfer.task import Task

Data = Annotated[Path, typer.Argument(metavar="DATA", help="Folder of images in class folders, or a CSV manifest.")]
Space = Annotated[str, typer.Option(metavar="NAME|FILE", help="Search space: see `autotransfer spaces`.")]
LabelColumns = Annotated[
    list[str] | None,
    typer.Option(
        "--label-column", metavar="NAME", help="Column of a manifest to be predicted; several times for several."
    ),
]
TaskOption = Annotated[
    Task | None, typer.Option("--task", help="What is predicted; recognised from the data by default.")
]
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
Sampler = Annotated[
    Literal["proxy", "tpe", "gp", "random"] | None,
    typer.Option(help="Who chooses the trials: the proxies' prior and what it learns, or a sampler of Optuna."),
]
Jobs = Annotated[int | None, typer.Option(min=1, metavar="N", help="Trials that run at once, each in a process.")]
ExecutorOption = Annotated[
    Literal["local", "ray"], typer.Option(help="Where trials run: processes of this machine, or a Ray cluster.")
]
Address = Annotated[
    str | None, typer.Option(metavar="ADDRESS", help="The Ray cluster: auto, HOST:PORT, ray://HOST:PORT.")
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything random.")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]
AsCsv = Annotated[bool, typer.Option("--csv", help="Print CSV and nothing else on standard output.")]
