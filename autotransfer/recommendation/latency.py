"""Measured inference time on the CPU, one image at a time."""

import time

import numpy as np
import torch

from autotransfer.search.candidates import Pool
from autotransfer.transfer.surgery import TransferModel, build_network


def measure_latency_ms(model: TransferModel, image_size: int, *, repeats: int = 9) -> float:
    """The median time of one image on the CPU in milliseconds, after two warm-up passes."""
    model = model.to("cpu").eval()
    image = torch.zeros(1, 3, image_size, image_size).contiguous(memory_format=torch.channels_last)
    times = []
    with torch.inference_mode():
        for index in range(repeats + 2):
            started = time.perf_counter()
            model(image)
            if index >= 2:
                times.append(time.perf_counter() - started)
    return float(np.median(times)) * 1e3


def level_latencies_ms(pool: Pool, num_classes: int) -> dict[tuple[str, int], float]:
    """Latency by (source, level), each network cut above its level."""
    return {
        (source.name, level.index): measure_latency_ms(
            build_network(source, transferred_layers=level.index, upper_layers="drop", num_classes=num_classes),
            pool.image_sizes[source.name],
        )
        for source in pool.sources()
        for level in source.levels
    }
