"""Seconds, peak memory and ratio to the floor of every proxy and of the default subset.

    python tests/benchmarks/proxies.py            # (10,000 x 2,048) and (50,000 x 768), 100 classes
    python tests/benchmarks/proxies.py --quick    # small shapes, seconds

The floor is one float32 X'X plus one float32 symmetric eigendecomposition of D x D, measured in the same run
(the float64 eigendecomposition is shown beside it). Each line is a fresh computation including all shared
statistics that it needs; the memory column is what the process grew by at its peak above the input
(Linux: the resident-set watermark; with --device cuda: the allocator's).
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from autotransfer.proxies import DEFAULT_PROXIES, compute_proxies, list_proxies

FULL_SHAPES = ((10_000, 2_048, 100), (50_000, 768, 100))
QUICK_SHAPES = ((1_000, 256, 10), (400, 768, 10))
SLOW = ("knn", "n_leep", "parc", "logistic_cv")
SOURCE_CLASSES = 1_000


@dataclass(frozen=True)
class Measurement:
    """Best seconds of the repetitions and the peak memory of the last one."""

    seconds: float
    peak_mib: float


def main() -> None:
    """Parse the options and print one table per shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small shapes")
    parser.add_argument("--repeats", type=int, default=2, help="repetitions; the best one counts")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", nargs="*", help="these proxies only (besides the subsets)")
    parser.add_argument("--slow", action="store_true", help="also N-LEEP and logistic regression (minutes)")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads")
    for shape in QUICK_SHAPES if options.quick else FULL_SHAPES:
        report(shape, options)


def report(shape: tuple[int, int, int], options: argparse.Namespace) -> None:
    """Print the table of one shape."""
    samples, dimension, classes = shape
    features, labels, probabilities = synthetic(*shape, options.device)
    floor, floor_double = measure_floor(features, options.repeats)
    print(f"\nn={samples:,} D={dimension:,} classes={classes} float32, source classes={SOURCE_CLASSES:,}")
    print(f"floor: X'X + eigh, float32 {floor:.3f} s (with float64 eigh {floor_double:.3f} s)")
    print(f"{'':30}{'seconds':>9}{'peak MiB':>10}{'x floor':>9}{'x floor64':>11}")

    def line(title: str, names: tuple[str, ...]) -> None:
        def run() -> object:
            return compute_proxies(features, labels, probabilities=probabilities, names=names)

        one = measure(run, options.repeats, features.device)
        ratios = f"{one.seconds / floor:9.2f}{one.seconds / floor_double:11.2f}"
        print(f"{title:30}{one.seconds:9.3f}{one.peak_mib:10.0f}{ratios}", flush=True)

    slow_here = () if options.slow or options.quick else ("n_leep", "logistic_cv")
    known = tuple(proxy.name for proxy in list_proxies())
    for name in options.only if options.only is not None else known:
        if name not in slow_here:
            line(name, (name,))
    line("default subset", DEFAULT_PROXIES)
    line("suite without the slow four", tuple(name for name in known if name not in SLOW))


def synthetic(
    samples: int, dimension: int, classes: int, device: str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rectified, correlated features with class structure, labels in random order, and probabilities."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (samples,), generator=generator)
    scales = torch.logspace(0, -2, dimension)
    centres = torch.randn(classes, dimension, generator=generator)
    features = torch.relu(0.5 * centres[labels] + torch.randn(samples, dimension, generator=generator)) * scales
    logits = torch.randn(samples, SOURCE_CLASSES, generator=generator)
    logits[torch.arange(samples), labels * 7 % SOURCE_CLASSES] += 4
    return features.to(device), labels.to(device), logits.softmax(1).to(device)


def measure_floor(features: torch.Tensor, repeats: int) -> tuple[float, float]:
    """Seconds of the product plus the eigendecomposition in float32, and with the latter in float64."""
    product = measure(lambda: features.T @ features, repeats, features.device).seconds
    gram = features.T @ features
    single = measure(lambda: torch.linalg.eigh(gram), repeats, features.device).seconds
    double = measure(lambda: torch.linalg.eigh(gram.double()), repeats, features.device).seconds
    return product + single, product + double


def measure(run: Callable[[], object], repeats: int, device: torch.device) -> Measurement:
    """Best time of `repeats` runs and the peak memory of the last."""
    best = float("inf")
    peak: float = 0.0
    for _ in range(repeats):
        gc.collect()
        with peak_memory(device) as watermark:
            started = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - started)
        peak = watermark[0]
    return Measurement(best, peak)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[float]]:
    """Yield a list whose first item is, afterwards, the MiB by which memory grew at its peak."""
    result = [0.0]
    if device.type == "cuda":
        allocated = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        yield result
        result[0] = (torch.cuda.max_memory_allocated() - allocated) / 2**20
        return
    watermark = Path("/proc/self/clear_refs")
    if watermark.exists():
        watermark.write_text("5")  # resets VmHWM, see proc(5)
    before = _status_mib("VmRSS")
    yield result
    result[0] = max(0.0, _status_mib("VmHWM") - before)


def _status_mib(field: str) -> float:
    status = Path("/proc/self/status")
    if not status.exists():
        return 0.0
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines[field].split()[0]) / 1024


if __name__ == "__main__":
    main()
