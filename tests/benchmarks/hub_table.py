"""Make the table of what timm has published about its pretrained models.

    python tests/benchmarks/hub_table.py build --tables ../shared/tables     # writes autotransfer/sources/published.csv

Read are timm's results (https://github.com/huggingface/pytorch-image-models/tree/main/results), files
`results-imagenet.csv`, `benchmark-infer-*.csv` and `model_metadata-in1k.csv`, each with `timm_` before its name, as
they lie in the folder `--tables`. It is no part of a clone: without it the shipped table is used as it is.

A row is a pretrained model by timm's name with tag. Parameters are those of the results, else the benchmark's of the
architecture (with a classifier of 1000 classes). GMACs are the benchmark's of the architecture at the model's own
image size; at another size, by area. `tuned_top1` is, for a model without ImageNet classifier, the accuracy of the one
that was fine-tuned from it, by name: `convnext_base.fb_in22k_ft_in1k` for `convnext_base.fb_in22k`. Pretraining is the
metadata's where the architecture has one set of weights, for it names architectures; elsewhere it is derived from the
tag, and the column `origin` says so.
"""

import argparse
import re
import sys
from pathlib import Path

import pandas as pd
import timm

SHIPPED = Path(__file__).parents[2] / "autotransfer" / "sources" / "published.csv"
BENCHMARKS = (
    "timm_benchmark-infer-amp-nchw-pt291-cu128-4090.csv",
    "timm_benchmark-infer-fp32-nchw-pt240-cpu-i9_10940x-dynamo.csv",
)
ORIGIN = (
    "# Published results of timm (https://github.com/huggingface/pytorch-image-models, folder results): ImageNet top-1 "
    "(%), parameters (millions), GMACs at image_size.\n"
    "# Made by tests/benchmarks/hub_table.py; origin: where the pretraining is from, timm's metadata or the tag.\n"
)
METADATA = {
    "in1k": ("in1k", "supervised"),
    "in1k-adv": ("in1k", "supervised"),
    "in1k-ap": ("in1k", "supervised"),
    "in1k-dist": ("in1k", "distilled"),
    "in21k": ("in21k+in1k", "supervised"),
    "in21k-selfsl": ("in21k+in1k", "self-supervised"),
    "jft300m-ns": ("jft300m+in1k", "distilled"),
    "yfc-semisl": ("yfcc100m+in1k", "distilled"),
    "ig1b-swsl": ("ig1b+in1k", "distilled"),
    "ig1b-wsl": ("ig1b+in1k", "supervised"),
}
# What parts of timm's tags say of the data, in the order that they are looked for.
TAG_DATA = (
    (r"in22k|in21k|inw21k", "in21k"),
    (r"in12k", "in12k"),
    (r"in1k|imagenet1k", "in1k"),
    (r"laion2b|laiona", "laion2b"),
    (r"laion400m", "laion400m"),
    (r"openai", "wit400m"),
    (r"webli", "webli"),
    (r"datacomp1b|datacompxl", "datacomp1b"),
    (r"apple_mclip(?!2)", "datacompdr"),
    (r"dfn2b", "dfn2b"),
    (r"dfn5b", "dfn5b"),
    (r"dfndr2b", "dfndr2b"),
    (r"metaclip", "metaclip"),
    (r"merged2b", "merged2b"),
    (r"m30m", "merged30m"),
    (r"m38m", "merged38m"),
    (r"lvd142m", "lvd142m"),
    (r"lvd1689m", "lvd1689m"),
    (r"sat493m", "sat493m"),
    (r"sa1b", "sa1b"),
    (r"jft", "jft300m"),
    (r"ig1b|seer", "ig1b"),
    (r"swag", "ig3.6b"),
    (r"yfcc100m", "yfcc100m"),
    (r"yfcc15m", "yfcc15m"),
    (r"cc12m", "cc12m"),
    (r"bamboo", "bamboo"),
)
IMAGE_TEXT = r"clip|laion|openai|webli|datacomp|dfn|yfcc15m|cc12m|pali|apple_pt"
SELF_SUPERVISED = r"mae|mim|dino|ijepa|lvd|seer|sat493m|beit|eupe|swag_ssl"
SELF_SUPERVISED_ON_IMAGENET = ("mae", "fcmae", "dino", "fb_dino")
DISTILLED = r"dist|ns_jft|ssld|_ssl_|swsl|usi"


