"""What is promised of past studies: alike targets tell, others do not, and what was taken from them stays the same."""

import json
from dataclasses import replace

import numpy as np
import optuna
import pytest
from small_study import CONVNEXT, MOBILENET, Told, config_of, unlimited

from autotransfer.search.expectation import Surrogate
from autotransfer.search.first_trials import queue_first_trials
from autotransfer.search.history import find_past, keep, kept_past, remember, similarity, told
from autotransfer.search.prior import Points, shipped_prior
from autotransfer.search.sampler import ProxySampler
from autotransfer.search.strategy import Strategy
from autotransfer.search.study import open_storage, storage_url
from autotransfer.search.trials import run_trials
from autotransfer.search.workshop import Workshop


@pytest.fixture
def here(workshop):
    return Strategy("proxy", workshop).landscape


def with_probes(landscape, change):
    return replace(landscape, linear_probe=change(landscape.linear_probe))


def past_study(name: str, studies_dir, landscape, scores=(0.5, 0.6, 0.7, 0.9)) -> optuna.Study:
    """A finished study of trials on both sources, whatever trained them."""
    storage = open_storage(storage_url(None, name, studies_dir))
    study = optuna.create_study(study_name=name, storage=storage, direction="maximize")
    remember(study, landscape)
    for index, score in enumerate(scores):
        config = config_of(CONVNEXT if index % 2 else MOBILENET, 1 + index % 4, epochs=2)
        distributions = {
            "source": optuna.distributions.CategoricalDistribution(sorted((CONVNEXT, MOBILENET))),
            "transferred_layers": optuna.distributions.IntDistribution(0, 5),
            "upper_layers": optuna.distributions.CategoricalDistribution(["drop", "reinit"]),
            "frozen_layers": optuna.distributions.IntDistribution(0, 5),
            "learning_rate": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
        }
        params = {key: value for key, value in config.to_dict().items() if key in distributions}
        attrs = {"config": config.to_dict(), "trained": True}
        trial = optuna.trial.create_trial(value=score, params=params, distributions=distributions, user_attrs=attrs)
        study.add_trial(trial)
    return study


def found(study, here, studies_dir):
    url = storage_url(None, study.study_name, studies_dir)
    return find_past(study, here, shipped_prior(), storage=url, studies_dir=studies_dir)


@pytest.fixture
def new(tmp_path):
    storage = open_storage(storage_url(None, "new", tmp_path))
    return optuna.create_study(study_name="new", storage=storage, direction="maximize")


def test_a_target_is_most_like_itself_and_unlike_one_where_the_order_is_reversed(here):
    other = with_probes(here, lambda scores: 1 - scores)
    assert similarity(here, here) > 0.5
    assert similarity(here, here) == pytest.approx(similarity(with_probes(here, lambda s: s * 0.5), here), abs=0.2)
    assert similarity(here, other) == 0


def test_targets_without_sources_in_common_have_no_likeness(here):
    renamed = replace(here, sources=[f"other-{name}" for name in here.sources])
    assert similarity(here, renamed) == 0


def test_the_studies_of_this_machine_tell_most_alike_first_and_unlike_ones_do_not(new, here, tmp_path):
    past_study("alike", tmp_path, here)
    noisy = np.random.default_rng(0).uniform(0.9, 1.1, here.linear_probe.shape)
    past_study("rather", tmp_path, with_probes(here, lambda scores: scores * noisy))
    past_study("unlike", tmp_path, with_probes(here, lambda scores: 1 - scores))
    pasts = found(new, here, tmp_path)
    assert [past.study for past in pasts] == ["alike", "rather"]
    assert pasts[0].similarity > pasts[1].similarity
    assert len(pasts[0].points) == 4


