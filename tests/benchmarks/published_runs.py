"""Published fine-tuning results of models that timm has, for `hub_prior.py`.

Sources, as they lie in `--tables`: `tgraph_records.csv` (full training sets) and `tgraph_ftrecords_img.csv` (800
images), both of zLizy/transferability_graph, and `finetune_acc_selection_papers.csv` (SFDA and its successors).
`parc_all.csv` is not read: two of its models trained on ImageNet are timm's, too few to say an order.

Of several runs of a model on a dataset the best counts. Runs that diverged say something of a learning rate rather than
of a model and are left out: below half of what the upper quarter of models reach. A dataset of a table counts where at
least eight models remain and where not all of them do alike (half a point).
"""

import sys
from pathlib import Path

import pandas as pd

from autotransfer.sources.published import find_published

TABLES = ("tgraph_records.csv", "tgraph_ftrecords_img.csv", "finetune_acc_selection_papers.csv")
_FEWEST_MODELS = 8
_SMALLEST_SPREAD = 0.005
_CONVNEXT = {
    f"facebook/convnext-{size}-{theirs}": f"convnext_{size}.{ours}"
    for size in ("tiny", "small", "base", "large", "xlarge")
    for theirs, ours in (
        ("224", "fb_in1k"),
        ("224-22k", "fb_in22k"),
        ("224-22k-1k", "fb_in22k_ft_in1k"),
        ("384-22k-1k", "fb_in22k_ft_in1k_384"),
    )
}
_DEIT = {
    f"facebook/deit-{size}{kind}-patch16-{side}": f"deit_{size}{kind.replace('-', '_')}_patch16_{side}.fb_in1k"
    for size in ("tiny", "small", "base")
    for kind in ("", "-distilled")
    for side in (224, 384)
}
_SWIN = {
    f"microsoft/swin-{size}-patch4-window{window}-{side}{theirs}": f"swin_{size}_patch4_window{window}_{side}.{ours}"
    for size in ("tiny", "small", "base", "large")
    for window, side in ((7, 224), (12, 384))
    for theirs, ours in (("", "ms_in22k_ft_in1k" if size == "large" else "ms_in1k"), ("-in22k", "ms_in22k"))
}
_BEIT = {
    f"microsoft/beit-{size}-patch16-{side}{theirs}": f"beit_{size}_patch16_{side}.{ours}"
    for size in ("base", "large")
    for side in (224, 384)
    for theirs, ours in (("", "in22k_ft_in22k_in1k"), ("-pt22k-ft22k", "in22k_ft_in22k"))
}
_VIT = {
    "google/vit-base-patch16-224": "vit_base_patch16_224.orig_in21k_ft_in1k",
    "google/vit-base-patch16-384": "vit_base_patch16_384.orig_in21k_ft_in1k",
    "google/vit-large-patch32-384": "vit_large_patch32_384.orig_in21k_ft_in1k",
    "WinKawaks/vit-tiny-patch16-224": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "WinKawaks/vit-small-patch16-224": "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "timm/vit_huge_patch14_224_in21k": "vit_huge_patch14_224.orig_in21k",
}
_CONVIT = {f"nates-test-org/convit_{size}": f"convit_{size}.fb_in1k" for size in ("tiny", "small", "base")}
_TORCHVISION = {
    name: f"{name}.tv_in1k"
    for name in (
        *("resnet34", "resnet50", "resnet101", "resnet152"),
        *("densenet121", "densenet169", "densenet201", "inception_v3"),
    )
}
_PAPER_TRANSFORMERS = {
    **{f"deit_{size}": f"deit_{size}_patch16_224.fb_in1k" for size in ("tiny", "small", "base")},
    **{f"dino_{size}": f"vit_{size}_patch16_224.dino" for size in ("small", "base")},
    "pvtv2_b2": "pvt_v2_b2.in1k",
    "pvtv2_b3": "pvt_v2_b3.in1k",
    "swin_t": "swin_tiny_patch4_window7_224.ms_in1k",
    "swin_s": "swin_small_patch4_window7_224.ms_in1k",
}
TIMM_NAMES = {
    **_CONVNEXT,
    **_DEIT,
    **_SWIN,
    **_BEIT,
    **_VIT,
    **_CONVIT,
    **_TORCHVISION,
    **_PAPER_TRANSFORMERS,
}
# The papers repeat each other's tables; these two hold them all.
_PAPER_SETTINGS = ("sfda_group1_supervised_cnn", "mms_vit")
_DATASETS = {
    "oxford_flowers102": "flowers",
    "oxford_iiit_pet": "pets",
    "svhn_cropped": "svhn",
    "stanfordcars": "cars",
    "smallnorb_label_azimuth": "smallnorb",
    "smallnorb_label_elevation": "smallnorb",
    "food101": "food",
}


