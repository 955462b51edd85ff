"""What the reasons promise: each is true of this study's numbers, for metrics of both directions."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from small_study import CONVNEXT, MOBILENET, config_of

from autotransfer.recommendation.final import Finalist
from autotransfer.recommendation.why import negative_transfer, reasons
from autotransfer.search.workshop import Workshop, linear_probe_config
from autotransfer.transfer.evaluation import get_metric

NO_VERDICT = {"verdict": "unknown", "evidence": "nothing to compare with"}


def right(workshop: Workshop, share: float) -> np.ndarray:
    """Test probabilities that are right, and sure of it, for the first share of the test images."""
    codes = workshop.dataset.codes[workshop.dataset.rows("test")]
    classes = len(workshop.dataset.classes)
    answers = np.where(np.arange(len(codes)) < share * len(codes), codes, (codes + 1) % classes)
    return (np.eye(classes)[answers] * 0.9 + 0.1 / classes).astype(np.float32)


def finalist(config: Any, train_only: Any = None, *, probabilities: Any = None, score: float = 0.9, refitted=True):
    """A finalist without a network: the reasons read its numbers alone."""
    return Finalist(config, None, score, probabilities, train_only, refitted)


@pytest.mark.parametrize("metric", ["accuracy", "log_loss"])
@pytest.mark.parametrize(
    ("ours", "theirs", "verdict", "said"),
    [
        (1.0, 0.2, "no", "Transfer helps"),
        (0.2, 1.0, "yes", "Transfer hurts (negative transfer)"),
        (0.5, 0.5, "undecided", "do not decide whether transfer helps"),
        (0.55, 0.5, "undecided", "do not decide whether transfer helps"),
    ],
)
def test_the_verdict_is_what_the_test_images_show(workshop, metric, ours, theirs, verdict, said):
    workshop = replace(workshop, metric=get_metric(metric))
    chosen, scratch = finalist(config_of(), right(workshop, ours)), finalist(config_of(), right(workshop, theirs))
    found = negative_transfer(chosen, scratch, workshop)
    assert found["verdict"] == verdict
    assert said in found["evidence"]
    assert (found["low"] > 0, found["high"] < 0) == (verdict == "no", verdict == "yes")


def test_the_evidence_tells_both_scores(workshop):
    chosen, scratch = finalist(config_of(), right(workshop, 1.0)), finalist(config_of(), right(workshop, 0.5))
    assert "accuracy 1.0000 against 0.5000 from scratch" in negative_transfer(chosen, scratch, workshop)["evidence"]


def test_both_are_judged_by_weights_that_saw_the_train_split_alone(workshop):
    chosen = finalist(config_of(), right(workshop, 0.2), probabilities=right(workshop, 1.0))
    scratch = finalist(config_of(), right(workshop, 1.0), probabilities=right(workshop, 0.2))
    assert negative_transfer(chosen, scratch, workshop)["verdict"] == "yes"


def test_without_a_run_from_scratch_there_is_no_verdict(workshop):
    found = negative_transfer(finalist(config_of(), right(workshop, 1.0)), None, workshop)
    assert found["verdict"] == "unknown"
    assert "nothing to compare with" in found["evidence"]


def test_a_trained_winner_is_told_with_its_rank_and_gain(workshop, pool):
    probe = finalist(linear_probe_config(workshop, MOBILENET, 5), score=0.85)
    chosen = finalist(config_of(CONVNEXT, 3), score=0.93)
    rank = pool.table().query("source == @CONVNEXT and level == 3")["rank"].item()
    assert reasons(chosen, probe, workshop, NO_VERDICT, 7) == [
        "It has the best validation accuracy (0.9300) of 7 trained configurations.",
        f"Before any training, proxies and size ranked this source at level 3 number {rank} "
        "of 9 (source, level) pairs.",
        f"Training gained +0.0800 validation accuracy over the best linear probe (0.8500, level 5 of {MOBILENET}).",
        "nothing to compare with",
    ]


def test_a_lower_loss_is_a_gain(workshop):
    workshop = replace(workshop, metric=get_metric("log_loss"))
    probe = finalist(linear_probe_config(workshop, MOBILENET, 5), score=0.50)
    sentences = reasons(finalist(config_of(), score=0.40), probe, workshop, NO_VERDICT, 7)
    assert any("Training gained +0.1000 validation log_loss" in sentence for sentence in sentences)


def test_a_linear_probe_that_wins_says_so_and_tells_no_gain(workshop):
    probe = finalist(linear_probe_config(workshop, CONVNEXT, 2), score=0.9)
    sentences = reasons(probe, probe, workshop, NO_VERDICT, 3)
    assert sentences[0] == (
        "The linear probe has the best validation accuracy (0.9000); none of 3 trained configurations was better."
    )
    assert not any("gained" in sentence for sentence in sentences)


def test_training_from_scratch_has_no_rank(workshop):
    probe = finalist(linear_probe_config(workshop, CONVNEXT, 2))
    sentences = reasons(finalist(config_of(CONVNEXT, 0)), probe, workshop, NO_VERDICT, 3)
    assert "Nothing is transferred: training from scratch was best." in sentences
    assert not any("ranked" in sentence for sentence in sentences)


@pytest.mark.parametrize("refitted", [True, False])
def test_weights_that_did_not_see_the_validation_images_are_told(workshop, refitted):
    probe = finalist(linear_probe_config(workshop, CONVNEXT, 2))
    sentences = reasons(finalist(config_of(), refitted=refitted), probe, workshop, NO_VERDICT, 3)
    assert any("no time to train on train + validation" in sentence for sentence in sentences) != refitted


def test_skipped_sources_are_told_with_their_reasons(workshop, pool):
    workshop = replace(workshop, pool=replace(pool, skipped={"resnet50.a1_in1k": "it cannot be fetched"}))
    probe = finalist(linear_probe_config(workshop, CONVNEXT, 2))
    assert (
        reasons(probe, probe, workshop, NO_VERDICT, 3)[-1]
        == "Source resnet50.a1_in1k was skipped: it cannot be fetched"
    )
