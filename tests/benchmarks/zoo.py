"""Do the embedded sources transfer, and does it matter which one is taken?

    python tests/benchmarks/zoo.py measure --data ../shared/data --table zoo.csv    # goes on where it ended
    python tests/benchmarks/zoo.py report zoo.csv
    python tests/benchmarks/zoo.py load                 # seconds to load each source, after imports

`measure` takes scikit-learn's digits and the datasets of `--data` (zips with `train/<class>/` and
`test/<class>/`), with 20 images a class (three draws) and with all images (one), and writes a row for

    source   every embedded source, cut where its linear probe is best on validation images: the linear probe's
             test accuracy, and the fine-tuned one
    random   the same for the source's architecture with random weights: linear probe only
    scratch  the whole architecture trained from random weights, with the same epochs and learning rate

Every network trains for the same number of epochs (20 at 20 images a class, 8 on all), augmentation and
learning rates as in a study. `report` prints one table a dataset, the best source first, with the standard
deviation over the draws, and where transfer does harm; then each regime in short. `zoo.csv` beside this file is
what `measure` wrote. Worse results are printed too.
"""

import argparse
import functools
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

DATASETS = ["digits", "notmnist", "dtd10", "eurosat", "flowers", "bccd_cells", "trashnet", "sign_digits"]
REGIMES = {"20 a class": (20, 20, (0, 1, 2)), "all": (None, 8, (0,))}
KEYS = ["dataset", "regime", "seed", "kind", "source"]