def test_what_says_too_little_or_something_else_is_left_out(new, here, tmp_path):
    past_study("few", tmp_path, here, scores=(0.5, 0.6))
    losing = replace(here, metric=replace(here.metric, name="log_loss"))
    past_study("metric", tmp_path, losing)
    storage = open_storage(storage_url(None, "old", tmp_path))
    optuna.create_study(study_name="old", storage=storage).set_user_attr("dataset", "x")
    (tmp_path / "broken.journal").write_text("no journal\n", encoding="utf-8")
    strange = past_study("strange", tmp_path, here)
    strange.set_user_attr("landscape", json.dumps({"sources": []}))
    assert found(new, here, tmp_path) == ()
    assert told(new) == ""


def test_what_a_study_starts_from_is_kept_in_its_storage_and_told(new, here, tmp_path):
    past_study("alike", tmp_path, here)
    pasts = found(new, here, tmp_path)
    keep(new, pasts, here)
    (again,) = kept_past(
        optuna.load_study(study_name="new", storage=open_storage(f"journal:{tmp_path}/new.journal")), here
    )
    assert (again.study, again.similarity) == (pasts[0].study, pasts[0].similarity)
    assert np.array_equal(again.points.source, pasts[0].points.source)
    assert np.allclose(again.surprise, pasts[0].surprise, atol=1e-5)
    assert told(new).startswith("started from what worked on alike (4 trials, similarity 0.")


def test_what_worked_elsewhere_is_expected_to_work_here_and_less_so_the_less_alike(new, here, tmp_path):
    past_study("alike", tmp_path, here, scores=(0.5, 0.9) * 4)  # one source was good, the other was not
    (past,) = found(new, here, tmp_path)
    asked, good = past.points, past.points.source == here.positions[CONVNEXT]
    plain = Surrogate(here, shipped_prior(), lambda points: np.ones(len(points)))
    nothing = plain.observe(new)

    def shift(similarity: float) -> np.ndarray:
        taught = replace(plain, past=(replace(past, similarity=similarity),))
        return taught.posterior(nothing, asked).mean - plain.posterior(nothing, asked).mean

    strong, weak = shift(0.8), shift(0.2)
    assert strong[good].mean() > 0 > strong[~good].mean()
    assert np.abs(weak).max() < np.abs(strong).max()
    assert np.abs(shift(1e-6)).max() < 1e-3


def test_a_past_makes_nothing_surer_than_its_own_trials_do(new, here, tmp_path):
    past_study("alike", tmp_path, here)
    (past,) = found(new, here, tmp_path)
    plain = Surrogate(here, shipped_prior(), lambda points: np.ones(len(points)))
    nothing, asked = plain.observe(new), past.points
    taught, untaught = replace(plain, past=(past,)).posterior(nothing, asked), plain.posterior(nothing, asked)
    assert (taught.deviation <= untaught.deviation + 1e-9).all()
    same = replace(plain, past=(replace(past, similarity=1.0),)).posterior(nothing, asked)
    assert (taught.deviation >= same.deviation - 1e-9).all()


def test_a_study_is_remembered_whole(new, here, tmp_path):
    remember(new, here)
    past_study("second", tmp_path, here)
    other = open_storage(storage_url(None, "second", tmp_path))
    second = optuna.load_study(study_name="second", storage=other)
    assert found(second, here, tmp_path) == ()  # the new one has no trials yet


def test_a_search_with_a_past_runs_and_is_repeatable(make_workshop, here, tmp_path):
    workshop: Workshop = make_workshop()
    past_study("alike", tmp_path / "studies", here)
    chosen = []
    for attempt in ("a", "b"):
        study = optuna.create_study(study_name=attempt, direction="maximize")
        keep(study, found_in(study, here, tmp_path / "studies"), here)
        strategy = Strategy("proxy", workshop, past=kept_past(study, here))
        queue_first_trials(study, strategy)
        run_trials(study, strategy, unlimited(3), Told())
        assert isinstance(study.sampler, ProxySampler)
        chosen.append([trial.params for trial in study.get_trials()])
    assert chosen[0] == chosen[1]


def found_in(study, here, studies_dir):
    return find_past(study, here, shipped_prior(), storage="sqlite://", studies_dir=studies_dir)


def test_no_past_is_an_empty_past(here):
    assert kept_past(optuna.create_study(), here) == ()
    assert len(Points.of([])) == 0
