"""What the answer promises: the best on validation, tested once, compared with the baselines."""

import shutil
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
import pytest
import torch
from safetensors.torch import load_file
from small_study import CONVNEXT, MOBILENET, Stopwatch, new_study, small_pool, small_workshop, stop_after

from autotransfer.errors import StudyError
from autotransfer.probing import fit_linear_head
from autotransfer.recommendation import alternatives
from autotransfer.recommendation.answer import answer
from autotransfer.recommendation.final import keep_best
from autotransfer.search.budget import Budget
from autotransfer.search.checkpoints import best_trial, best_trials, weights_file
from autotransfer.search.workshop import Workshop
from autotransfer.transfer.config import TransferConfig
from autotransfer.transfer.evaluation import get_metric
from autotransfer.transfer.training import Data, train

FOREVER = Budget(None, None)


def spent_budget() -> Budget:
    clock = Stopwatch()
    budget = Budget(10, None, clock)
    clock.now += 10
    return budget


def retold(study: optuna.Study, values: dict[int, float | None]) -> optuna.Study:
    """The same trials with the same kept weights, told other scores (None: failed)."""
    copy = new_study()
    for trial in study.get_trials():
        value = values.get(trial.number, trial.value)
        state = optuna.trial.TrialState.FAIL if value is None else optuna.trial.TrialState.COMPLETE
        copy.add_trial(optuna.trial.create_trial(value=value, state=state, user_attrs=trial.user_attrs))
    return copy


def config_of_trial(study: optuna.Study, number: int) -> TransferConfig:
    return TransferConfig.from_dict(study.get_trials()[number].user_attrs["config"])


def kept_weights(workshop: Workshop, number: int) -> dict[str, torch.Tensor]:
    return load_file(workshop.checkpoints / f"trial-{number}.safetensors")


def same_weights(model: Any, weights: dict[str, torch.Tensor]) -> bool:
    state = model.network.state_dict()
    return all(torch.equal(state[name], weights[name]) for name in weights)


# What is chosen


def test_the_best_transferring_trial_is_chosen(study, workshop):
    chosen, found = answer(retold(study, {2: 0.99, 0: 0.98}), workshop, FOREVER, plugins=())
    assert chosen == found["config"] == found["model"].config == config_of_trial(study, 2)
    assert chosen.source != config_of_trial(study, 0).source


def test_training_from_scratch_is_chosen_where_it_is_best(study, workshop):
    chosen, found = answer(retold(study, {1: 1.1}), workshop, FOREVER, plugins=())
    assert chosen.from_scratch
    assert any("training from scratch was best" in sentence for sentence in found["why"])


def test_the_best_linear_probe_is_chosen_where_no_trial_is_better(study, workshop, pool):
    best = max(candidate.linear_probe for candidate in pool.candidates)
    told = {trial.number: best for trial in study.get_trials()}
    chosen, found = answer(retold(study, told), workshop, FOREVER, plugins=())
    assert chosen.linear_probe
    assert pool.get(chosen.source, chosen.transferred_layers).linear_probe == best
    assert "none of 4 trained configurations was better" in found["why"][0]


def test_where_less_is_better_the_least_is_chosen(digits, cache_dir, tmp_path):
    metric = get_metric("log_loss")
    pool = small_pool(digits, cache_dir, metric=metric)
    workshop = small_workshop(digits, pool, cache_dir, tmp_path, metric=metric)
    chosen, found = answer(new_study(direction="minimize"), workshop, FOREVER, plugins=())
    least = min(candidate.linear_probe for candidate in pool.candidates)
    assert pool.get(chosen.source, chosen.transferred_layers).linear_probe == least
    assert found["alternatives"][0]["val_score"] == least
    assert found["test"].low <= found["test"].value <= found["test"].high


# With what weights


def test_the_chosen_configuration_is_trained_again_on_train_and_validation(study, workshop, digits):
    chosen, found = answer(retold(study, {3: 0.99}), workshop, FOREVER, plugins=())
    rows = digits.rows("train", "val")
    with workshop.started(chosen, rows) as (model, inputs):
        train(model, chosen, Data(inputs, digits.codes, rows, rows[:0]), metric=workshop.metric, seed=workshop.seed)
    assert same_weights(found["model"], model.state_dict())
    assert not any("no time" in sentence for sentence in found["why"])