def main() -> None:
    """Run the command that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("datasets", nargs="*", default=DATASETS)
    measuring.add_argument("--data", type=Path, required=True)
    measuring.add_argument("--table", type=Path, required=True)
    measuring.add_argument("--regime", choices=REGIMES, action="append", help="one of the two only")
    measuring.set_defaults(run=measure)
    reporting = commands.add_parser("report")
    reporting.add_argument("table", type=Path)
    reporting.set_defaults(run=lambda options: report(pd.read_csv(options.table)))
    loading = commands.add_parser("load")
    loading.set_defaults(run=load)
    options = parser.parse_args()
    options.run(options)


def load(_: argparse.Namespace) -> None:
    """Print how long each source takes to load and how large its weights are."""
    from autotransfer.sources import find_sources
    from autotransfer.sources.embedded import embedded_folder

    find_sources(["embedded:*"])[0].load()  # whatever is imported on first use
    for source in find_sources(["embedded:*"]):
        started = time.perf_counter()
        source.load()
        seconds = time.perf_counter() - started
        size = (embedded_folder(source.name.removeprefix("embedded:")) / "model.safetensors").stat().st_size
        print(f"{source.name:42}{seconds:8.3f} s{size / 1e6:8.2f} MB")


def measure(options: argparse.Namespace) -> None:
    """Add the rows that the table lacks, one after the other."""
    rows = pd.read_csv(options.table).to_dict("records") if options.table.is_file() else []
    done = {tuple(row[key] for key in KEYS) for row in rows}
    for regime in options.regime or REGIMES:
        per_class, epochs, seeds = REGIMES[regime]
        for seed in seeds:
            for name in options.datasets:
                with tempfile.TemporaryDirectory() as work:
                    bench = Bench(options.data, name, per_class, epochs, seed, Path(work))
                    for kind, source in bench.runs():
                        key = (name, regime, seed, kind, source)
                        if key in done:
                            continue
                        started = time.perf_counter()
                        result = bench.result(kind, source)
                        seconds = round(time.perf_counter() - started, 1)
                        rows.append({**dict(zip(KEYS, key, strict=True)), **result, "seconds": seconds})
                        pd.DataFrame(rows).to_csv(options.table, index=False)
                        print(*key, result, seconds, flush=True)


class Bench:
    """One dataset in one draw, and the networks that are tried on it."""

    def __init__(self, folder: Path, name: str, per_class: int | None, epochs: int, seed: int, work: Path) -> None:
        """Unpack `per_class` training images a class of dataset `name` into `work` and open the embedded sources."""
        from main_job import thinned, unpacked

        from autotransfer.datasets import load_dataset
        from autotransfer.sources import find_sources
        from autotransfer.transfer.evaluation import get_metric

        path = digits(work / name) if name == "digits" else unpacked(folder, name, work, None, seed)
        if per_class is not None:
            thinned(path, per_class, seed)
        self.dataset = load_dataset(path)
        self.epochs, self.seed, self.cache = epochs, seed, work / "cache"
        self.metric = get_metric("accuracy")
        self.sources = {source.name.removeprefix("embedded:"): source for source in find_sources(["embedded:*"])}

    @functools.cached_property
    def workshop(self):
        """The product's own probing of all sources, and its way to start a network."""
        import torch

        from autotransfer.search.candidates import build_pool
        from autotransfer.search.space import Space
        from autotransfer.search.workshop import Workshop

        cpu, space = torch.device("cpu"), Space(sources=["embedded:*"], proxies=["knn"])
        pool = build_pool(
            list(self.sources.values()), self.dataset, space, self.metric, seed=self.seed, device=cpu,
            cache_dir=self.cache, listener=lambda event: None,
        )  # fmt: skip
        forever = lambda: True  # noqa: E731
        return Workshop(
            self.dataset, space, pool, self.metric, cpu, self.cache, self.cache, self.seed, None, None, {}, forever
        )

    def runs(self) -> list[tuple[str, str]]:
        """(kind, source): every source, and each architecture once at random weights and from scratch."""
        architectures = {source.architecture: name for name, source in self.sources.items()}
        once = [(kind, name) for kind in ("random", "scratch") for name in architectures.values()]
        return [("source", name) for name in self.sources] + once

    def result(self, kind: str, name: str) -> dict[str, object]:
        """Test accuracies of one network."""
        source, level, probed, tuned = self.sources[name], 0, np.nan, np.nan
        if kind == "random":
            level, probed = self._random_features(source)
        elif kind == "scratch":
            tuned = self._accuracy(self._config(source, 0, self.epochs))
        else:
            candidates = [c for c in self.workshop.pool.candidates if c.source.name == source.name]
            level = max(candidates, key=lambda c: c.linear_probe).level
            probed = self._accuracy(self._config(source, level, 0))
            tuned = self._accuracy(self._config(source, level, self.epochs))
        return {"architecture": source.architecture, "level": level, "linear_probe": probed, "fine_tuned": tuned}

    def _config(self, source, level: int, epochs: int):
        from autotransfer.search.first_trials import usual_learning_rate
        from autotransfer.search.workshop import linear_probe_config, with_training
        from autotransfer.transfer.config import TransferConfig

        if level and not epochs:
            return linear_probe_config(self.workshop, source.name, level)
        config = TransferConfig(
            source=source.name,
            transferred_layers=level,
            upper_layers="drop" if level else "reinit",
            frozen_layers=0,
            learning_rate=usual_learning_rate(source),
            epochs=epochs,
        )
        return with_training(self.workshop, config)

    def _accuracy(self, config) -> float:
        """On the test images, after training on train + validation images (0 epochs: the head alone is solved)."""
        from autotransfer.transfer.training import Data, predict, train

        rows, test = self.dataset.rows("train", "val"), self.dataset.rows("test")
        with self.workshop.started(config, rows) as (model, inputs):
            if config.epochs:
                data = Data(inputs, self.dataset.codes, rows, np.empty(0, np.int64))
                train(model, config, data, metric=self.metric, seed=self.seed)
        probabilities = predict(model, self.workshop.inputs(config.source), test)
        return self.metric(probabilities, self.dataset.codes[test])

    def _random_features(self, source) -> tuple[int, float]:
        """The best level of the architecture at random weights by validation, and its head's test accuracy."""
        import torch

        from autotransfer.probing import best_linear_head, fit_linear_head, probe

        codes, classes = self.dataset.codes, len(self.dataset.classes)
        train, val, test = (self.dataset.rows(split) for split in ("train", "val", "test"))
        rows, both = np.arange(len(codes)), np.sort(np.concatenate([train, val]))
        torch.manual_seed(self.seed)
        size = self.workshop.pool.image_sizes[source.name]
        made = probe(
            source, self.dataset, rows, image_size=size, cache_dir=self.cache, device=self.workshop.device,
            model=source.build(),
        )  # fmt: skip
        found = []
        for level in source.levels:
            on_val = made.at(level.index, val)
            head = best_linear_head((made.at(level.index, train), codes[train]), (on_val, codes[val]), classes)
            found.append((self.metric(head.predict(on_val), codes[val]), level.index, head.strength))
        _, best, strength = max(found)
        head = fit_linear_head(made.at(best, both), codes[both], classes, strength)
        return best, self.metric(head.predict(made.at(best, test)), codes[test])


