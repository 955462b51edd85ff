"""What is tried first, before any trial has told anything."""

import optuna
import torch
from optuna.trial import TrialState

from autotransfer.search.candidates import Candidate
from autotransfer.search.forecast import Forecast
from autotransfer.search.strategy import Strategy
from autotransfer.search.workshop import Workshop, exceeds_limits, linear_probe_config
from autotransfer.sources import Source

# AdamW's peak in the trials that are queued: networks with batch norms gain from more than the others bear.
_BATCH_NORM_LEARNING_RATE = 2e-3
_OTHER_LEARNING_RATE = 5e-4
BEST_BY_PROXIES, FROM_SCRATCH = "best by proxies", "from scratch"
ALWAYS_RUN = (BEST_BY_PROXIES, FROM_SCRATCH)
SHARE_OF_ALWAYS_RUN = 0.2  # of the search's time, for each of them


def queue_first_trials(study: optuna.Study, strategy: Strategy, seconds: float | None = None) -> None:
    """Queue what is tried first: the best candidate and from scratch, which the answer is judged by.

    Samplers that know nothing of the proxies also start from the best of the next sources.

    Where `seconds` limit the search, candidates that could train less than half of the epochs stand back: a
    smaller network trained properly beats a larger one that is not.
    """
    workshop = strategy.workshop
    parameters = workshop.space.parameters
    rates = parameters.learning_rate
    best_of: dict[str, Candidate] = {}
    for candidate in _worth_training(study, workshop, seconds):
        best_of.setdefault(candidate.source.name, candidate)
    best, *others = best_of.values()

    trials = study.get_trials(deepcopy=False)
    known = {trial.user_attrs.get("role") for trial in trials if trial.state != TrialState.FAIL}

    def queue(source: Source, level: int, frozen: int, role: str) -> None:
        if role in known:  # a study that goes on
            return
        params = {
            "source": source.name,
            "transferred_layers": level,
            "upper_layers": parameters.upper_layers[0],
            "frozen_layers": frozen,
            "learning_rate": min(max(usual_learning_rate(source), rates.min), rates.max),
        }
        study.enqueue_trial(params, user_attrs={"role": role})

    queue(best.source, best.level, 0, BEST_BY_PROXIES)
    whole = (c.source for c in (best, *others) if not _exceeds(workshop, c.source, len(c.source.levels)))
    queue(next(whole, best.source), 0, 0, FROM_SCRATCH)
    if strategy.by_proxy or trials:
        return
    for other in others[:3]:
        queue(other.source, other.level, 0, "best of its source")
    queue(best.source, best.level, best.level // 2, "half frozen")


def _worth_training(study: optuna.Study, workshop: Workshop, seconds: float | None) -> list[Candidate]:
    """Candidates within the hard limits (all, where none is) by their expectation.

    Where time is short, times the part of half the epochs that one trial's share of it allows.
    """
    within = [c for c in workshop.pool.candidates if not _exceeds(workshop, c.source, c.level)]
    candidates = within or workshop.pool.candidates
    if seconds is None:
        return candidates
    forecast = Forecast.of(study, workshop)
    wanted = workshop.space.parameters.epochs.largest() / 2

    def worth(candidate: Candidate) -> float:
        probed = linear_probe_config(workshop, candidate.source.name, candidate.level)
        config = probed.replace(frozen_layers=0, cached_views=0, epochs=1)
        epochs = seconds * SHARE_OF_ALWAYS_RUN / max(1e-9, forecast.seconds(config))
        return candidate.expected * min(1.0, epochs / wanted)

    return sorted(candidates, key=worth, reverse=True)


def _exceeds(workshop: Workshop, source: Source, level: int) -> bool:
    return bool(exceeds_limits(linear_probe_config(workshop, source.name, level), workshop))


def usual_learning_rate(source: Source) -> float:
    """AdamW's peak in the trials that are queued."""
    norms = (isinstance(module, torch.nn.modules.batchnorm._BatchNorm) for module in source.load().modules())
    return _BATCH_NORM_LEARNING_RATE if any(norms) else _OTHER_LEARNING_RATE
