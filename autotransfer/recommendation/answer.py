"""The answer of a study: choose, train finally, evaluate once on the test split, compare with the baselines."""

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from autotransfer.errors import StudyError
from autotransfer.recommendation.final import (
    CONSTANT_BASELINES,
    Finalist,
    constant_predictions,
    finish_linear_probe,
    finish_trial,
    keep_best,
    score_on_test,
)
from autotransfer.recommendation.latency import measure_latency_ms
from autotransfer.recommendation.why import negative_transfer, reasons
from autotransfer.search.budget import Budget
from autotransfer.search.checkpoints import best_trials
from autotransfer.search.history import told
from autotransfer.search.study import complete_trials, trained_trials
from autotransfer.search.workshop import Workshop, exceeds_limits, linear_probe_config
from autotransfer.transfer.config import TransferConfig
from autotransfer.transfer.model import TrainedModel
from autotransfer.transfer.surgery import build_network


def answer(
    study: optuna.Study, workshop: Workshop, clock: Budget, *, plugins: tuple[str, ...]
) -> tuple[TransferConfig, dict[str, Any]]:
    """Answer with the best on validation of: trials that transfer, trials from scratch, the linear probe.

    Args:
        study: with whatever trials it has; without any the linear probe is the answer.
        workshop: the study's.
        clock: says whether there is time to train on train + validation.
        plugins: kept with the model, which cannot be opened without them.

    Returns:
        The chosen configuration and the evidence: the fields of `Recommendation` that come from here.

    Raises:
        StudyError: the hard limits exclude every source.
    """
    metric = workshop.metric
    probe = _linear_probe(workshop)
    transfers = _of_pool(best_trials(study, metric, from_scratch=False), workshop)
    better = [trial for trial in transfers if metric.better(trial.value or 0.0, probe.val_score)]
    transferred = keep_best(better, workshop, clock)
    from_scratch = keep_best(_of_pool(best_trials(study, metric, from_scratch=True), workshop)[:1], workshop, clock)
    scratch = from_scratch[0] if from_scratch is not None else None
    transferring = transferred[0] if transferred is not None else probe
    chosen, trial = transferred or (probe, None)
    if from_scratch is not None and metric.better(from_scratch[0].val_score, transferring.val_score):
        chosen, trial = from_scratch
    if trial is not None:
        chosen = finish_trial(chosen, trial, workshop, clock)
    baselines = {
        CONSTANT_BASELINES[workshop.dataset.task]: score_on_test(metric, constant_predictions(workshop), workshop),
        "linear_probe": score_on_test(metric, probe.predictions, workshop),
    }
    if scratch is not None:
        baselines["from_scratch"] = score_on_test(metric, scratch.predictions, workshop)
    verdict = negative_transfer(transferring, scratch, workshop)
    source = workshop.source(chosen.config.source)
    model = TrainedModel(
        network=chosen.model.to("cpu").eval(),
        classes=workshop.dataset.classes,
        config=chosen.config,
        source=source,
        preprocessing=source.data_config,
        plugins=plugins,
        task=workshop.dataset.task,
    )
    return chosen.config, {
        "model": model,
        "config": chosen.config,
        "test": score_on_test(metric, chosen.predictions, workshop),
        "baselines": baselines,
        "negative_transfer": verdict,
        "alternatives": _alternatives(study, workshop, probe),
        "why": [
            *reasons(chosen, probe, workshop, verdict, len(trained_trials(study))),
            *([f"The search {sentence}."] if (sentence := told(study)) else []),
        ],
    }


def _of_pool(trials: Sequence[FrozenTrial], workshop: Workshop) -> list[FrozenTrial]:
    """Those whose source is at hand: where a resumed study was stopped while it probed, some are not."""
    here = {source.name for source in workshop.pool.sources()}
    return [trial for trial in trials if trial.user_attrs["config"]["source"] in here]


def _linear_probe(workshop: Workshop) -> Finalist:
    """The linear probe with the best validation score among those within the hard limits."""
    sign = 1 if workshop.metric.greater_is_better else -1
    admissible = [
        candidate
        for candidate in workshop.pool.candidates
        if not exceeds_limits(linear_probe_config(workshop, candidate.source.name, candidate.level), workshop)
    ]
    if not admissible:
        raise StudyError("no (source, level) keeps within --max-params / --max-latency; loosen the limits.")
    return finish_linear_probe(max(admissible, key=lambda c: sign * c.linear_probe), workshop)


def _alternatives(study: optuna.Study, workshop: Workshop, probe: Finalist) -> list[dict[str, Any]]:
    """The Pareto front of validation score, latency and size among trained configurations and the probe."""
    sign = 1 if workshop.metric.greater_is_better else -1
    pairs = [
        (TransferConfig.from_dict(t.user_attrs["config"]), float(t.value or 0.0))
        for t in _of_pool(complete_trials(study), workshop)
    ]
    rows: list[dict[str, Any]] = []
    for config, value in [*pairs, (probe.config, probe.val_score)]:
        network = build_network(
            workshop.source(config.source),
            transferred_layers=config.transferred_layers,
            upper_layers=config.upper_layers,
            num_classes=len(workshop.dataset.classes),
        )
        rows.append(
            {
                "source": config.source,
                "transferred_layers": config.transferred_layers,
                "upper_layers": config.upper_layers,
                "frozen_layers": config.frozen_layers,
                "val_score": value,
                "parameters": sum(p.numel() for p in network.parameters()),
                "latency_ms": measure_latency_ms(network, config.image_size),
            }
        )

    def dominated(row: dict[str, Any]) -> bool:
        mine = (-sign * row["val_score"], row["parameters"], row["latency_ms"])
        others = [(-sign * o["val_score"], o["parameters"], o["latency_ms"]) for o in rows if o is not row]
        return any(all(a <= b for a, b in zip(o, mine, strict=True)) and o != mine for o in others)

    front = [row for row in rows if not dominated(row)]
    return sorted(front, key=lambda row: -sign * row["val_score"])
