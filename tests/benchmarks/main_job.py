"""The main job on real datasets: what is recommended, and does it beat the baselines?

    python tests/benchmarks/main_job.py --data ../shared/data --sources ../shared/sources --budget 3m

`--data` holds zips (or folders) with `train/<class>/` and `test/<class>/`; `--sources` holds pretrained
sources as folders in timm's hub layout, and maybe `timm_extra.py`, which registers architectures. They are
searched beside the embedded sources, each dataset in a process of its own through the command line. Every
result is printed, worse ones too.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pandas as pd
import yaml

DATASETS = ["eurosat", "gtsrb", "bccd_cells", "notmnist", "sign_digits", "pacs_sketch", "dtd10"]
NOT_FAIR = {"cifar10": ["cifar_resnet20.c10"]}  # pretrained on the very task


def main() -> None:
    """Run every dataset and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="*", default=DATASETS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sources", type=Path)
    parser.add_argument("--budget", default="3m")
    parser.add_argument("--trials", type=int)
    parser.add_argument("--per-class", type=int, help="training images a class, drawn at random; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a folder for recommendations; by default they are thrown away")
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for name in options.datasets:
            data = unpacked(options.data, name, work, options.per_class, options.seed)
            rows.append(measure(name, data, work, options))
            print(pd.DataFrame(rows).to_string(index=False), flush=True)
            print(flush=True)


def unpacked(folder: Path, name: str, work: Path, per_class: int | None, seed: int) -> Path:
    """The dataset as a folder of its own, with `per_class` training images where that is asked for."""
    target = work / name
    archive = folder / f"{name}.zip"
    if archive.is_file():
        with zipfile.ZipFile(archive) as packed:
            packed.extractall(target)
    else:
        shutil.copytree(folder / name, target)
    if not (target / "train").is_dir():
        target = next(path for path in target.iterdir() if (path / "train").is_dir())
    if per_class is not None:
        thinned(target, per_class, seed)
    return target


def thinned(folder: Path, per_class: int, seed: int) -> None:
    """Keep `per_class` training images, drawn at random, in each class of a folder with `train/<class>/`."""
    draw = random.Random(seed)
    for category in sorted((folder / "train").iterdir()):
        images = sorted(category.iterdir())
        for image in draw.sample(images, max(0, len(images) - per_class)):
            image.unlink()


def measure(name: str, data: Path, work: Path, options: argparse.Namespace) -> dict[str, object]:
    """One run of the main job as a row of the table."""
    space: dict[str, object] = {"sources": ["embedded:*"]}
    if options.sources:
        usable = [path for path in sorted(options.sources.iterdir()) if (path / "config.json").is_file()]
        space["sources"] = ["embedded:*"] + [
            f"local-dir:{path.resolve()}" for path in usable if path.name not in NOT_FAIR.get(name, [])
        ]
        plugin = options.sources / "timm_extra.py"
        space["plugins"] = [str(plugin.resolve())] if plugin.is_file() else []
    file = work / "space.yaml"
    file.write_text(yaml.safe_dump(space))
    out = (options.keep or work) / f"{name}-out"
    limit = ["--trials", str(options.trials)] if options.trials else ["--budget", options.budget]
    environment = {**os.environ, "AUTOTRANSFER_HOME": str(work / "home"), "AUTOTRANSFER_CACHE_DIR": str(work / "cache")}
    command = ["recommend", str(data), "--space", str(file), *limit, "--out", str(out), "--seed", str(options.seed)]
    done = subprocess.run(
        [sys.executable, "-m", "autotransfer.cli", *command, "--json"],
        capture_output=True,
        text=True,
        env=environment,
    )
    if done.returncode != 0:
        return {"dataset": name, "failed": done.stderr.strip()[-300:]}
    answer = json.loads(done.stdout)
    config, baselines = answer["config"], answer["baselines"]
    trials = pd.read_csv(out / "trials.csv")
    scratch = baselines.get("from_scratch", {"value": float("nan")})["value"]
    return {
        "dataset": name,
        "source": Path(config["source"].removeprefix("local-dir:")).name,
        "k": config["transferred_layers"],
        "above": config["upper_layers"],
        "f": config["frozen_layers"],
        "epochs": config["epochs"],
        "test": round(answer["test"]["value"], 4),
        "low": round(answer["test"]["low"], 4),
        "high": round(answer["test"]["high"], 4),
        "linear_probe": round(baselines["linear_probe"]["value"], 4),
        "from_scratch": round(scratch, 4),
        "negative": answer["negative_transfer"]["verdict"],
        "trained": int((trials["seconds"] > 0.1).sum()),
        "seconds": round(answer["cost"]["total_seconds"]),
    }


if __name__ == "__main__":
    main()