@pytest.mark.parametrize("reason", ["the budget is spent", "the user stopped before", "the user stopped within"])
def test_without_time_for_that_the_trials_own_weights_are_the_answer(study, workshop, tmp_path, reason):
    go_on = {"the budget is spent": workshop.go_on, "the user stopped before": lambda: False}
    stopped = replace(workshop, go_on=go_on.get(reason, stop_after(2)))
    budget = spent_budget() if reason == "the budget is spent" else FOREVER
    _, found = answer(retold(study, {3: 0.99}), stopped, budget, plugins=())
    assert same_weights(found["model"], kept_weights(workshop, 3))
    assert any("no time to train on train + validation" in sentence for sentence in found["why"])


def test_a_trial_that_ran_elsewhere_is_trained_again_as_it_was(study, workshop, tmp_path):
    here = replace(workshop, checkpoints=tmp_path / "nothing")
    best = best_trial(study, workshop.metric, from_scratch=False)
    found, trial = keep_best([best], here, FOREVER)
    assert trial.number == best.number
    state, weights = found.model.state_dict(), kept_weights(workshop, best.number)
    assert all(torch.equal(state[name], weights[name]) for name in weights)


def test_without_time_for_that_the_next_best_that_is_here_is_taken(study, workshop, tmp_path):
    ordered = best_trials(study, workshop.metric, from_scratch=False)
    here = replace(workshop, checkpoints=tmp_path / "some")
    here.checkpoints.mkdir()
    shutil.copy(weights_file(ordered[1].number, workshop), here.checkpoints)
    found = keep_best(ordered, here, spent_budget())
    assert found is not None and found[1].number == ordered[1].number
    assert keep_best(ordered[:1], here, spent_budget()) is None


def test_where_nothing_was_trained_the_linear_probe_says_so(workshop):
    _, found = answer(new_study(), workshop, spent_budget(), plugins=())
    assert found["config"].linear_probe
    assert "no configuration was trained" in found["why"][0]


def test_the_linear_probe_is_solved_again_on_train_and_validation(workshop, digits, pool):
    chosen, found = answer(new_study(), workshop, spent_budget(), plugins=())
    rows = digits.rows("train", "val")
    features = pool.probes[chosen.source].at(chosen.transferred_layers, rows)
    strength = pool.get(chosen.source, chosen.transferred_layers).head.strength
    head = fit_linear_head(features, digits.codes[rows], len(digits.classes), strength)
    assert np.array_equal(found["model"].network.classifier.weight.detach().numpy(), head.weight)


# The evidence


def test_the_test_score_is_what_the_model_says_about_the_test_files(evidence, digits):
    test = digits.samples.iloc[digits.rows("test")]
    predicted = evidence["model"].predict(test["image"].to_list())
    score = evidence["test"]
    assert score.value == pytest.approx((predicted["label"].to_numpy() == test["label"].to_numpy()).mean())
    assert (score.metric, score.n) == ("accuracy", len(test))
    assert score.low <= score.value <= score.high


def test_the_majority_baseline_always_answers_the_largest_class(evidence, digits):
    known, asked = digits.codes[digits.rows("train", "val")], digits.codes[digits.rows("test")]
    majority = np.bincount(known).argmax()
    assert evidence["baselines"]["majority_class"].value == pytest.approx((asked == majority).mean())


def test_the_baselines_are_scored_on_the_same_test_images(evidence, study, workshop, digits):
    assert list(evidence["baselines"]) == ["majority_class", "linear_probe", "from_scratch"]
    assert {score.n for score in evidence["baselines"].values()} == {len(digits.rows("test"))}
    assert {score.metric for score in evidence["baselines"].values()} == {"accuracy"}
    assert evidence["baselines"]["majority_class"].value < evidence["baselines"]["linear_probe"].value


def test_without_a_trial_from_scratch_nothing_is_said_about_negative_transfer(study, workshop):
    _, found = answer(retold(study, {1: None}), workshop, FOREVER, plugins=())
    assert "from_scratch" not in found["baselines"]
    assert found["negative_transfer"]["verdict"] == "unknown"


