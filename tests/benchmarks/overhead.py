"""How long does a trial take that trains nothing? Asking, ten reports, telling, by sampler and number of trials.

    python tests/benchmarks/overhead.py --trials 1000 --sources 50

On the default storage (a journal file), 12 levels a source. Milliseconds a trial, the median of the last fifty.
"""

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import optuna
import pandas as pd

from autotransfer.search.expectation import Surrogate
from autotransfer.search.prior import Landscape, shipped_prior
from autotransfer.search.sampler import CurvePruner, ProxySampler
from autotransfer.search.study import open_storage
from autotransfer.transfer.evaluation import get_metric

EPOCHS, LEVELS = 10, 12


def main() -> None:
    """Run every sampler and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--sources", type=int, default=50)
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    surrogate = Surrogate(landscape(options.sources), shipped_prior(), lambda points: np.ones(len(points)))
    rows = {}
    for name, sampler, pruner in (
        ("proxy", ProxySampler(surrogate, seed=0, continues=True), CurvePruner(surrogate)),
        ("tpe", optuna.samplers.TPESampler(seed=0), optuna.pruners.MedianPruner()),
        ("random", optuna.samplers.RandomSampler(seed=0), optuna.pruners.NopPruner()),
    ):
        with tempfile.TemporaryDirectory() as folder:
            study = optuna.create_study(
                storage=open_storage(f"journal:{Path(folder) / 'study'}"), sampler=sampler, pruner=pruner,
                direction="maximize",
            )  # fmt: skip
            rows[name] = milliseconds(study, options)
        print(name, rows[name], flush=True)
    print(pd.DataFrame(rows).T.round(1).to_string())


def landscape(sources: int) -> Landscape:
    """Made-up sources of twelve levels."""
    generator = np.random.default_rng(0)
    probes = np.sort(generator.uniform(0.3, 0.8, (sources, LEVELS)), axis=1)
    sizes = np.cumsum(generator.uniform(1e5, 1e6, (sources, LEVELS)), axis=1)
    return Landscape(
        [f"source {i}" for i in range(sources)], [f"architecture {i % 20}" for i in range(sources)],
        np.full(sources, LEVELS), probes, probes.argsort(axis=None).argsort().reshape(probes.shape) / probes.size,
        sizes, sizes * 100, get_metric("accuracy"), 1000, 300, 10,
    )  # fmt: skip


def milliseconds(study: optuna.Study, options: argparse.Namespace) -> dict[str, float]:
    """Of a trial after 50, 200, ... trials."""
    generator, found, seconds = np.random.default_rng(0), {}, []
    marks = [mark for mark in (50, 200, 500, 1000, 2000) if mark <= options.trials]
    for number in range(1, options.trials + 1):
        started = time.perf_counter()
        trial = study.ask()
        source = trial.suggest_categorical("source", sorted(f"source {i}" for i in range(options.sources)))
        k = trial.suggest_int("transferred_layers", 0, LEVELS)
        trial.suggest_categorical("upper_layers", ["drop", "reinit"])
        trial.suggest_int("frozen_layers", 0, k)
        trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
        trial.suggest_int("epochs", EPOCHS, EPOCHS)
        level = 0.4 + 0.3 * int(source.split()[1]) / options.sources + generator.normal(0, 0.03)
        for epoch in range(1, EPOCHS + 1):
            trial.report(level - 0.2 / epoch, epoch)
            if epoch < EPOCHS and trial.should_prune():
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                break
        else:
            study.tell(trial, level)
        seconds.append(time.perf_counter() - started)
        if number in marks:
            found[f"after {number}"] = 1000 * float(np.median(seconds[-50:]))
    return found


if __name__ == "__main__":
    main()
