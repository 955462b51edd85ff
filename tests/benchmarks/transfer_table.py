"""The transfer table: real fine-tuning runs of many configurations, the yardstick of every search strategy.

    python tests/benchmarks/transfer_table.py build --data ../shared/data --sources ../shared/sources --work DIR
    python tests/benchmarks/transfer_table.py clock --data ../shared/data --sources ../shared/sources --work DIR
    python tests/benchmarks/transfer_table.py pack --work DIR
    python tests/benchmarks/transfer_table.py show

`build` runs what is not there yet, in any number of processes (`--jobs`, or several commands on one `--work`): a
unit of work is one source on one dataset with one seed; every run is appended to the unit's own file as soon
as it has ended, so a kill loses one run. What is already in the packed table is not run again. `pack` merges the
units into `tests/benchmarks/transfer_table/*.parquet`; the README beside them says what the columns mean. `clock`
measures the forward passes of packed candidates that were probed before that was noted.

Costs are CPU seconds of one thread, so that they mean the same on a busy machine.
"""

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

TABLE = Path(__file__).parent / "transfer_table"
DATASETS = ["eurosat", "digits", "bccd_cells", "notmnist", "flowers", "sign_digits", "dtd10", "trashnet"]
# Regime: training images a class, epochs, seeds. All have 20 validation images a class (all: a fifth).
REGIMES: dict[str, tuple[int | None, int, tuple[int, ...]]] = {
    "20 a class": (20, 8, (0, 1)),
    "all": (None, 4, (0,)),
}
LEARNING_RATES = (3e-5, 3e-4, 3e-3, 3e-2)  # three decades
VALIDATION = 20
TEST_IMAGES = 500
UNIT = ["dataset", "regime", "seed", "source"]
CONFIG = ["transferred_layers", "upper_layers", "frozen_layers", "learning_rate"]


def main() -> None:
    """Run the command that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, run in (("build", build), ("clock", clock)):
        measuring = commands.add_parser(name)
        measuring.add_argument("datasets", nargs="*", default=DATASETS)
        measuring.add_argument("--data", type=Path, required=True)
        measuring.add_argument("--sources", type=Path)
        measuring.add_argument("--work", type=Path, required=True, help="a folder that outlives the command")
        measuring.add_argument("--regime", choices=REGIMES, nargs="*", default=list(REGIMES))
        measuring.add_argument("--only", nargs="*", help="labels of sources; all by default")
        measuring.add_argument("--jobs", type=int, default=1)
        measuring.set_defaults(run=run)
    packing = commands.add_parser("pack")
    packing.add_argument("--work", type=Path, required=True)
    packing.set_defaults(run=lambda options: pack(options.work))
    showing = commands.add_parser("show")
    showing.set_defaults(run=lambda options: show())
    options = parser.parse_args()
    options.run(options)


def build(options: argparse.Namespace) -> None:
    """Run every unit that is neither packed nor being run by another process."""
    options.work.mkdir(parents=True, exist_ok=True)
    if options.jobs > 1:
        single = argparse.Namespace(**{**vars(options), "jobs": 1, "run": None})
        workers = [multiprocessing.Process(target=build, args=(single,)) for _ in range(options.jobs)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        return
    import torch

    torch.set_num_threads(1)
    units = sorted(
        itertools.product(options.datasets, options.regime, (0, 1), labels(options)),
        key=lambda unit: (options.regime.index(unit[1]), unit[2], options.datasets.index(unit[0])),
    )
    for dataset, regime, seed, label in units:
        if seed not in REGIMES[regime][2] or label in unfair(dataset):
            continue
        if (lock := claim(options.work, f"{dataset}-{regime.replace(' ', '_')}-{seed}-{label}")) is not None:
            try:
                Unit(options, dataset, regime, seed, label).run()
            finally:
                lock.unlink()


def clock(options: argparse.Namespace) -> None:
    """Measure the forward pass of every packed candidate that lacks it, and write it into the packed table."""
    import torch

    torch.set_num_threads(1)
    path = TABLE / "candidates.parquet"
    table = pd.read_parquet(path)
    if "forward_seconds" not in table:
        table["forward_seconds"] = np.nan
    here = set(labels(options))
    for key, rows in table[table["forward_seconds"].isna()].groupby(["dataset", "regime", "source"]):
        if key[0] in options.datasets and key[1] in options.regime and key[2] in here:
            table.loc[rows.index, "forward_seconds"] = Unit(options, *key[:2], 0, key[2]).forward_seconds()
            print(*key, table.loc[rows.index[0], "forward_seconds"], flush=True)
            table.to_parquet(path, compression="zstd", index=False)


def labels(options: argparse.Namespace) -> list[str]:
    """The sources' short names, the same on every machine."""
    from autotransfer.sources import find_sources, load_plugins

    if options.sources:
        load_plugins([str(path) for path in options.sources.glob("*.py")])
    found = find_sources(["embedded:*", *([f"local-dir:{options.sources.resolve()}/*"] if options.sources else [])])
    names = [short(source.name) for source in found]
    return [name for name in names if not options.only or name in options.only]


