"""A small search whose trials may run in other processes, and what is known of it afterwards."""

from dataclasses import dataclass

import optuna
from small_study import Told

from autotransfer.search.executors import Executor, SearchJob
from autotransfer.search.study import open_storage


@dataclass(frozen=True)
class Search:
    """A search that has been run, and what was told of it."""

    study: optuna.Study
    job: SearchJob
    told: Told
    reason: str


def study_of(job: SearchJob) -> optuna.Study:
    """The study, opened anew."""
    return optuna.load_study(study_name=job.study, storage=open_storage(job.storage))


def run_search(executor: Executor, job: SearchJob) -> Search:
    """Run a search to its end."""
    told = Told()
    with executor:
        reason = executor.search(job, lambda: True, told)
    return Search(study_of(job), job, told, reason)
