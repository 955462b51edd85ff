"""What else could be taken: the Pareto front of validation score, latency and size."""

from typing import Any

import optuna

from autotransfer.recommendation.final import Finalist
from autotransfer.recommendation.latency import measure_latency_ms
from autotransfer.search.study import complete_trials
from autotransfer.search.workshop import Workshop
from autotransfer.transfer.config import TransferConfig
from autotransfer.transfer.surgery import build_network

_SMALLER_IS_BETTER = ("parameters", "size_mb", "latency_ms")


def find_alternatives(study: optuna.Study, workshop: Workshop, probe: Finalist) -> list[dict[str, Any]]:
    """The trained configurations and the linear probe that no other one beats in everything, best score first.

    What counts: the validation score, parameters, megabytes of weights on disk, and milliseconds an image on this
    machine's CPU. Each network is timed once, so that two trainings of it do not differ by the clock's noise.
    """
    here = {source.name for source in workshop.pool.sources()}
    found: list[tuple[int | None, TransferConfig, float]] = [
        (trial.number, TransferConfig.from_dict(trial.user_attrs["config"]), float(trial.value or 0.0))
        for trial in complete_trials(study)
        if trial.user_attrs["config"]["source"] in here
    ]
    found.append((None, probe.config, probe.val_score))
    measured: dict[tuple[str, int], dict[str, float]] = {}
    rows: list[dict[str, Any]] = []
    for number, config, value in found:
        depth = config.transferred_layers if config.upper_layers == "drop" else 0
        network = config.source, depth or len(workshop.source(config.source).levels)
        if network not in measured:
            measured[network] = _measured(config, workshop)
        rows.append(
            {
                "trial": number,
                "source": config.source,
                "transferred_layers": config.transferred_layers,
                "upper_layers": config.upper_layers,
                "frozen_layers": config.frozen_layers,
                "val_score": value,
                **measured[network],
            }
        )
    sign = -1 if workshop.metric.greater_is_better else 1

    def losses(row: dict[str, Any]) -> tuple[float, ...]:
        return (sign * row["val_score"], *(row[name] for name in _SMALLER_IS_BETTER))

    def dominated(row: dict[str, Any]) -> bool:
        mine = losses(row)
        others = [losses(other) for other in rows if other is not row]
        return any(all(a <= b for a, b in zip(other, mine, strict=True)) and other != mine for other in others)

    return sorted((row for row in rows if not dominated(row)), key=losses)


def _measured(config: TransferConfig, workshop: Workshop) -> dict[str, float]:
    network = build_network(
        workshop.source(config.source),
        transferred_layers=config.transferred_layers,
        upper_layers=config.upper_layers,
        num_classes=len(workshop.dataset.classes),
    )
    tensors = network.state_dict().values()
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "size_mb": sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 1e6,
        "latency_ms": measure_latency_ms(network, config.image_size),
    }
