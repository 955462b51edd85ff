"""How fast is training, and what does the frozen-prefix cache save?

    python tests/benchmarks/training.py prefix              # kept activations against running the frozen part
    python tests/benchmarks/training.py accuracy            # does training on them lose accuracy? five seeds
    python tests/benchmarks/training.py loop                # against a plain PyTorch loop over JPEG files
    python tests/benchmarks/training.py latency             # what dropping the upper layers saves at inference

All compare within one run, the ways in turn, the fastest of several epochs of each. `loop` writes JPEG files of
320 x 240 pixels (crops of scikit-learn's two photographs), fine-tunes whole networks on them with the same batch,
optimizer, schedule, augmentation (crop, mirror, colour) and label smoothing, and also times the floor: forward and
backward pass alone on tensors that are there already. `--device cuda` runs everything on a GPU.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

ARCHITECTURES = [
    *("resnet10t@64", "mobilenetv3_small_050@64", "test_convnext2@64"),
    *("resnet10t@96", "mobilenetv3_small_050@96", "test_convnext2@96", "resnet18@128", "vit_tiny_patch16_224@128"),
]
BATCH, CLASSES = 32, 10


def main() -> None:
    """Run the part that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["prefix", "accuracy", "loop", "latency"])
    parser.add_argument("architectures", nargs="*", default=ARCHITECTURES, help="name@pixels")
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=3, help="of each way; the fastest counts")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=2, help="of the plain loop's DataLoader")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for row in {"prefix": prefix, "accuracy": accuracy, "loop": loop, "latency": latency}[options.part](
            options, Path(folder)
        ):
            rows.append(row)
            print(row, flush=True)
    print()
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda value: f"{value:.3g}"))


def source_of(architecture: str, folder: Path):
    """The architecture (name@pixels) with random weights, as a source on this machine."""
    from random_sources import write_source

    name, _, size = architecture.partition("@")
    pixels = int(size or 96)
    fixed = {"img_size": pixels} if "vit" in name else {}
    return write_source(folder / architecture, name, image_size=pixels, num_classes=CLASSES, **fixed)


def config_of(source, **changes):
    """Fine-tuning of the whole network, as a study does it."""
    from autotransfer.transfer.config import TransferConfig

    config = TransferConfig(
        source=source.name,
        transferred_layers=len(source.levels),
        upper_layers="drop",
        frozen_layers=0,
        learning_rate=1e-3,
        epochs=1,
        batch_size=BATCH,
        image_size=source.data_config.image_size,
        augmentation="flip",
    )
    return config.replace(**changes)


def images_of(source, count: int, device: str):
    """Decoded images as the product keeps them, of noise: their content does not matter for speed."""
    from autotransfer.transfer.inputs import ImageInputs

    size = source.data_config.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return ImageInputs(pixels, source.data_config, torch.device(device))


def epoch_seconds(source, config, inputs, store, epochs: int, count: int) -> float:
    """The fastest epoch of a training without validation."""
    from autotransfer.transfer.evaluation import get_metric
    from autotransfer.transfer.surgery import transfer
    from autotransfer.transfer.training import Data, EpochReport, train

    seconds: list[float] = []

    def note(report: EpochReport) -> None:
        seconds.append(report.seconds)

    torch.manual_seed(0)
    model = transfer(
        source,
        transferred_layers=config.transferred_layers,
        upper_layers="drop",
        frozen_layers=config.frozen_layers,
        num_classes=CLASSES,
    )
    rows, codes = np.arange(count), np.arange(count) % CLASSES
    with store.inputs(model, config, inputs) as found:
        data = Data(found, codes, rows, rows[:0])
        train(model, config.replace(epochs=epochs), data, metric=get_metric("accuracy"), seed=0, on_epoch=note)
    return min(seconds)


