"""Measure what published figures say of a source's transfer, and how well that orders sources on datasets left out.

    python tests/benchmarks/hub_prior.py fit --tables ../shared/tables     # writes autotransfer/search/hub_prior.json
    python tests/benchmarks/hub_prior.py evaluate --tables ../shared/tables

What the tables hold and what is dropped, says `published_runs.py`. Both parts fit standardised log errors, -log(1 -
accuracy), within each target; every target counts alike, however many models were run on it.

`evaluate` prints, for the rules and fits that could be shipped: Spearman's correlation with the accuracies, and by how
many points of accuracy the best of the first one and the first five fall short of the best (random: the mean over
draws). Coefficients are of the other datasets (`--without dataset`, in whichever table), or of the other families of
architectures as well (`--without family`: targets then hold one family's models). Last: standard errors over datasets.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from published_runs import read_runs
from scipy.stats import spearmanr

from autotransfer.search.hub_prior import HubPrior
from autotransfer.sources.published import published_models

SHIPPED = Path(__file__).parents[2] / "autotransfer" / "search" / "hub_prior.json"
FEATURES = ("top1", "self_supervised")
RULES = {
    "most parameters": ("parameters",),
    "most GMACs": ("macs",),
    "best ImageNet accuracy": ("top1",),
}
FITS = {
    "fit: accuracy, parameters": ("top1", "parameters"),
    "fit: accuracy, self-supervised (shipped)": FEATURES,
    "fit: accuracy, larger data, self-supervised": ("top1", "larger_data", "self_supervised"),
    "fit: accuracy, GMACs, self-supervised": ("top1", "macs", "self_supervised"),
    "fit: all": ("top1", "parameters", "macs", "larger_data", "self_supervised", "distilled"),
}
_ACCURACY_FEATURES = ("parameters", "macs", "larger_data")
_RIDGE = 1.0
_SMALLEST_ERROR = 0.002
_FEWEST_IN_FAMILY = 4
_DRAWS = 500

Order = Callable[[pd.DataFrame], np.ndarray]


def main() -> None:
    """Run the command that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["fit", "evaluate"])
    parser.add_argument("--tables", type=Path, required=True, help="folder of the published fine-tuning results")
    parser.add_argument("--without", choices=["dataset", "family"], default="dataset")
    options = parser.parse_args()
    runs, told = read_runs(options.tables)
    accuracy = fit_accuracy()
    runs = described(runs, accuracy)
    print(told)
    if options.part == "fit":
        prior = fit(runs, accuracy)
        SHIPPED.write_text(prior.to_json(), encoding="utf-8")
        print(f"{SHIPPED.name}: {prior.weights}")
    else:
        print(evaluate(runs, options.without).round(2).to_string())


def fit_accuracy() -> dict[str, float]:
    """The logit of ImageNet accuracy by size and data, over all published models that have one, less a deviation."""
    blank = HubPrior({}, {})
    known = [blank.describe(model) for model in published_models().values() if model.top1]
    design = np.array([[1.0, *(row[name] for name in _ACCURACY_FEATURES)] for row in known])
    measured = np.array([row["top1"] for row in known])
    solved = np.linalg.lstsq(design, measured, rcond=None)[0]
    solved[0] -= (measured - design @ solved).std()
    return dict(zip(("one", *_ACCURACY_FEATURES), solved.round(4).tolist(), strict=True))


def described(runs: pd.DataFrame, accuracy: dict[str, float]) -> pd.DataFrame:
    """The runs with what is known of their models, standardised log errors, and families of architectures."""
    prior, models = HubPrior({}, accuracy), published_models()
    features = pd.DataFrame([prior.describe(models[name]) for name in runs["model"]], index=runs.index)
    log_error = -np.log(np.maximum(1 - runs["accuracy"], _SMALLEST_ERROR))
    groups = log_error.groupby(runs["target"])
    standardised = (log_error - groups.transform("mean")) / groups.transform("std")
    return runs.join(features).assign(y=standardised, family=runs["model"].str.extract("^([a-z]+)")[0])