def digits(folder: Path) -> Path:
    """scikit-learn's digits as images, every third of a class held out for the test."""
    from autotransfer.recommendation.demo import write_demo_dataset

    for category in sorted(write_demo_dataset(folder / "all").iterdir()):
        for index, image in enumerate(sorted(category.iterdir())):
            target = folder / ("test" if index % 3 == 2 else "train") / category.name
            target.mkdir(parents=True, exist_ok=True)
            image.rename(target / image.name)
    shutil.rmtree(folder / "all")
    return folder


def report(table: pd.DataFrame) -> None:
    """Print what the table says: one table a dataset, then a summary of each regime."""
    table["best"] = table[["linear_probe", "fine_tuned"]].max(axis=1)
    for regime, part in table.groupby("regime", sort=False):
        print(f"\n{regime}: test accuracy in %, mean over {part['seed'].nunique()} draw(s)")
        lines = [_one_dataset(str(dataset), here) for dataset, here in part.groupby("dataset", sort=False)]
        print(f"\n{regime}, in short (gains in points, +- their standard deviation over the draws):")
        print(pd.DataFrame(lines).to_string(index=False))
        winners = {line["best source"] for line in lines}
        print(f"best source: {len(winners)} different ones on {len(lines)} datasets")


def _one_dataset(dataset: str, here: pd.DataFrame) -> dict[str, object]:
    """Print the sources of one dataset, best first; the dataset's line in the summary."""
    sources, scratch = here[here["kind"] == "source"], here[here["kind"] == "scratch"]
    random = here[here["kind"] == "random"]
    scratch_of = {name: rows.set_index("seed")["fine_tuned"] for name, rows in scratch.groupby("architecture")}
    best_scratch = max(scratch_of, key=lambda name: scratch_of[name].mean())
    lines, gains, over_best = [], {}, {}
    for (source, architecture), rows in sources.groupby(["source", "architecture"]):
        rows = rows.set_index("seed")
        own = scratch_of[architecture]
        gains[source] = (rows["fine_tuned"] - own) * 100
        over_best[source] = (rows["best"] - scratch_of[best_scratch]) * 100
        lines.append(
            {
                "source": source,
                "level": "/".join(str(level) for level in rows["level"]),
                "linear probe": 100 * rows["linear_probe"].mean(),
                "random features": 100 * random[random["architecture"] == architecture]["linear_probe"].mean(),
                "fine-tuned": 100 * rows["fine_tuned"].mean(),
                "from scratch": 100 * own.mean(),
                "gain": gains[source].mean(),
                "sd": gains[source].std() if len(rows) > 1 else np.nan,
                "best": 100 * rows["best"].mean(),
            }
        )
    shown = pd.DataFrame(lines).sort_values("best", ascending=False)
    print(f"\n{dataset}: best from scratch {100 * scratch_of[best_scratch].mean():.1f} ({best_scratch})")
    print(shown.round(1).to_string(index=False, na_rep="-"))
    harmful = shown[shown["gain"] < 0]["source"].tolist()
    print(f"fine-tuned below the same architecture from scratch: {', '.join(harmful) or 'none'}")
    winner, gainer = str(shown["source"].iloc[0]), max(gains, key=lambda name: gains[name].mean())
    return {
        "dataset": dataset,
        "best source": winner,
        "accuracy": f"{shown['best'].iloc[0]:.1f}",
        "over the best from scratch": _with_spread(over_best[winner]),
        "most gained over its own architecture": f"{gainer} {_with_spread(gains[gainer])}",
        "harmful": f"{len(harmful)} of {len(shown)}",
    }


def _with_spread(values: pd.Series) -> str:
    spread = f" +- {values.std():.1f}" if len(values) > 1 else ""
    return f"{values.mean():+.1f}{spread}"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
