"""Build an embedded source: `python -m autotransfer.sources.embedded.build NAME`.

Generates the images, trains, measures, exports in timm's hub layout and writes the model card. Needs no
download and no data. A long build can be cut into stretches: with `--work-dir` and `--max-seconds` it stops
in good order, and the same command continues.
"""

import argparse
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch

from autotransfer.errors import AutotransferError, DeviceError
from autotransfer.sources.embedded.card import OwnTaskResult, model_card
from autotransfer.sources.embedded.export import (
    open_exported,
    publish,
    staging_folder,
    write_weights_and_config,
)
from autotransfer.sources.embedded.tasks import make_task
from autotransfer.sources.embedded.training import held_out_accuracy, train
from autotransfer.sources.embedded.zoo import ZOO, ZooEntry, zoo_entry

_logger = logging.getLogger(__name__)


def build(
    entry: ZooEntry,
    destination: Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    device: str = "auto",
    work_dir: Path | None = None,
    max_seconds: float = math.inf,
    held_out: int = 4096,
    teacher: str | None = None,
) -> OwnTaskResult | None:
    """Train one entry of the zoo and write it to a folder.

    Args:
        entry: what to build.
        destination: folder to write; files already there are replaced one by one, atomically.
        steps: optimizer steps; the entry's own number by default.
        seed: of weights and images.
        device: `auto`, `cpu` or `cuda`.
        work_dir: folder for a checkpoint to continue from.
        max_seconds: stop training after this long.
        held_out: number of held-out images to measure on.
        teacher: timm name of the network that labels the images of a distilled source.

    Returns:
        What was measured, or None where `max_seconds` ended before the training did.
    """
    task = make_task(entry.task, teacher)
    checkpoint = None
    if work_dir is not None:
        work_dir.mkdir(parents=True, exist_ok=True)
        checkpoint = work_dir / f"{entry.name}.pt"
    run = train(
        entry,
        task,
        steps=entry.steps if steps is None else steps,
        seed=seed,
        device=_resolve_device(device),
        checkpoint=checkpoint,
        max_seconds=max_seconds,
    )
    if not run.is_complete:
        _logger.warning("%s: stopped after step %d of %d", entry.name, run.steps_done, run.steps)
        return None
    with staging_folder(destination) as name:
        staging = Path(name)
        write_weights_and_config(staging, entry, task, run.model)
        exported = open_exported(staging)
        result = OwnTaskResult(
            accuracy=held_out_accuracy(exported, task, image_size=entry.image_size, images=held_out, seed=seed),
            images=held_out,
            parameters=sum(parameter.numel() for parameter in exported.parameters()),
            weights_bytes=(staging / "model.safetensors").stat().st_size,
        )
        card = model_card(entry, task, run, result, seed=seed)
        (staging / "README.md").write_text(card, encoding="utf-8")
        publish(staging, destination)
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 when built, 2 on a usage error, 3 when stopped by `--max-seconds`."""
    parser = argparse.ArgumentParser(prog="python -m autotransfer.sources.embedded.build", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="sources to build, see --list")
    parser.add_argument("--list", action="store_true", help="list the zoo and end")
    parser.add_argument("--steps", type=int, help="optimizer steps instead of the entry's own")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and images (default 0)")
    parser.add_argument(
        "--teacher", help="timm name (or local-dir:FOLDER) of the network that a distilled source copies"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, help="parent folder to write to")
    parser.add_argument("--work-dir", type=Path, help="folder for a checkpoint to continue from")
    parser.add_argument("--max-seconds", type=float, default=math.inf, help="stop training after this long")
    options = parser.parse_args(arguments)
    if options.list:
        for entry in ZOO:
            print(f"{entry.name:24} {entry.image_size} px, {entry.steps} steps of {entry.batch_size}: {entry.good_at}")
        return 0
    if not options.names:
        parser.error("name at least one source, or use --list")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        finished = [_build_and_tell(zoo_entry(name), options) for name in options.names]
    except AutotransferError as error:
        parser.error(str(error))
    return 0 if all(finished) else 3


def _build_and_tell(entry: ZooEntry, options: argparse.Namespace) -> bool:
    result = build(
        entry,
        options.out / entry.name,
        steps=options.steps,
        seed=options.seed,
        device=options.device,
        work_dir=options.work_dir,
        max_seconds=options.max_seconds,
        teacher=options.teacher,
    )
    if result is None:
        return False
    print(
        f"{entry.name}: {result.accuracy:.1%} on its own task, {result.parameters:,} parameters, "
        f"{result.weights_bytes:,} bytes, in {options.out / entry.name}"
    )
    return True


def _resolve_device(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError("No CUDA device is visible to torch. Use --device cpu or --device auto.")
    return device


if __name__ == "__main__":
    raise SystemExit(main())
