"""How well do proxies, static rankings and their combination rank candidates by fine-tuned score?

    python tests/benchmarks/ranking.py measure --data ../shared/data --sources ../shared/sources --table ranking.csv
    python tests/benchmarks/ranking.py evaluate tests/benchmarks/ranking.csv
    python tests/benchmarks/ranking.py published ../shared/tables

`measure` fine-tunes (source, level) pairs on real datasets, few images a class, and writes one row for each:
dataset, source, level, parameters, every cheap proxy, the test score. It goes on where an earlier run ended.
`evaluate` prints, for each proxy, each static ranking and the combination: the mean weighted Kendall tau
(`scipy.stats.weightedtau(scores, predictions, rank=None)`: the truly best candidates weigh most), the mean plain
tau, and the mean regret (best score minus the score of the top choice, in points). The mean score on the other
datasets and the combination's prior weights are learnt with the dataset left out. `adds` is the gain in weighted
tau when the proxy joins the static rankings. `published` replays published fine-tuning results.
"""

import argparse
import functools
import itertools
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import kendalltau, weightedtau

from autotransfer.proxies import DEFAULT_PROXIES
from autotransfer.proxies.combine import combine

SLOW = {"n_leep", "logistic_cv", "ridge_loo"}
PLAIN = {"dataset", "source", "level", "score", "seconds"}
STATIC = ["parameters", "pretraining_accuracy", "mean_elsewhere"]


