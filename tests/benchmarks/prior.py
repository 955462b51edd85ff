"""Measure the coefficients of the prior on the transfer table, and how well they foretell targets left out.

    python tests/benchmarks/prior.py fit            # writes autotransfer/search/prior.json
    python tests/benchmarks/prior.py evaluate       # each dataset foretold by the coefficients of the others

`evaluate` prints, for each dataset left out: Spearman's correlation of expectation and test score over all
configurations, the regret of the configuration expected to be best (points of test score), and the log likelihood
of the scores under the Gaussian process by that of one without the prior's mean.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.stats import spearmanr

from autotransfer.proxies import DEFAULT_PROXIES
from autotransfer.proxies.combine import combine
from autotransfer.search.expectation import validation_noise
from autotransfer.search.prior import FRACTIONS, KINDS, RATES, Landscape, Points, Prior, describe
from autotransfer.search.surrogate import KERNEL, covariance
from autotransfer.transfer.evaluation import get_metric

TABLE = Path(__file__).parent / "transfer_table"
SHIPPED = Path(__file__).parents[2] / "autotransfer" / "search" / "prior.json"
_RIDGE = 3.0
_ROWS_FOR_KERNEL = 120
_USUAL_NOISE = 0.05


@dataclass(frozen=True)
class Target:
    """One dataset in one regime: what is known, and what was measured (one row a run)."""

    name: str
    landscape: Landscape
    points: Points
    runs: pd.DataFrame

    @property
    def log_errors(self) -> np.ndarray:
        """Of the runs, over the anchor: the mean of what validation and test images say."""
        final = np.array([curve[-1] if len(curve) else np.nan for curve in self.runs["val"]])
        both = self.landscape.log_error(final) + self.landscape.log_error(self.runs["test"].astype(float))
        return both / 2 - self.landscape.anchor

    @property
    def noise(self) -> np.ndarray:
        """Variance of these by the draw of the validation images."""
        finals = [curve[-1] if len(curve) else np.nan for curve in self.runs["val"]]
        return validation_noise(self.landscape, np.array(finals, float))


def main() -> None:
    """Run the command that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["fit", "evaluate"])
    options = parser.parse_args()
    targets = read_targets(pd.read_parquet(TABLE / "runs.parquet"), pd.read_parquet(TABLE / "candidates.parquet"))
    if options.part == "fit":
        SHIPPED.write_text(fit(targets).to_json(), encoding="utf-8")
        print(f"{SHIPPED.name}: {len(targets)} targets, {sum(len(t.points) for t in targets)} runs")
    else:
        print(evaluate(targets).round(3).to_string(index=False))


def read_targets(runs: pd.DataFrame, candidates: pd.DataFrame) -> list[Target]:
    """The table by target; runs that diverged are left out."""
    found = []
    for (dataset, regime), rows in runs[runs["reason"] == ""].groupby(["dataset", "regime"], sort=False):
        levels = candidates[(candidates["dataset"] == dataset) & (candidates["regime"] == regime)]
        rows = rows[rows["source"].isin(levels["source"])]
        landscape = landscape_of(levels)
        found.append(Target(f"{dataset}, {regime}", landscape, points_of(rows, landscape), rows.reset_index(drop=True)))
    return found


def landscape_of(levels: pd.DataFrame, without: frozenset[str] = frozenset()) -> Landscape:
    """What is known before training; `without` names what is not: `proxies`, `linear_probe`."""
    levels = levels.sort_values(["source", "level"])
    columns = {"size": levels["parameters"].to_numpy(float)}
    if "proxies" not in without:
        columns |= {name: levels[f"proxy.{name}"].to_numpy(float) for name in DEFAULT_PROXIES}
    levels = levels.assign(percentile=combine(columns).expected)
    names = list(dict.fromkeys(levels["source"]))
    deepest = int(levels["levels"].max())

    def table(column: str) -> np.ndarray:
        values = np.full((len(names), deepest), np.nan)
        values[levels["source"].map(names.index), levels["level"] - 1] = levels[column]
        return values

    first = levels.groupby("source").first().loc[names]
    probes = table("linear_probe")
    if "linear_probe" in without:
        probes = np.where(np.isnan(probes), np.nan, 1 / first["classes"].iloc[0])
    return Landscape(
        sources=names,
        architectures=first["architecture"].tolist(),
        depths=first["levels"].to_numpy(np.int64),
        linear_probe=probes,
        percentile=table("percentile"),
        parameters=table("parameters"),
        flops=table("flops"),
        metric=get_metric("accuracy"),
        train_images=int(first["train_images"].iloc[0]),
        val_images=int(first["val_images"].iloc[0]),
        classes=int(first["classes"].iloc[0]),
    )


def points_of(rows: pd.DataFrame, landscape: Landscape) -> Points:
    """The runs' configurations."""
    source = [list(landscape.sources).index(name) for name in rows["source"]]
    return Points(
        np.array(source, np.int64),
        rows["transferred_layers"].to_numpy(np.int64),
        (rows["upper_layers"] == "drop").to_numpy() & (rows["transferred_layers"] > 0).to_numpy(),
        rows["frozen_layers"].to_numpy(np.int64),
        np.log10(rows["learning_rate"].to_numpy(float)),
    )