def read_runs(tables: Path) -> tuple[pd.DataFrame, str]:
    """Accuracies as rows (target, dataset, model, accuracy), and a sentence on what was dropped.

    `target` is a dataset in one table's way of training; `dataset` is the same for all of them.
    """
    missing = [name for name in TABLES if not (tables / name).is_file()]
    if missing:
        sys.exit(
            f"{tables} lacks {', '.join(missing)}: published fine-tuning results, which are no part of the repository "
            f"({Path(__file__).name} says where they are from). The coefficients made from them are shipped."
        )
    found = pd.concat([_full(tables), _few_images(tables), _papers(tables)])
    models = found["model"].nunique()
    found["model"] = found["model"].map(TIMM_NAMES)
    known = found.dropna()
    known = known[known["model"].map(lambda name: find_published(name) is not None)]
    best = known.groupby(["target", "dataset", "model"], as_index=False)["accuracy"].max()
    upper = best.groupby("target")["accuracy"].transform(lambda values: values.quantile(0.75))
    trained = best[best["accuracy"] > upper / 2]
    by_target = trained.groupby("target")["accuracy"]
    spread = by_target.transform(lambda values: values.quantile(0.75) - values.quantile(0.25))
    usable = trained[(by_target.transform("size") >= _FEWEST_MODELS) & (spread >= _SMALLEST_SPREAD)]
    told = (
        f"{models} names of models, {known['model'].nunique()} of timm's with published figures among them; the others "
        f"are dropped. Of {len(best)} (target, model) pairs {len(best) - len(trained)} diverged; "
        f"{len(usable)} pairs of {usable['target'].nunique()} targets ({usable['dataset'].nunique()} datasets) remain."
    )
    return usable.reset_index(drop=True), told


def _full(tables: Path) -> pd.DataFrame:
    runs = pd.read_csv(tables / "tgraph_records.csv")
    dataset = runs["finetuned_dataset"]
    return _rows(dataset + ", full", dataset, runs["model"], runs["test_accuracy"])


def _few_images(tables: Path) -> pd.DataFrame:
    runs = pd.read_csv(tables / "tgraph_ftrecords_img.csv")
    runs = runs[runs["train_slice"] == ":800"]
    # One dataset may be several tasks: which, says its configuration.
    asked = [runs["configs"].str.extract(rf"'{key}': '(\w+)'")[0] for key in ("preprocess", "label_name")]
    task = asked[0].where(asked[0] != "empty").fillna(asked[1]).replace("label", None).fillna("")
    dataset = runs["train_dataset_name"]
    target = (dataset + " " + task).str.strip() + ", 800 images"
    return _rows(target, dataset, runs["model_identifier"], runs["test_accuracy"])


def _papers(tables: Path) -> pd.DataFrame:
    runs = pd.read_csv(tables / "finetune_acc_selection_papers.csv")
    runs = runs[runs["setting"].isin(_PAPER_SETTINGS)]
    kind = runs["setting"].map({_PAPER_SETTINGS[0]: ", papers, CNNs", _PAPER_SETTINGS[1]: ", papers, transformers"})
    return _rows(runs["dataset"] + kind, runs["dataset"], runs["model"], runs["finetuned_acc"] / 100)


def _rows(target: pd.Series, dataset: pd.Series, model: pd.Series, accuracy: pd.Series) -> pd.DataFrame:
    return pd.DataFrame(
        {"target": target, "dataset": dataset.replace(_DATASETS), "model": model, "accuracy": accuracy.astype(float)}
    )