def main() -> None:
    """Run the command that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    measuring = commands.add_parser("measure")
    measuring.add_argument("datasets", nargs="*", default=["eurosat", "gtsrb", "sign_digits", "pacs_sketch", "dtd10"])
    measuring.add_argument("--data", type=Path, required=True)
    measuring.add_argument("--sources", type=Path)
    measuring.add_argument("--table", type=Path, required=True)
    measuring.add_argument("--per-class", type=int, default=40)
    measuring.add_argument("--levels", type=int, default=3, help="the uppermost levels of each source")
    measuring.add_argument("--epochs", type=int, default=4)
    measuring.set_defaults(run=measure)
    evaluating = commands.add_parser("evaluate")
    evaluating.add_argument("table", type=Path)
    evaluating.set_defaults(run=lambda options: evaluate(pd.read_csv(options.table)))
    replaying = commands.add_parser("published")
    replaying.add_argument("tables", type=Path)
    replaying.set_defaults(run=lambda options: published(options.tables))
    options = parser.parse_args()
    options.run(options)


def measure(options: argparse.Namespace) -> None:
    """Fine-tune every (source, level) on every dataset and add its row to the table."""
    import torch
    from main_job import NOT_FAIR, unpacked

    from autotransfer.datasets import load_dataset
    from autotransfer.proxies import list_proxies
    from autotransfer.search.candidates import build_pool
    from autotransfer.search.first_trials import usual_learning_rate
    from autotransfer.search.space import Space
    from autotransfer.search.workshop import Workshop, with_training
    from autotransfer.sources import find_sources, load_plugins
    from autotransfer.transfer.config import TransferConfig
    from autotransfer.transfer.evaluation import get_metric
    from autotransfer.transfer.training import Data, predict, train

    names = [p.name for p in list_proxies() if "classification" in p.tasks and p.name not in SLOW]
    space, metric, cpu = Space(sources=["embedded:*"], proxies=names), get_metric("accuracy"), torch.device("cpu")
    if options.sources:
        load_plugins([str(path) for path in options.sources.glob("*.py")])
    patterns = ["embedded:*", *([f"local-dir:{options.sources.resolve()}/*"] if options.sources else [])]
    rows = pd.read_csv(options.table).to_dict("records") if options.table.is_file() else []
    done = {(row["dataset"], row["source"], row["level"]) for row in rows}
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.datasets:
            dataset = load_dataset(unpacked(options.data, name, Path(temporary), options.per_class, 0))
            sources = [s for s in find_sources(patterns) if Path(s.name).name not in NOT_FAIR.get(name, [])]
            pool = build_pool(
                sources, dataset, space, metric, seed=0, device=cpu, cache_dir=Path(temporary) / "cache",
                listener=lambda event: None,
            )  # fmt: skip
            nowhere, forever = Path(temporary), lambda: True
            workshop = Workshop(
                dataset, space, pool, metric, cpu, nowhere / "cache", nowhere, 0, None, None, {}, forever
            )
            for candidate in pool.candidates:
                source, depth = candidate.source, len(candidate.source.levels)
                label = Path(source.name.removeprefix("local-dir:")).name
                if (name, label, candidate.level) in done or candidate.level <= depth - options.levels:
                    continue
                started = time.perf_counter()
                config = with_training(
                    workshop,
                    TransferConfig(
                        source=source.name,
                        transferred_layers=candidate.level,
                        upper_layers="drop",
                        frozen_layers=0,
                        learning_rate=usual_learning_rate(source),
                        epochs=options.epochs,
                    ),
                )
                train_rows, test_rows = dataset.rows("train", "val"), dataset.rows("test")
                with workshop.started(config, train_rows) as (model, inputs):
                    data = Data(inputs, dataset.codes, train_rows, np.empty(0, np.int64))
                    train(model, config, data, metric=metric, seed=0)
                probabilities = predict(model, workshop.inputs(source.name), test_rows)
                rows.append(
                    {
                        "dataset": name,
                        "source": label,
                        "level": candidate.level,
                        "parameters": source.levels[candidate.level - 1].parameter_count,
                        "linear_probe": candidate.linear_probe,
                        **{p: v.value if v.trusted else np.nan for p, v in candidate.proxies.items()},
                        "score": metric(probabilities, dataset.codes[test_rows]),
                        "seconds": round(time.perf_counter() - started, 1),
                    }
                )
                pd.DataFrame(rows).to_csv(options.table, index=False)
                print(name, label, candidate.level, round(rows[-1]["score"], 4), rows[-1]["seconds"], flush=True)


def evaluate(table: pd.DataFrame, candidate: tuple[str, ...] = ("source", "level")) -> None:
    """Print every ranking's mean taus and regret over the datasets of the table."""
    table = table.assign(candidate=table[list(candidate)].astype(str).agg(" ".join, axis=1))
    score = table.pivot_table(index="dataset", columns="candidate", values="score")
    means = {d: score.drop(index=d).mean() for d in score.index}
    table["mean_elsewhere"] = [
        means[d].get(c, np.nan) for d, c in zip(table["dataset"], table["candidate"], strict=True)
    ]
    columns = [name for name in table.columns if name not in PLAIN | {"candidate"} and table[name].notna().any()]
    static = [name for name in STATIC if name in columns]
    proxies = [name for name in columns if name not in static]
    alone = {name: judged(table, lambda rows, _, n=name: rows[n].to_numpy(float)) for name in columns}
    tau = {name: frame["weighted_tau"] for name, frame in alone.items()}

    @functools.cache
    def prior(name: str, left_out: str) -> float:
        """How well a ranking does on the other datasets; scores of the one left out never enter."""
        if name != "mean_elsewhere":
            return max(0.0, float(tau[name].drop(left_out).mean()))
        others = table[table["dataset"] != left_out]
        mean = {d: score.drop(index=[d, left_out]).mean() for d in others["dataset"].unique()}
        found = judged(others, lambda rows, dataset: rows["candidate"].map(mean[dataset]).to_numpy(float))
        return max(0.0, float(found["weighted_tau"].mean()))

    def together(names: list[str], learnt: bool) -> pd.DataFrame:
        def predict(rows: pd.DataFrame, dataset: str) -> np.ndarray:
            weights = {name: prior(name, dataset) for name in names} if learnt else None
            return combine({name: rows[name].to_numpy(float) for name in names}, weights).expected

        return judged(table, predict)

    reference = together(static, learnt=True)
    lines = []
    for name in columns:
        added = together([*static, name], learnt=True)["weighted_tau"] - reference["weighted_tau"]
        lines.append({"ranking": name, **alone[name].mean(), "adds": np.nan if name in static else added.mean()})
    lines.append({"ranking": "static, combined", **reference.mean()})
    if proxies:
        lines.append({"ranking": "proxies, combined", **together(proxies, learnt=False).mean()})
        lines.append({"ranking": "all, combined", **together(columns, learnt=False).mean()})
        lines.append({"ranking": "all, combined, learnt prior", **together(columns, learnt=True).mean()})
    if set(DEFAULT_PROXIES) <= set(proxies):
        default = together(["parameters", *DEFAULT_PROXIES], learnt=False)
        lines.append({"ranking": f"default: {', '.join(DEFAULT_PROXIES)}, size", **default.mean()})
        lines.append({"ranking": "three proxies and size, chosen elsewhere", **chosen_elsewhere(together, proxies)})
    lines.append({"ranking": "chance", "weighted_tau": 0.0, "tau": 0.0, "regret": chance(table)})
    print(f"{table['dataset'].nunique()} datasets, {len(table)} fine-tuned candidates")
    print(pd.DataFrame(lines).round(3).to_string(index=False, na_rep="-"), "\n", flush=True)


