"""What Ray adds: trials on several nodes, and a node that is lost costs no trial."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from small_search import run_search, study_of
from small_study import Told

from autotransfer.errors import StudyError
from autotransfer.search.events import TrialStarted
from autotransfer.search.executors import make_executor
from autotransfer.search.study import trained_trials

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster() -> Iterator[Any]:
    """Two nodes of one CPU each."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.second = made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


def test_trials_run_on_both_nodes_of_a_cluster_with_the_study_in_postgresql(
    cluster, make_job, tmp_path_factory, postgres_url
):
    job = make_job(tmp_path_factory.mktemp("cluster"), storage=postgres_url, trials=4, jobs=2)
    search = run_search(make_executor("ray", jobs=2, address=cluster.address), job)
    trials = trained_trials(search.study)
    assert len(trials) == 4
    assert len({trial.user_attrs["worker"] for trial in trials}) == 2  # each worker needs the one CPU of its node


def test_the_trials_of_a_lost_node_are_run_on_another(cluster, make_job, tmp_path_factory):
    job, told = make_job(tmp_path_factory.mktemp("lost"), trials=4, jobs=2), Told()

    def lose_a_node() -> None:
        while len(told.of(TrialStarted)) < 2:
            time.sleep(0.1)
        cluster.remove_node(cluster.second)

    loser = threading.Thread(target=lose_a_node, daemon=True)
    with make_executor("ray", jobs=2, address=cluster.address) as executor:
        loser.start()
        executor.search(job, lambda: True, told)
    loser.join(timeout=60)
    trials = study_of(job).get_trials()
    assert len(trained_trials(study_of(job))) == 4
    assert all(trial.state.is_finished() for trial in trials if "trained" in trial.user_attrs)


def test_a_cluster_that_is_not_there_is_told():
    pytest.importorskip("ray")
    with pytest.raises(StudyError, match=r"no Ray cluster can be reached at 127\.0\.0\.1:1"):
        make_executor("ray", address="127.0.0.1:1")