def solve(runs: pd.DataFrame, names: tuple[str, ...]) -> np.ndarray:
    """Ridge regression within targets, each of them of the same weight."""
    columns = list(names)
    groups = runs.groupby("target")
    weight = 1 / np.sqrt(groups["y"].transform("size").to_numpy(float))
    x = (runs[columns] - groups[columns].transform("mean")).to_numpy() * weight[:, None]
    y = (runs["y"] - groups["y"].transform("mean")).to_numpy() * weight
    solved: np.ndarray = np.linalg.solve(x.T @ x + _RIDGE * np.eye(len(columns)), x.T @ y)
    return solved


def fit(runs: pd.DataFrame, accuracy: dict[str, float]) -> HubPrior:
    """The coefficients that are shipped."""
    weights = dict(zip(FEATURES, solve(runs, FEATURES).round(4).tolist(), strict=True))
    prior = HubPrior(weights, accuracy)
    centre = float(np.mean([prior.expect(model) for model in published_models().values()]))
    origin = (
        f"{len(runs)} published fine-tuning results of {runs['model'].nunique()} models on {runs['target'].nunique()} "
        "targets (zLizy/transferability_graph; TencentARC/SFDA; OpenGVLab/Multitask-Model-Selector), by "
        "tests/benchmarks/hub_prior.py"
    )
    return HubPrior(weights, accuracy, round(centre, 4), origin)


def evaluate(runs: pd.DataFrame, without: str) -> pd.DataFrame:
    """Every order on what was left out: one row an order, columns a figure and a kind of training."""
    orders: dict[str, Callable[[pd.DataFrame], Order]] = {}
    for label, names in RULES.items():
        orders[label] = lambda others, name=names[0]: lambda target: target[name].to_numpy()
    for label, names in FITS.items():
        orders[label] = lambda others, names=names: _fitted(others, names)
    rows = []
    for left_out, own in runs.groupby(without):
        others = runs[runs[without] != left_out]
        for name, target in own.groupby("target"):
            if len(target) < _FEWEST_IN_FAMILY or target["accuracy"].nunique() < 2:
                continue
            kind = name.split(", ", 1)[1].split(",")[0]
            common = {"dataset": target["dataset"].iloc[0], "kind": kind}
            for label, make in orders.items():
                rows.append({"order": label, **common, **_judge(target, make(others)(target))})
            rows.append({"order": "random", **common, **_random(target)})
    found = pd.DataFrame(rows)
    figures = ["spearman", "regret_1", "regret_5"]
    labels = ["random", *orders]
    by_kind = found.pivot_table(index="order", columns="kind", values=figures, sort=True)
    by_kind.columns = [f"{figure} {kind}" for figure, kind in by_kind.columns]
    by_dataset = found.groupby(["order", "dataset"])[figures].mean().groupby("order")
    overall = by_dataset.mean().join(by_dataset.sem().add_suffix(" se"))
    return overall.join(by_kind).loc[labels]


def _fitted(others: pd.DataFrame, names: tuple[str, ...]) -> Order:
    solved = solve(others, names)
    return lambda target: target[list(names)].to_numpy() @ solved


def _judge(target: pd.DataFrame, expected: np.ndarray) -> dict[str, float]:
    accuracy = target["accuracy"].to_numpy()
    first = np.argsort(-expected, kind="stable")
    constant = np.ptp(expected) == 0
    return {
        "spearman": 0.0 if constant else float(spearmanr(expected, accuracy).statistic),
        "regret_1": 100 * float(accuracy.max() - accuracy[first[0]]),
        "regret_5": 100 * float(accuracy.max() - accuracy[first[:5]].max()),
    }


def _random(target: pd.DataFrame) -> dict[str, float]:
    draw = np.random.default_rng(0)
    judged = pd.DataFrame([_judge(target, draw.random(len(target))) for _ in range(_DRAWS)])
    return {name: float(value) for name, value in judged.mean().items()}


if __name__ == "__main__":
    sys.exit(main())