def chosen_elsewhere(together: Callable[[list[str], bool], pd.DataFrame], proxies: list[str]) -> pd.Series:
    """What the best three proxies reach, with the size, when they are chosen without the dataset they are judged on."""
    subsets = {three: together(["parameters", *three], False) for three in itertools.combinations(proxies, 3)}
    tau = pd.DataFrame({three: frame["weighted_tau"] for three, frame in subsets.items()})
    kept = {dataset: tau.drop(index=dataset).mean().idxmax() for dataset in tau.index}
    for three, datasets in pd.Series(kept).groupby(pd.Series(kept)).groups.items():
        print(f"chosen without {', '.join(datasets)}: {', '.join(three)}")
    return pd.DataFrame([subsets[three].loc[dataset] for dataset, three in kept.items()]).mean()


def judged(table: pd.DataFrame, predict: Callable[[pd.DataFrame, str], np.ndarray]) -> pd.DataFrame:
    """Weighted tau, tau and regret by dataset; candidates without a prediction count as worst."""
    results = {}
    for dataset, rows in table.groupby("dataset"):
        predicted, truth = predict(rows, str(dataset)), rows["score"].to_numpy(float)
        if np.isnan(predicted).all():
            continue
        filled = np.where(np.isnan(predicted), np.nanmin(predicted) - 1, predicted)
        scale = 100.0 if truth.max() <= 1.0 else 1.0
        results[dataset] = {
            "weighted_tau": weightedtau(truth, filled, rank=None).statistic,
            "tau": kendalltau(truth, filled).statistic,
            "regret": scale * (truth.max() - truth[filled == filled.max()].mean()),
        }
    frame = pd.DataFrame(results).T
    return frame.fillna({"weighted_tau": 0.0, "tau": 0.0})  # a constant prediction orders nothing


def chance(table: pd.DataFrame) -> float:
    """The regret of a choice at random."""
    gaps = [
        (r["score"].max() - r["score"].mean()) * (100.0 if r["score"].max() <= 1 else 1.0)
        for _, r in table.groupby("dataset")
    ]
    return float(np.mean(gaps))


def published(tables: Path) -> None:
    """Replay fine-tuning results that others have published."""
    from torchvision.models import get_model_weights

    papers = pd.read_csv(tables / "finetune_acc_selection_papers.csv")
    supervised = papers[papers["setting"] == "sfda_group1_supervised_cnn"]
    facts = {name: get_model_weights(name).IMAGENET1K_V1.meta for name in supervised["model"].unique()}
    ten = pd.DataFrame(
        {
            "dataset": supervised["dataset"],
            "source": supervised["model"],
            "parameters": [facts[name]["num_params"] for name in supervised["model"]],
            "pretraining_accuracy": [facts[name]["_metrics"]["ImageNet-1K"]["acc@1"] for name in supervised["model"]],
            "score": supervised["finetuned_acc"],
        }
    )
    print("Supervised CNNs (scores of SFDA's repository, sizes and ImageNet accuracy of torchvision)")
    evaluate(ten, ("source",))
    spider = pd.read_csv(tables / "modelspider_scores.csv").rename(columns={"Model": "source"})
    spider["dataset"] = spider["Dataset"].str.lower().replace({"pet": "pets"})
    print("The same with the proxies that Model Spider's repository publishes")
    evaluate(ten.merge(spider.drop(columns="Dataset"), on=["dataset", "source"]), ("source",))
    records = pd.read_csv(tables / "tgraph_records.csv").groupby(["finetuned_dataset", "model"])["test_accuracy"].max()
    cards = pd.read_csv(tables / "tgraph_model_config_dataset.csv").drop_duplicates("model").set_index("model")
    hub = records.reset_index().dropna().rename(columns={"finetuned_dataset": "dataset", "model": "source"})
    hub = hub[hub["source"].isin(cards.index)].rename(columns={"test_accuracy": "score"})
    hub["parameters"] = cards["number_of_parameters"].reindex(hub["source"]).to_numpy()
    hub["pretraining_accuracy"] = cards["accuracy"].reindex(hub["source"]).to_numpy()
    print("Hub models (fine-tuning records of TransferGraph, best learning rate of each)")
    evaluate(hub, ("source",))
    runs = pd.read_csv(tables / "tgraph_ftrecords_img.csv")
    best = runs.groupby(["train_dataset_name", "model_identifier"])["test_accuracy"].max().reset_index().dropna()
    more = best.set_axis(["dataset", "source", "score"], axis=1)
    more["parameters"] = cards["number_of_parameters"].reindex(more["source"]).to_numpy()
    print("More hub models, 800 training images (TransferGraph's runs, best learning rate of each)")
    evaluate(more, ("source",))
    controlled = pd.read_csv(tables / "parc_controlled.csv").set_axis(
        ["architecture", "on", "dataset", "score"], axis=1
    )
    controlled["source"] = controlled["architecture"] + "." + controlled["on"]
    print("Four architectures by pretraining datasets (PARC's controlled benchmark)")
    evaluate(controlled.drop(columns=["architecture", "on"]), ("source",))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
