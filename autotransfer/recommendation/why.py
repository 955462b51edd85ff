"""The reasons, in plain sentences, each backed by numbers of this study."""

from typing import Any

from autotransfer.recommendation.final import Finalist
from autotransfer.search.candidates import Pool
from autotransfer.search.workshop import Workshop
from autotransfer.transfer.evaluation import Metric, bootstrap_difference


def negative_transfer(
    chosen: Finalist, scratch: Finalist | None, workshop: Workshop, *, why_not: str = ""
) -> dict[str, Any]:
    """Whether transferring beats training from scratch on the test images, with a paired bootstrap interval.

    Both are judged by weights trained on the train split alone, so that neither has seen more.

    Args:
        chosen: what transfers.
        scratch: the model trained from scratch, None where there is none.
        workshop: the study's.
        why_not: why there is none, where that is known.
    """
    if scratch is None:
        because = f" ({why_not})" if why_not else ""
        evidence = f"No run from scratch finished{because}, so there is nothing to compare with."
        return {"verdict": "unknown", "evidence": evidence}
    targets = workshop.dataset.targets[workshop.dataset.rows("test")]
    metric = workshop.metric
    low, high = bootstrap_difference(metric, chosen.train_only, scratch.train_only, targets, seed=workshop.seed)
    verdict = "no" if low > 0 else "yes" if high < 0 else "undecided"
    ours, theirs = metric(chosen.train_only, targets), metric(scratch.train_only, targets)
    said = {
        "no": "Transfer helps",
        "yes": "Transfer hurts (negative transfer)",
        "undecided": "The test images do not decide whether transfer helps",
    }[verdict]
    return {
        "verdict": verdict,
        "evidence": f"{said}: {metric.name} {ours:.4f} against {theirs:.4f} from scratch, {_epochs(scratch)} "
        f"(both trained on train alone; 95% interval of the gain {low:+.4f} to {high:+.4f}).",
        "low": low,
        "high": high,
    }


def _epochs(finalist: Finalist) -> str:
    count = finalist.config.epochs
    return f"{count} epoch{'' if count == 1 else 's'}"


def reasons(chosen: Finalist, probe: Finalist, workshop: Workshop, verdict: dict[str, Any], trained: int) -> list[str]:
    """Why this configuration: one fact a sentence."""
    pool, metric, config = workshop.pool, workshop.metric, chosen.config
    sentences = [_origin(chosen, metric, trained), _prior(config.source, config.transferred_layers, pool)]
    if not config.linear_probe:
        gain = (chosen.val_score - probe.val_score) * (1 if metric.greater_is_better else -1)
        sentences.append(
            f"Training gained {gain:+.4f} validation {metric.name} over the best linear probe "
            f"({probe.val_score:.4f}, level {probe.config.transferred_layers} of {probe.config.source})."
        )
    sentences.append(str(verdict["evidence"]))
    if not chosen.refitted:
        sentences.append("Its weights are those of the trial: there was no time to train on train + validation.")
    for name, reason in pool.skipped.items():
        sentences.append(f"Source {name} was skipped: {reason}")
    return [sentence for sentence in sentences if sentence]


def _origin(chosen: Finalist, metric: Metric, trained: int) -> str:
    if chosen.config.linear_probe and not trained:
        return (
            f"The linear probe with the best validation {metric.name} ({chosen.val_score:.4f}): "
            "no configuration was trained, the search ended before."
        )
    if chosen.config.linear_probe:
        return (
            f"The linear probe has the best validation {metric.name} ({chosen.val_score:.4f}); "
            f"none of {trained} trained configurations was better."
        )
    return f"It has the best validation {metric.name} ({chosen.val_score:.4f}) of {trained} trained configurations."


def _prior(source: str, level: int, pool: Pool) -> str:
    if level == 0:
        return "Nothing is transferred: training from scratch was best."
    rank = 1 + next(i for i, c in enumerate(pool.candidates) if (c.source.name, c.level) == (source, level))
    return (
        f"Before any training, proxies and size ranked this source at level {level} number {rank} "
        f"of {len(pool.candidates)} (source, level) pairs."
    )
