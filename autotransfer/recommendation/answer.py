"""The answer of a study: choose, train finally, evaluate once on the test split, compare with the baselines."""

from collections.abc import Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial

from autotransfer.recommendation.alternatives import find_alternatives
from autotransfer.recommendation.final import (
    CONSTANT_BASELINES,
    Finalist,
    constant_predictions,
    finish_linear_probe,
    finish_trial,
    keep_best,
    score_on_test,
)
from autotransfer.recommendation.why import negative_transfer, reasons
from autotransfer.search.budget import Budget
from autotransfer.search.checkpoints import best_trials
from autotransfer.search.first_trials import FROM_SCRATCH
from autotransfer.search.history import told
from autotransfer.search.study import trained_trials
from autotransfer.search.workshop import Workshop, within_limits
from autotransfer.transfer.config import TransferConfig
from autotransfer.transfer.model import TrainedModel


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
    verdict = negative_transfer(transferring, scratch, workshop, why_not=_why_no_scratch(study))
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
        "alternatives": find_alternatives(study, workshop, probe),
        "why": [
            *reasons(chosen, probe, workshop, verdict, len(trained_trials(study))),
            *([f"The search {sentence}."] if (sentence := told(study)) else []),
        ],
    }


def _why_no_scratch(study: optuna.Study) -> str:
    """What ended the run from scratch that every study has queued."""
    trials = study.get_trials(deepcopy=False)
    return next((str(t.user_attrs.get("reason", "")) for t in trials if t.user_attrs.get("role") == FROM_SCRATCH), "")


def _of_pool(trials: Sequence[FrozenTrial], workshop: Workshop) -> list[FrozenTrial]:
    """Those whose source is at hand: where a resumed study was stopped while it probed, some are not."""
    here = {source.name for source in workshop.pool.sources()}
    return [trial for trial in trials if trial.user_attrs["config"]["source"] in here]


def _linear_probe(workshop: Workshop) -> Finalist:
    """The linear probe with the best validation score among those within the hard limits."""
    sign = 1 if workshop.metric.greater_is_better else -1
    admissible = within_limits(workshop)
    return finish_linear_probe(max(admissible, key=lambda c: sign * c.linear_probe), workshop)