def short(name: str) -> str:
    """`embedded:x` as it is, `local-dir:/any/where/x` as `local-dir:x`."""
    scheme, _, rest = name.partition(":")
    return name if scheme == "embedded" else f"{scheme}:{Path(rest).name}"


def unfair(dataset: str) -> list[str]:
    """Sources pretrained on the very task."""
    return ["local-dir:cifar_resnet20.c10"] if dataset == "cifar10" else []


def claim(work: Path, name: str) -> Path | None:
    """A lock that says which process runs a unit; None where another one does."""
    lock = work / f"{name}.lock"
    try:
        with lock.open("x") as file:
            file.write(str(os.getpid()))
    except FileExistsError:
        try:
            os.kill(int(lock.read_text() or 0), 0)
        except (ProcessLookupError, ValueError):
            lock.unlink(missing_ok=True)
            return claim(work, name)
        except FileNotFoundError:
            return None
        return None
    return lock


class Unit:
    """One source on one dataset, in one regime with one seed: all configurations."""

    def __init__(self, options: argparse.Namespace, dataset: str, regime: str, seed: int, label: str) -> None:
        self.options, self.dataset, self.regime, self.seed, self.label = options, dataset, regime, seed, label
        self.key = dict(zip(UNIT, (dataset, regime, seed, label), strict=True))
        name = f"{dataset}-{regime.replace(' ', '_')}-{seed}-{label.replace(':', '_')}.jsonl"
        self.file = options.work / "units" / name
        self.file.parent.mkdir(exist_ok=True)

    def run(self) -> None:
        """Run what is not there yet."""
        import torch

        source = self._source()
        done = self._done()
        probed = f"{self.dataset}-{self.regime}-{self.label}"
        wanted = [config for config in self._configs(source) if tuple(config.values()) not in done]
        need_probe = not self.seed and not (self.options.work / "units" / f"{self.file.stem}.probe.json").is_file()
        need_probe = need_probe and not self._packed_probe()
        if not wanted and not need_probe:
            return
        torch.manual_seed(self.seed)
        workshop, probe_seconds = self._workshop(source)
        if need_probe:
            rows = self._candidates(workshop, source, probe_seconds)
            self.file.with_suffix(".probe.json").write_text(json.dumps(rows))
        print(f"{probed} seed {self.seed}: {len(wanted)} runs", flush=True)
        started = time.perf_counter()
        for config in wanted:
            row = {**self.key, **config, **self._run(workshop, config)}
            with self.file.open("a") as file:
                file.write(json.dumps(row) + "\n")
        print(f"{probed} seed {self.seed}: {time.perf_counter() - started:.0f} s", flush=True)
        shutil.rmtree(self._cache() / "activations", ignore_errors=True)

    def forward_seconds(self) -> float:
        """CPU seconds of the probe's forward pass, an image."""
        from autotransfer.datasets import load_dataset
        from autotransfer.probing import choose_image_size, typical_image_size

        source, dataset = self._source(), load_dataset(self._folder())
        return self._timed_probe(source, dataset, choose_image_size(source, typical_image_size(dataset)))[1]

    def _timed_probe(self, source: Any, dataset: Any, image_size: int) -> tuple[Any, float]:
        """The probe of the test images, and the CPU seconds of its forward pass, an image."""
        import torch

        from autotransfer.probing import probe

        test, network = dataset.rows("test"), source.load()
        settings: dict[str, Any] = {"image_size": image_size, "device": torch.device("cpu"), "model": network}
        with tempfile.TemporaryDirectory(dir=self.options.work) as fresh:
            probe(source, dataset, test[:1], cache_dir=Path(fresh), **settings)  # decodes all images
            started = time.process_time()
            made = probe(source, dataset, test, cache_dir=Path(fresh), **settings)
            return made, (time.process_time() - started) / len(test)

    def _source(self) -> Any:
        from autotransfer.sources import find_sources

        where = self.label
        if where.startswith("local-dir:"):
            where = f"local-dir:{(self.options.sources / where.removeprefix('local-dir:')).resolve()}"
        (source,) = find_sources([where])
        return source

    def _done(self) -> set[tuple[Any, ...]]:
        done = set()
        if (TABLE / "runs.parquet").is_file():
            table = pd.read_parquet(TABLE / "runs.parquet", columns=[*UNIT, *CONFIG])
            mine = table[(table[UNIT] == pd.Series(self.key)).all(axis=1)]
            done |= set(mine[CONFIG].itertuples(index=False, name=None))
        if self.file.is_file():
            rows = [json.loads(line) for line in self.file.read_text().splitlines() if line.endswith("}")]
            done |= {tuple(row[key] for key in CONFIG) for row in rows}
        return done

    def _packed_probe(self) -> bool:
        if not (TABLE / "candidates.parquet").is_file():
            return False
        table = pd.read_parquet(TABLE / "candidates.parquet", columns=["dataset", "regime", "source"])
        return bool(((table == pd.Series({k: self.key[k] for k in table.columns})).all(axis=1)).any())

    def _configs(self, source: Any) -> Iterator[dict[str, Any]]:
        """The grid: at full depth, at the last but one and at the middle level; nothing, half or all frozen."""
        top = len(source.levels)
        middle = -(-top // 2)
        depths = [(top, "drop", frozen) for frozen in (0, middle, top)]
        depths += [(k, "drop", frozen) for k in (top - 1, middle) for frozen in (0, k)]
        depths += [(middle, "reinit", frozen) for frozen in (0, middle)]
        if self._first_of_its_architecture(source):
            depths.append((0, "reinit", 0))
        for (k, upper, frozen), rate in itertools.product(dict.fromkeys(depths), LEARNING_RATES):
            yield dict(zip(CONFIG, (k, upper, frozen, rate), strict=True))

    def _first_of_its_architecture(self, source: Any) -> bool:
        """From scratch all sources of an architecture (at one size) are the same."""
        from autotransfer.sources import find_sources

        patterns = ["embedded:*"]
        if self.options.sources:
            patterns.append(f"local-dir:{self.options.sources.resolve()}/*")
        same = [s.name for s in find_sources(patterns) if s.architecture == source.architecture]
        return same[0] == source.name

    def _cache(self) -> Path:
        return self.options.work / "cache" / f"{self.file.stem}"

    def _workshop(self, source: Any) -> tuple[Any, float]:
        import torch

        from autotransfer.datasets import load_dataset
        from autotransfer.proxies import list_proxies
        from autotransfer.search.candidates import build_pool
        from autotransfer.search.space import Space
        from autotransfer.search.workshop import Workshop
        from autotransfer.transfer.evaluation import get_metric

        dataset = load_dataset(self._folder())
        names = [p.name for p in list_proxies() if "classification" in p.tasks and p.name not in ("logistic_cv",)]
        space, metric, cpu = Space(sources=[source.name], proxies=names), get_metric("accuracy"), torch.device("cpu")
        started = time.process_time()
        pool = build_pool(
            [source], dataset, space, metric, seed=0, device=cpu, cache_dir=self._cache(),
            listener=lambda event: None,
        )  # fmt: skip
        seconds = time.process_time() - started
        workshop = Workshop(
            dataset, space, pool, metric, cpu, self._cache(), self._cache(), self.seed, None, None, {}, lambda: True
        )
        return workshop, seconds

    def _folder(self) -> Path:
        """The dataset with this regime's training, validation and test images; drawn once for all seeds."""
        from main_job import thinned, unpacked
        from zoo import digits

        target = self.options.work / "data" / f"{self.dataset}-{self.regime.replace(' ', '_')}"
        if not target.is_dir():
            work = Path(f"{target}.{os.getpid()}")
            shutil.rmtree(work, ignore_errors=True)
            if self.dataset == "digits":
                folder = digits(work / "digits")
            else:
                folder = unpacked(self.options.data, self.dataset, work, None, 0)
            per_class = REGIMES[self.regime][0]
            hold_out(folder, per_class)
            if per_class is not None:
                thinned(folder, per_class, 0)
            keep_test(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(OSError):  # another process was first
                folder.rename(target)
            shutil.rmtree(work, ignore_errors=True)
        return target

    def _candidates(self, workshop: Any, source: Any, seconds: float) -> list[dict[str, Any]]:
        """What is known of every level before training."""
        from autotransfer.probing import fit_linear_head

        dataset, test = workshop.dataset, workshop.dataset.rows("test")
        made, forward_seconds = self._timed_probe(source, dataset, workshop.pool.image_sizes[source.name])
        both = dataset.rows("train", "val")
        known = workshop.pool.probes[source.name]
        both = both[np.isin(both, known.rows)]
        rows = []
        for candidate in sorted(workshop.pool.candidates, key=lambda c: c.level):
            head = fit_linear_head(
                known.at(candidate.level, both), dataset.codes[both], len(dataset.classes), candidate.head.strength
            )
            predicted = head.predict(made.at(candidate.level, test))
            level = source.levels[candidate.level - 1]
            rows.append(
                {
                    **{key: self.key[key] for key in ("dataset", "regime", "source")},
                    "architecture": source.architecture,
                    "level": candidate.level,
                    "levels": len(source.levels),
                    "parameters": level.parameter_count,
                    "flops": level.flops,
                    "channels": level.channels,
                    "image_size": workshop.pool.image_sizes[source.name],
                    "train_images": len(dataset.rows("train")),
                    "val_images": len(dataset.rows("val")),
                    "test_images": len(test),
                    "classes": len(dataset.classes),
                    "probe_seconds": seconds,
                    "forward_seconds": forward_seconds,
                    "linear_probe": candidate.linear_probe,
                    "linear_probe_test": workshop.metric(predicted, dataset.codes[test]),
                    **{f"proxy.{n}": v.value if v.trusted else None for n, v in candidate.proxies.items()},
                }
            )
        return rows

    def _run(self, workshop: Any, config: dict[str, Any]) -> dict[str, Any]:
        """Train one configuration as a trial does; the last weights are judged on the test images."""
        from autotransfer.errors import TrainingError
        from autotransfer.search.workshop import with_training
        from autotransfer.transfer.config import TransferConfig, canonical
        from autotransfer.transfer.training import Data, EpochReport, train

        dataset, source = workshop.dataset, workshop.pool.sources()[0]
        whole = TransferConfig(source=source.name, epochs=REGIMES[self.regime][1], **config)
        whole = canonical(with_training(workshop, whole), len(source.levels))
        curve: list[EpochReport] = []
        clock: list[float] = []

        def on_epoch(report: EpochReport) -> None:
            curve.append(report)
            clock.append(time.process_time())

        kept = self._cache() / "activations"
        before = set(kept.rglob("*"))
        started, reason, test = time.process_time(), "", None
        with workshop.started(whole, dataset.rows("train")) as (model, inputs):
            begun = time.process_time()
            data = Data(inputs, dataset.codes, dataset.rows("train"), dataset.rows("val"), dataset.task)
            try:
                train(model, whole, data, metric=workshop.metric, seed=self.seed, on_epoch=on_epoch)
            except TrainingError as error:
                reason = str(error)
        fresh = bool(set(kept.rglob("*")) - before)
        if not reason:
            rows = dataset.rows("test")
            test = workshop.metric(workshop.predict(model, whole, "test"), dataset.codes[rows])
        return {
            "epochs": whole.epochs,
            "cached_views": whole.cached_views,
            "first_of_cache": fresh,
            "start_seconds": begun - started,
            "epoch_seconds": np.diff([begun, *clock]).round(4).tolist(),
            "val": [report.score for report in curve],
            "val_loss": [report.val_loss for report in curve],
            "train_loss": [report.train_loss for report in curve],
            "test": test,
            "reason": reason,
        }


def hold_out(folder: Path, per_class: int | None) -> None:
    """Move validation images out of `train`: as many a class as there are for training (at most 20), or a fifth."""
    draw = random.Random(1)
    for category in sorted((folder / "train").iterdir()):
        images = sorted(category.iterdir())
        count = len(images) // 5 if per_class is None else min(VALIDATION, len(images) // 2)
        (folder / "val" / category.name).mkdir(parents=True)
        for image in draw.sample(images, count):
            image.rename(folder / "val" / category.name / image.name)


def keep_test(folder: Path) -> None:
    """Keep at most 500 test images, stratified."""
    draw = random.Random(2)
    classes = sorted((folder / "test").iterdir())
    total = sum(len(list(category.iterdir())) for category in classes)
    for category in classes:
        images = sorted(category.iterdir())
        keep = max(1, round(len(images) * min(1.0, TEST_IMAGES / total)))
        for image in draw.sample(images, len(images) - keep):
            image.unlink()


def pack(work: Path) -> None:
    """Merge the units into the packed table, one row a run and one a candidate."""
    rows = [json.loads(line) for file in sorted((work / "units").glob("*.jsonl")) for line in file.open()]
    probes = [row for file in sorted((work / "units").glob("*.probe.json")) for row in json.loads(file.read_text())]
    for name, new, key in (
        ("runs", pd.DataFrame(rows), [*UNIT, *CONFIG]),
        ("candidates", pd.DataFrame(probes), ["dataset", "regime", "source", "level"]),
    ):
        path = TABLE / f"{name}.parquet"
        table = pd.concat([pd.read_parquet(path), new]) if path.is_file() else new
        table = table.drop_duplicates(key, keep="first").sort_values(key).reset_index(drop=True)
        TABLE.mkdir(exist_ok=True)
        table.to_parquet(path, compression="zstd", index=False)
        print(f"{path.name}: {len(table)} rows, {path.stat().st_size / 1e6:.2f} MB")


def show() -> None:
    """Print what the table holds."""
    runs = pd.read_parquet(TABLE / "runs.parquet")
    runs["seconds"] = runs["start_seconds"] + runs["epoch_seconds"].map(sum)
    groups = runs.groupby(["dataset", "regime"])
    best = groups["test"].max()
    print(
        pd.DataFrame(
            {
                "runs": groups.size(),
                "sources": groups["source"].nunique(),
                "seeds": groups["seed"].nunique(),
                "CPU hours": groups["seconds"].sum() / 3600,
                "median test": groups["test"].median(),
                "best test": best,
            }
        )
        .round(3)
        .to_string()
    )


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