def prefix(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Seconds an epoch with the cache off and, from the second trial on, with it on."""
    from autotransfer.transfer.activations import ActivationStore

    for architecture in options.architectures:
        source = source_of(architecture, folder)
        inputs = images_of(source, options.images, options.device)
        top = len(source.levels)
        for part, frozen in (("all", top), ("half", -(-top // 2))):
            share = source.levels[frozen - 1].flops / source.levels[-1].flops
            for augmentation in ("flip", "none"):
                store = ActivationStore(
                    folder / "cache", 10**10, f"{architecture}{augmentation}", (np.arange(options.images),)
                )
                config = config_of(source, frozen_layers=frozen, augmentation=augmentation)
                kept = config.replace(cached_views=4)
                first = time.perf_counter()
                epoch_seconds(source, kept, inputs, store, 1, options.images)  # the first trial fills the cache
                first = time.perf_counter() - first
                arguments = (inputs, store, options.epochs, options.images)
                off, on = (
                    min(times)
                    for times in zip(
                        *([epoch_seconds(source, c, *arguments) for c in (config, kept)] for _ in range(2)), strict=True
                    )
                )
                yield {
                    "architecture": architecture,
                    "frozen": f"{part} ({frozen} of {top})",
                    "augmentation": augmentation,
                    "of_flops": share,
                    "off_s": off,
                    "on_s": on,
                    "ratio": off / on,
                    "first_trial_s": first,
                }


def accuracy(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Test accuracy of training on kept views and on fresh ones: scikit-learn's digits, half of the levels frozen."""
    from autotransfer.sources import find_sources
    from autotransfer.transfer.activations import ActivationStore
    from autotransfer.transfer.evaluation import get_metric
    from autotransfer.transfer.inputs import ImageInputs
    from autotransfer.transfer.surgery import transfer
    from autotransfer.transfer.training import Data, train

    for source in find_sources(["embedded:resnet10t.glyphs", "embedded:test_convnext2.scenes", "embedded:test_vit.*"]):
        pixels, codes = digit_images(source.data_config.image_size)
        inputs = ImageInputs(pixels, source.data_config, torch.device(options.device))
        for views in (0, 1, 2, 4, 8):
            scores = []
            for seed in range(5):
                order = np.random.default_rng(seed).permutation(len(codes))
                train_rows, test_rows = np.sort(order[:300]), np.sort(order[300:1300])
                config = config_of(
                    source,
                    frozen_layers=round(len(source.levels) / 2),
                    augmentation="light",
                    epochs=8,
                    cached_views=views,
                )
                store = ActivationStore(folder / "cache", 10**10, source.name, (train_rows, test_rows))
                torch.manual_seed(seed)
                model = transfer(
                    source,
                    transferred_layers=config.transferred_layers,
                    upper_layers="drop",
                    frozen_layers=config.frozen_layers,
                    num_classes=10,
                )
                with store.inputs(model, config, inputs) as found:
                    data = Data(found, codes, train_rows, test_rows)
                    scores.append(train(model, config, data, metric=get_metric("accuracy"), seed=seed))
            yield {
                "source": source.name,
                "cached_views": views or "off",
                "accuracy_%": 100 * np.mean(scores),
                "sd": 100 * np.std(scores, ddof=1),
            }


def digit_images(size: int) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits, enlarged: uint8 [n, size, size, 3] and labels."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = [Image.fromarray((image * 255 / 16).astype(np.uint8)).resize((size, size)) for image in digits.images]
    return np.stack([np.repeat(np.asarray(image)[..., None], 3, axis=2) for image in grey]), digits.target


def loop(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Seconds an epoch: ours, a plain loop over JPEG files, and the floor."""
    from autotransfer.datasets import DecodedImages, load_dataset
    from autotransfer.transfer.activations import ActivationStore
    from autotransfer.transfer.inputs import ImageInputs

    files = write_jpegs(folder / "jpegs", options.images)
    dataset = load_dataset(folder / "jpegs")
    store = ActivationStore(folder / "cache", 10**10, "", (np.arange(options.images),))
    for architecture in options.architectures:
        source = source_of(architecture, folder)
        data, started = source.data_config, time.perf_counter()
        decoded = DecodedImages(dataset, data.image_size, data.interpolation, cache_dir=folder / "cache")
        once = time.perf_counter() - started
        inputs, config = ImageInputs(decoded.array, data, torch.device(options.device)), config_of(source)
        rounds = [
            (
                epoch_seconds(source, config, inputs, store, options.epochs, options.images),
                plain_loop(source, config, files, options),
                forward_and_backward(source, options),
            )
            for _ in range(2)
        ]
        ours, plain, floor = (min(times) for times in zip(*rounds, strict=True))
        yield {
            "architecture": architecture,
            "px": data.image_size,
            "decoding_once_s": once,
            "ours_s": ours,
            "plain_loop_s": plain,
            "floor_s": floor,
            "plain/ours": plain / ours,
            "ours/floor": ours / floor,
        }


def write_jpegs(folder: Path, count: int) -> list[Path]:
    """Crops of two photographs, 320 x 240 pixels, as JPEG files of the usual quality."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photographs, generator = load_sample_images().images, np.random.default_rng(0)
    for index in range(count):
        whole = photographs[index % 2]
        top, left = (
            int(generator.integers(0, side - wanted)) for side, wanted in zip(whole.shape, (240, 320), strict=False)
        )
        path = folder / str(index % CLASSES) / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(whole[top : top + 240, left : left + 320]).save(path, quality=90)
    return sorted(folder.rglob("*.jpg"), key=lambda path: path.name)


class JpegFiles(torch.utils.data.Dataset):
    """What people write: open the file, transform, hand over."""

    def __init__(self, files: list[Path], size: int, mean: Any, std: Any) -> None:
        from torchvision.transforms import v2

        self.files = files
        self.transform = v2.Compose(
            [
                v2.PILToTensor(),
                v2.RandomResizedCrop(size, scale=(0.7, 1.0), ratio=(0.85, 1.18), antialias=True),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(brightness=0.2, contrast=0.2),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        from PIL import Image

        with Image.open(self.files[index]) as image:
            return self.transform(image.convert("RGB")), index % CLASSES


def plain_loop(source, config, files: list[Path], options: argparse.Namespace) -> float:
    """A competent hand-written loop: workers that stay, channels last, a schedule, mixed precision on a GPU."""
    device, data = torch.device(options.device), source.data_config
    dataset = JpegFiles(files, data.image_size, data.mean, data.std)
    loader = torch.utils.data.DataLoader(
        dataset,
        batch_size=BATCH,
        shuffle=True,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
        pin_memory=device.type == "cuda",
    )
    model = source.build(CLASSES).to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.learning_rate, total_steps=len(loader) * (options.epochs + 1)
    )
    loss_function = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)

    def epoch() -> None:
        for images, labels in loader:
            batch = images.to(device, non_blocking=True).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = loss_function(model(batch), labels.to(device, non_blocking=True))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()

    epoch()  # starts the workers
    return fastest(epoch, options.epochs, device)


def forward_and_backward(source, options: argparse.Namespace) -> float:
    """An epoch of nothing but the network, on one batch that is there already."""
    device, size = torch.device(options.device), source.data_config.image_size
    model = source.build(CLASSES).to(device).to(memory_format=torch.channels_last).train()
    batch = torch.randn(BATCH, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(BATCH, device=device) % CLASSES

    def epoch() -> None:
        for _ in range(-(-options.images // BATCH)):
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = nn.functional.cross_entropy(model(batch), labels)
            model.zero_grad(set_to_none=True)
            loss.backward()

    epoch()
    return fastest(epoch, options.epochs, device)


def fastest(run: Callable[[], None], times: int, device: torch.device) -> float:
    """Seconds of the fastest of several runs."""
    found = []
    for _ in range(times):
        started = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return min(found)


def latency(options: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """Milliseconds an image of the network cut at each level (`drop`)."""
    from autotransfer.transfer.surgery import transfer

    device = torch.device(options.device)
    for architecture in options.architectures:
        source = source_of(architecture, folder)
        size = source.data_config.image_size
        batch = torch.randn(8, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
        for level in source.levels:
            model = transfer(
                source, transferred_layers=level.index, upper_layers="drop", frozen_layers=0, num_classes=CLASSES
            )
            model = model.to(device).to(memory_format=torch.channels_last).eval()
            with torch.inference_mode(), quiet():
                milliseconds = 1000 * fastest(lambda m=model, b=batch: m(b), 10, device) / len(batch)
            yield {
                "architecture": architecture,
                "level": f"{level.index} of {len(source.levels)}",
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "ms_an_image": milliseconds,
            }


@contextmanager
def quiet() -> Iterator[None]:
    """One thread: latency of a small batch is steadier without handing work around."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