def fit(targets: list[Target]) -> Prior:
    """The coefficients that foretell these targets best."""
    described = [describe(target.landscape, target.points) for target in targets]
    names = list(described[0])
    design = [np.stack([d[name] for name in names], axis=1) for d in described]
    scores = [target.log_errors for target in targets]
    # Every target counts as 100 runs of usual noise.
    precision = [1 / (_USUAL_NOISE + target.noise) for target in targets]
    weight = np.concatenate([np.sqrt(100 * _USUAL_NOISE * p / len(p)) for p in precision])
    x, y = np.concatenate(design) * weight[:, None], np.concatenate(scores) * weight
    solved = np.linalg.solve(x.T @ x + _RIDGE * np.eye(len(names)), x.T @ y)
    weights = dict(zip(names, solved.round(5).tolist(), strict=True))
    left = [s - d @ solved for s, d in zip(scores, design, strict=True)]
    gain, uncertainty = curves(targets)
    origin = f"{len(targets)} targets of the transfer table: {'; '.join(target.name for target in targets)}"
    return Prior(weights, fit_kernel(targets, left), gain, uncertainty, origin)


def fit_kernel(targets: list[Target], left: list[np.ndarray]) -> dict[str, float]:
    """Variances and scales with the highest marginal likelihood of what the features leave open."""
    draw = np.random.default_rng(0)
    parts = []
    for target, rest in zip(targets, left, strict=True):
        chosen = draw.permutation(len(rest))[:_ROWS_FOR_KERNEL]
        parts.append((target.landscape, target.points[chosen], rest[chosen], target.noise[chosen]))
    names = list(KERNEL)

    def values(logarithms: np.ndarray) -> dict[str, float]:
        found = dict(zip(names, np.exp(logarithms), strict=True))
        found["unlike"] = 1 / (1 + 1 / found["unlike"])
        return found

    def loss(logarithms: np.ndarray) -> float:
        kernel = values(logarithms)
        total = 0.5 * float(((logarithms - start) ** 2).sum()) / 4  # a weak preference for where it starts
        for landscape, points, rest, noise in parts:
            total -= log_likelihood(kernel, landscape, points, rest, noise)
        return total

    start = np.log(np.array([KERNEL[name] for name in names]))
    found = minimize(loss, start, method="L-BFGS-B", bounds=[(s - 5, s + 3) for s in start], options={"maxiter": 60})
    return {name: float(f"{value:.4g}") for name, value in values(found.x).items()}


def log_likelihood(
    kernel: dict[str, float], landscape: Landscape, points: Points, rest: np.ndarray, noise: np.ndarray
) -> float:
    """Of what the prior leaves open, under the Gaussian process."""
    own = covariance(kernel, landscape, points, points) + np.diag(kernel["noise"] + noise)
    factor = np.linalg.cholesky(own)
    solved = np.linalg.solve(factor, rest)
    return float(-0.5 * solved @ solved - np.log(np.diag(factor)).sum() - 0.5 * len(rest) * np.log(2 * np.pi))


def curves(targets: list[Target]) -> tuple[dict[str, list[list[float]]], dict[str, list[list[float]]]]:
    """By kind, learning rate and fraction of the epochs: mean and deviation of what the log error still gains."""
    gains: dict[str, list[list[list[float]]]] = {kind: [[[] for _ in FRACTIONS] for _ in RATES] for kind in KINDS}
    for target in targets:
        kinds = target.points.kinds(target.landscape)
        nearest = np.abs(target.points.rate[:, None] - np.array(RATES)).argmin(axis=1)
        for kind, rate, curve in zip(kinds, nearest, target.runs["val"], strict=True):
            errors = target.landscape.log_error(curve)
            fractions = np.arange(1, len(errors) + 1) / len(errors)
            left = errors[-1] - np.interp(FRACTIONS, fractions, errors)
            for place, gain in enumerate(left.tolist()):
                gains[KINDS[kind]][rate][place].append(gain)
    means, deviations = {}, {}
    for kind, by_rate in gains.items():
        mean = [[float(np.mean(v)) if v else 0.0 for v in row] for row in by_rate]
        deviation = [[float(np.std(v)) if v else 0.3 for v in row] for row in by_rate]
        means[kind] = [[round(v, 4) for v in row] for row in mean]
        # Before the first epoch nothing is known but what the prior says.
        deviations[kind] = [[round(v, 4) for v in (2 * row[1], *row[1:])] for row in deviation]
    return means, deviations


def evaluate(targets: list[Target]) -> pd.DataFrame:
    """Every dataset by the coefficients of the others."""
    lines = []
    for target in targets:
        dataset = target.name.split(",")[0]
        prior = fit([other for other in targets if other.name.split(",")[0] != dataset])
        expected, scores = prior.mean(target.landscape, target.points), target.log_errors
        test = target.runs["test"].to_numpy(float)
        draw = np.random.default_rng(0).permutation(len(scores))[:_ROWS_FOR_KERNEL]
        landscape, points, noise = target.landscape, target.points[draw], target.noise[draw]
        with_mean = log_likelihood(dict(prior.kernel), landscape, points, scores[draw] - expected[draw], noise)
        flat = scores[draw] - scores[draw].mean()
        lines.append(
            {
                "target": target.name,
                "runs": len(scores),
                "spearman": spearmanr(expected, test).statistic,
                "regret": 100 * (test.max() - test[np.argmax(expected)]),
                "rmse": float(np.sqrt(((scores - expected) ** 2).mean())),
                "log_likelihood": with_mean / len(draw),
                "without_mean": log_likelihood(dict(prior.kernel), landscape, points, flat, noise) / len(draw),
            }
        )
    return pd.DataFrame(lines)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
