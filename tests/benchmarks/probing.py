"""What does a probe cost beside a plain forward pass, and what do races save and lose?

    python tests/benchmarks/probing.py cost
    python tests/benchmarks/probing.py race --data ../shared/data --sources ../shared/sources

`cost` compares, on the same decoded images in the same batches, `timm`'s `forward_features` alone with the
product's probe (pooled features of all levels, class probabilities), in turns, the fastest of several rounds each.
`race` scores every source at hand on real datasets (zips with `train/<class>/` and `test/<class>/`) twice, each
time with an empty cache: all of them on all images, and with a race; it prints seconds, where the best source of
the full scoring ends in the race, and how much worse the best linear probe of the race is.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

ARCHITECTURES = {
    "resnet18": 128,
    "efficientnet_b0": 128,
    "convnext_atto": 128,
    "vit_tiny_patch16_224": 128,
    "mobilenetv3_small_100": 128,
    "swin_tiny_patch4_window7_224": 128,
}
BATCH = 64


def main() -> None:
    """Run the part that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["cost", "race"])
    parser.add_argument("names", nargs="*", help="architectures, or datasets")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--sources", type=Path)
    parser.add_argument("--keep", type=float, default=0.34)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for row in {"cost": cost, "race": race}[options.part](options, Path(folder)):
            rows.append(row)
            print(row, flush=True)
    print()
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:.3g}"))


def cost(options: argparse.Namespace, folder: Path):
    """The ratio of a probe's pass to `forward_features`, by architecture."""
    from random_sources import write_source

    from autotransfer.probing.probe import _extract
    from autotransfer.transfer.inputs import normalise, to_batch

    device = torch.device(options.device)
    for architecture in options.names or ARCHITECTURES:
        size = ARCHITECTURES.get(architecture, 128)
        fixed = {"img_size": size} if "patch" in architecture else {}
        source = write_source(folder / architecture, architecture, image_size=size, num_classes=1000, **fixed)
        model = source.load().to(device).to(memory_format=torch.channels_last).eval()
        images = np.random.default_rng(0).integers(0, 256, (options.images, size, size, 3), dtype=np.uint8)
        rows, data = np.arange(options.images), source.data_config

        def plain(model=model, images=images, data=data) -> None:
            with torch.inference_mode():
                for start in range(0, len(images), BATCH):
                    batch = to_batch(images[start : start + BATCH], device)
                    model.forward_features(normalise(batch, data.mean, data.std))

        def probed(model=model, source=source, images=images, rows=rows) -> None:
            _extract(model, source, images, rows, device, lambda: True)

        seconds: dict[str, list[float]] = {"plain": [], "probe": []}
        for _ in range(options.rounds + 1):
            for name, run in (("plain", plain), ("probe", probed)):
                started = time.perf_counter()
                run()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                seconds[name].append(time.perf_counter() - started)
        plain_s, probe_s = min(seconds["plain"][1:]), min(seconds["probe"][1:])
        yield {
            "architecture": architecture,
            "levels": len(source.levels),
            "forward_features_s": plain_s,
            "probe_s": probe_s,
            "ratio": probe_s / plain_s,
        }


def race(options: argparse.Namespace, folder: Path):
    """Seconds and rank quality of scoring with and without a race."""
    from main_job import unpacked

    from autotransfer.datasets import load_dataset
    from autotransfer.search.candidates import build_pool
    from autotransfer.search.space import Space
    from autotransfer.sources import find_sources, load_plugins
    from autotransfer.transfer.evaluation import get_metric

    patterns = ["embedded:*"]
    if options.sources is not None:
        load_plugins([str(path) for path in options.sources.glob("*.py")])
        patterns.append(f"local-dir:{options.sources}/*")
    sources = find_sources(patterns)
    for source in sources:
        _ = source.levels  # looked up once, for both ways
    for name in options.names or ["eurosat", "notmnist", "trashnet", "flowers"]:
        dataset = load_dataset(unpacked(options.data, name, folder, None, 0))
        pools, seconds = {}, {}
        for way, probing in (("full", {"race_above": 1000}), ("race", {"race_above": 1, "race_keep": options.keep})):
            shutil.rmtree(folder / "cache" / "features", ignore_errors=True)
            started = time.perf_counter()
            pools[way] = build_pool(
                sources, dataset, Space(sources=patterns, probing=probing), get_metric("accuracy"), seed=0,
                device=torch.device(options.device), cache_dir=folder / "cache", listener=lambda event: None,
            )  # fmt: skip
            seconds[way] = time.perf_counter() - started
        full = [source.name for source in pools["full"].sources()]
        kept = [source.name for source in pools["race"].sources()]
        best = {way: max(candidate.linear_probe for candidate in pool.candidates) for way, pool in pools.items()}
        yield {
            "dataset": name,
            "sources": len(full),
            "raced": len(kept),
            "full_s": seconds["full"],
            "race_s": seconds["race"],
            "saved_%": 100 * (1 - seconds["race"] / seconds["full"]),
            "best_kept": kept.index(full[0]) + 1 if full[0] in kept else 0,
            "top_kept": f"{len(set(full[: len(kept)]) & set(kept))} of {len(kept)}",
            "probe_lost_points": 100 * (best["full"] - best["race"]),
        }


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    main()