def test_transfer_is_judged_by_what_transfers_even_where_scratch_is_chosen(study, workshop):
    chosen, found = answer(retold(study, {1: 1.1}), workshop, FOREVER, plugins=())
    assert chosen.from_scratch
    assert found["negative_transfer"]["low"] != found["negative_transfer"]["high"]  # not compared with itself


def test_no_alternative_is_beaten_in_score_size_and_latency_at_once(evidence, study, workshop):
    rows = evidence["alternatives"]
    scores = [row["val_score"] for row in rows]
    assert scores == sorted(scores, reverse=True)
    probes = [candidate.linear_probe for candidate in workshop.pool.candidates]
    assert scores[0] == max([trial.value for trial in study.get_trials()] + probes)
    for row in rows:
        for other in rows:
            better_or_equal = (
                other["val_score"] >= row["val_score"],
                other["parameters"] <= row["parameters"],
                other["size_mb"] <= row["size_mb"],
                other["latency_ms"] <= row["latency_ms"],
            )
            assert not (all(better_or_equal) and other["latency_ms"] < row["latency_ms"])


def test_alternatives_that_are_as_good_stay_side_by_side(study, workshop, monkeypatch):
    monkeypatch.setattr(alternatives, "measure_latency_ms", lambda network, size: 1.0)
    _, found = answer(retold(study, {0: 0.99, 3: 0.99}), workshop, FOREVER, plugins=())
    best = [row for row in found["alternatives"] if row["val_score"] == 0.99]
    assert [row["frozen_layers"] for row in best] == [config_of_trial(study, n).frozen_layers for n in (0, 3)]
    sizes = [row["parameters"] for row in found["alternatives"]]
    assert sizes == sorted(sizes, reverse=True)  # as fast as each other: what is worse is smaller


def test_an_alternative_says_how_large_and_how_fast_it_is(evidence, workshop):
    sizes = {
        (source.name, level.index): level.parameter_count + (level.channels + 1) * 5
        for source in workshop.pool.sources()
        for level in source.levels
    }
    for row in evidence["alternatives"]:
        if row["upper_layers"] == "drop":
            assert row["parameters"] == sizes[row["source"], row["transferred_layers"]]
        assert 0 < row["latency_ms"] < 2000
        # float32 weights, and the statistics of batch norms beside them
        assert 4e-6 * row["parameters"] <= row["size_mb"] < 6e-6 * row["parameters"]


def test_one_network_is_timed_once_however_often_it_was_trained(study, workshop, monkeypatch):
    times = iter(range(1, 100))
    monkeypatch.setattr(alternatives, "measure_latency_ms", lambda network, size: float(next(times)))
    _, found = answer(retold(study, {0: 0.99, 3: 0.99}), workshop, FOREVER, plugins=())
    best = [row for row in found["alternatives"] if row["val_score"] == 0.99]
    assert len(best) == 2
    assert len({row["latency_ms"] for row in best}) == 1


def test_plugins_are_kept_with_the_model(workshop):
    _, found = answer(new_study(), workshop, FOREVER, plugins=("json",))
    assert found["model"].plugins == ("json",)


# Limits


def test_only_linear_probes_within_the_limits_are_considered(digits, pool, cache_dir, tmp_path):
    workshop = small_workshop(digits, pool, cache_dir, tmp_path, max_parameters=5500)
    chosen, found = answer(new_study(), workshop, FOREVER, plugins=())
    assert (chosen.source, chosen.transferred_layers <= 3) == (MOBILENET, True)
    assert sum(p.numel() for p in found["model"].network.parameters()) <= 5500


def test_limits_that_exclude_everything_are_told(digits, pool, cache_dir, tmp_path):
    latencies = {(c.source.name, c.level): 5.0 for c in pool.candidates}
    workshop = small_workshop(digits, pool, cache_dir, tmp_path, max_latency_ms=1.0, latencies_ms=latencies)
    with pytest.raises(StudyError, match=r"no \(source, level\) keeps within --max-params / --max-latency"):
        answer(new_study(), workshop, FOREVER, plugins=())


def test_sources_are_named_as_users_name_them(evidence):
    assert evidence["config"].source in (CONVNEXT, MOBILENET)