def main() -> None:
    """Run the command that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["build"])
    parser.add_argument("--tables", type=Path, required=True, help="folder of timm's published tables")
    tables = parser.parse_args().tables
    needed = ["timm_results-imagenet.csv", "timm_model_metadata-in1k.csv", *BENCHMARKS]
    missing = [name for name in needed if not (tables / name).is_file()]
    if missing:
        sys.exit(
            f"{tables} lacks {', '.join(missing)}. The published tables are no part of the repository (see --help for "
            f"where they are from); {SHIPPED.name}, which was made from them, is."
        )
    table = build(tables)
    SHIPPED.write_text(ORIGIN + table.to_csv(index=False), encoding="utf-8")
    counts = table.notna().sum()
    print(f"{SHIPPED.name}: {len(table)} models, {SHIPPED.stat().st_size / 1000:.0f} kB; known of them:")
    print(counts.drop("name").to_string())
    print(f"pretraining by metadata {(table['origin'] == 'metadata').sum()}, by tag {(table['origin'] == 'tag').sum()}")


def build(tables: Path) -> pd.DataFrame:
    """The table, one row a pretrained model, by name."""
    results = pd.read_csv(tables / "timm_results-imagenet.csv", thousands=",")
    results = results.set_index(["model", "img_size"])
    benchmarks = pd.concat([pd.read_csv(tables / name, thousands=",") for name in BENCHMARKS])
    benchmarks = benchmarks.drop_duplicates(["model", "infer_img_size"]).groupby("model")
    metadata = pd.read_csv(tables / "timm_model_metadata-in1k.csv").set_index("model")["pretrain"].to_dict()
    names = timm.list_pretrained()
    architectures = pd.Series([name.split(".")[0] for name in names]).value_counts()
    rows = []
    for name in sorted(names):
        architecture, _, tag = name.partition(".")
        size = timm.get_pretrained_cfg(name).input_size[-1]
        measured = benchmarks.get_group(architecture) if architecture in benchmarks.groups else None
        result = results.loc[(name, size)] if (name, size) in results.index else None
        if measured is None and result is None:
            continue
        alone = architectures[architecture] == 1 and architecture in metadata
        pretraining, method = METADATA[metadata[architecture]] if alone else from_tag(tag, architecture)
        rows.append(
            {
                "name": name,
                "parameters": _parameters(result, measured),
                "gmacs": _gmacs(measured, size),
                "image_size": size,
                "top1": None if result is None else float(result["top1"]),
                "pretraining": pretraining,
                "method": method,
                "origin": ("metadata" if alone else "tag") if pretraining or method else None,
            }
        )
    table = pd.DataFrame(rows)
    table.insert(5, "tuned_top1", _tuned_top1(table))
    return table


def from_tag(tag: str, architecture: str) -> tuple[str | None, str | None]:
    """What a tag says of (the data, the method) of pretraining; None where it says nothing.

    Data are in the order of training: what comes before `ft` first, ImageNet-1k last.
    """
    found = [(match.start(), data) for pattern, data in TAG_DATA if (match := re.search(pattern, tag))]
    data = list(dict.fromkeys(name for _, name in sorted(found)))
    if "in1k" in data:
        data = [name for name in data if name != "in1k"] + ["in1k"]
    if data == ["in1k"] and "clip_ft" in tag:
        data = ["clip", "in1k"]  # image-text pairs that the tag does not name
    if not data and tag in SELF_SUPERVISED_ON_IMAGENET:
        data = ["in1k"]
    whole = f"{architecture}.{tag}"
    if re.search(IMAGE_TEXT, tag) or re.search(r"_clip_|siglip|mobileclip", architecture):
        method = "image-text"
    elif re.search(SELF_SUPERVISED, whole):
        method = "self-supervised"
    elif re.search(DISTILLED, tag) or "distilled" in architecture:
        method = "distilled"
    else:
        method = "supervised" if data else None
    return "+".join(data) or None, method


def _tuned_top1(table: pd.DataFrame) -> list[float | None]:
    measured = table.dropna(subset=["top1"]).set_index("name")["top1"]
    found: list[float | None] = []
    for name, top1 in zip(table["name"], table["top1"], strict=True):
        tuned = sorted((other for other in measured.index if other.startswith(f"{name}_")), key=len)
        found.append(float(measured[tuned[0]]) if tuned and pd.isna(top1) else None)
    return found


def _parameters(result: pd.Series | None, measured: pd.DataFrame | None) -> float | None:
    if result is not None:
        return float(result["param_count"])
    return None if measured is None else float(measured["param_count"].iloc[0])


def _gmacs(measured: pd.DataFrame | None, size: int) -> float | None:
    """GMACs of the nearest size that was measured, by area."""
    if measured is None:
        return None
    known = measured.dropna(subset=["infer_gmacs"])
    if known.empty:
        return None
    nearest = known.iloc[(known["infer_img_size"] - size).abs().argmin()]
    return round(float(nearest["infer_gmacs"]) * (size / float(nearest["infer_img_size"])) ** 2, 3)


if __name__ == "__main__":
    main()
