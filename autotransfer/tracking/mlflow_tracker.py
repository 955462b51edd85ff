"""A study in MLflow: one parent run, one nested run per trial, and the recommended model.

Only `MlflowClient` with explicit run ids is used: the fluent API's active run breaks under threads and
belongs to the user. A store that fails while a study runs costs its records, never the study.
"""

import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping
from functools import singledispatchmethod
from pathlib import Path
from typing import Any

from autotransfer.errors import TrackingError
from autotransfer.search.events import (
    EpochFinished,
    Event,
    SourceProbed,
    SourceSkipped,
    StudyFailed,
    StudyFinished,
    StudyStarted,
    TrialFinished,
    TrialStarted,
)

# MLflow retries seven times and waits two minutes for each answer: too long for a study to stand still, and
# for a user who mistyped an address. Read by MLflow at each request; what the user has set stays.
for _name, _value in (
    ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"),
    ("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1"),
    ("MLFLOW_HTTP_REQUEST_TIMEOUT", "20"),
    ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true"),
):
    os.environ.setdefault(_name, _value)

from mlflow import MlflowClient  # noqa: E402
from mlflow.entities import Metric, Param, Run, RunTag  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402

_logger = logging.getLogger(__name__)

STUDY_TAG = "autotransfer.study"
TRIAL_TAG = "autotransfer.trial"
DEFAULT_UI = "http://127.0.0.1:5000"

_CONNECT_SECONDS = 5
_REST_SECONDS = 30.0
_LONGEST_TEXT = 5000
_RUN_STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
_EVIDENCE = ("recommendation.json", "trials.csv", "README.md")


class MlflowTracker:
    """A listener that writes a study's events to an MLflow tracking store.

    Creating it creates the store's schema and the experiment, so that no two workers create them at once.

    Args:
        tracking_uri: `sqlite:///mlflow.db`, `postgresql://...`, `http://host:5000`.
        experiment: name of the experiment; created where it does not exist.
        artifact_location: where a new experiment keeps its files; by default the store's choice, and for
            SQLite the folder `mlartifacts` beside the database.

    Raises:
        TrackingError: the store cannot be reached or written.
    """

    def __init__(self, tracking_uri: str, experiment: str = "autotransfer", artifact_location: str | None = None):
        self.tracking_uri = tracking_uri
        self._shown_uri = _without_password(tracking_uri)
        self._started: StudyStarted | None = None
        self._parent: str | None = None
        self._trials: dict[int, str] = {}
        self._writes: dict[int, list[Any]] = {}
        self._unwritten: dict[int, TrialFinished] = {}
        self._skipped: dict[str, str] = {}
        self._told: set[str] = set()
        self._rests_until = 0.0
        for chatty in ("alembic", "mlflow.store.db.utils", "mlflow.tracking.fluent", "mlflow.models.model"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        try:
            database = _sqlite_file(tracking_uri)
            if database is not None:
                database.parent.mkdir(parents=True, exist_ok=True)
                artifact_location = artifact_location or (database.parent / "mlartifacts").as_uri()
            _check_reachable(tracking_uri)
            self._client = MlflowClient(tracking_uri, registry_uri=tracking_uri)
            self._experiment_id = self._find_or_create_experiment(experiment, artifact_location)
        except Exception as error:  # each kind of store has its own: requests, SQLAlchemy, OSError, MLflow
            raise TrackingError(
                f"the MLflow tracking store {self._shown_uri} cannot be reached or written: "
                f"{_first_line(error, tracking_uri)} Check that the address is right and the server is running, or "
                "give another store (sqlite:///mlflow.db needs no server)."
            ) from error

    @property
    def parent_run_id(self) -> str | None:
        """The run of the study; None before it has started."""
        return self._parent

    @property
    def ui_command(self) -> str | None:
        """The command that opens MLflow's pages on this store; None where a server already shows them."""
        if self._served:
            return None
        return f"mlflow ui --backend-store-uri {shlex.quote(self._shown_uri)}"

    @property
    def ui_url(self) -> str:
        """The page of the study's run, on the server, or on `mlflow ui` with its default address."""
        base = self._shown_uri.rstrip("/") if self._served else DEFAULT_UI
        run = f"/runs/{self._parent}" if self._parent else ""
        return f"{base}/#/experiments/{self._experiment_id}{run}"

    @property
    def _served(self) -> bool:
        return self.tracking_uri.startswith(("http://", "https://"))

    def __call__(self, event: Event) -> None:
        """Write one event; never raises."""
        if isinstance(event, StudyStarted):
            self._started, self._parent, self._rests_until = event, None, 0.0
            self._trials, self._writes, self._unwritten, self._skipped = {}, {}, {}, {}
        if isinstance(event, SourceSkipped):
            self._skipped[event.source] = event.reason
        if isinstance(event, TrialFinished):
            self._unwritten[event.number] = event
        last = isinstance(event, (StudyFinished, StudyFailed))
        if self._started is None or (time.monotonic() < self._rests_until and not last):
            return
        self._attempt("write to it", lambda: self._take(event))

    def _take(self, event: Event) -> None:
        assert self._started is not None
        if self._parent is None:
            self._parent = self._start_study(self._started)
        for finished in list(self._unwritten.values()):
            try:
                self._finish_trial(finished)
            except MlflowException as error:
                if error.error_code == "INVALID_PARAMETER_VALUE":
                    del self._unwritten[finished.number]  # it would be refused each time, and hold up what follows
                raise
        self._write(event)

    @singledispatchmethod
    def _write(self, event: Event) -> None:
        """Events without a place in MLflow, and those that `_take` has dealt with."""

    @_write.register
    def _(self, event: SourceProbed) -> None:
        if self._skipped.pop(event.source, None) is not None:
            self._tag_skipped_sources()

    @_write.register
    def _(self, event: SourceSkipped) -> None:
        self._tag_skipped_sources()

    @_write.register
    def _(self, event: TrialStarted) -> None:
        tags = {"mlflow.parentRunId": self._parent or "", TRIAL_TAG: str(event.number)}
        if event.role:
            tags["autotransfer.role"] = event.role
        run = self._client.create_run(self._experiment_id, run_name=f"trial {event.number}", tags=tags)
        self._trials[event.number] = run.info.run_id
        self._client.log_batch(
            run.info.run_id,
            metrics=_metrics({f"proxy.{name}": value for name, value in event.proxies.items()}),
            params=_params(event.config.to_dict()),
            synchronous=True,
        )

    @_write.register
    def _(self, event: EpochFinished) -> None:
        run_id = self._trials.get(event.number)
        if run_id is None:
            return
        metrics = _metrics({**event.metrics, "epoch_seconds": event.seconds}, step=event.epoch)
        pending = self._client.log_batch(run_id, metrics=metrics, synchronous=False)
        self._writes.setdefault(event.number, []).append(pending)

    @_write.register
    def _(self, event: StudyFailed) -> None:
        self._client.set_tag(self._parent, "autotransfer.reason", _short(event.reason))
        self._close_left_trials()
        self._client.set_terminated(self._parent, "FAILED")

    @_write.register
    def _(self, event: StudyFinished) -> None:
        parent = str(self._parent)
        folder = Path(event.folder)
        self._attempt(
            "write the summary",
            lambda: self._client.log_batch(
                parent, metrics=_metrics(event.metrics), tags=_tags(event.tags), synchronous=True
            ),
        )
        for name in _EVIDENCE:
            if (folder / name).is_file():
                path = str(folder / name)
                self._attempt("log the report", lambda path=path: self._client.log_artifact(parent, path))  # type: ignore[misc]
        self._attempt("log the recommended model", lambda: self._log_model(parent, folder, event.input_example))
        self._close_left_trials()
        self._client.set_terminated(parent, "FINISHED")

    def _start_study(self, event: StudyStarted) -> str:
        run = self._find_parent(event.study) if event.resumed else None
        if run is None:
            tags = {STUDY_TAG: event.study}
            run = self._client.create_run(self._experiment_id, run_name=event.study, tags=tags)
        elif not event.joined:
            self._client.update_run(run.info.run_id, status="RUNNING")
            self._close_stale_trials(run.info.run_id)
        params = {**event.params, "metric": event.metric}
        new = {name: value for name, value in params.items() if name not in run.data.params}
        self._client.log_batch(run.info.run_id, params=_params(new), tags=_tags(event.tags), synchronous=True)
        return str(run.info.run_id)

    def _find_parent(self, study: str) -> Run | None:
        runs = self._search(f"tags.`{STUDY_TAG}` = {_quoted(study)}")
        return next((run for run in runs if run.data.tags.get(STUDY_TAG) == study), None)

    def _close_stale_trials(self, parent: str) -> None:
        """Trials in flight when the study's process was killed: they are tried again as new runs."""
        for run in self._search(f"tags.`mlflow.parentRunId` = '{parent}' and attributes.status = 'RUNNING'"):
            if TRIAL_TAG in run.data.tags:
                self._close_interrupted(run.info.run_id)

    def _close_left_trials(self) -> None:
        for run_id in self._trials.values():
            self._close_interrupted(run_id)
        self._trials.clear()

    def _close_interrupted(self, run_id: str) -> None:
        tags = _tags(
            {"autotransfer.state": "interrupted", "autotransfer.reason": "the study stopped during this trial"}
        )
        self._client.log_batch(run_id, tags=tags, synchronous=True)
        self._client.set_terminated(run_id, "KILLED")

    def _finish_trial(self, event: TrialFinished) -> None:
        run_id = self._trials.get(event.number)
        if run_id is not None:
            for pending in self._writes.pop(event.number, []):
                self._attempt("write an epoch", pending.wait)
            metrics = {"seconds": event.seconds}
            if event.value is not None:
                metrics["value"] = event.value
            tags = {"autotransfer.state": event.state, "autotransfer.reason": event.reason}
            self._client.log_batch(run_id, metrics=_metrics(metrics), tags=_tags(tags), synchronous=True)
            self._client.set_terminated(run_id, _RUN_STATUS[event.state])
        self._trials.pop(event.number, None)
        self._unwritten.pop(event.number, None)

    def _tag_skipped_sources(self) -> None:
        lines = [f"{source}: {reason}" for source, reason in self._skipped.items()]
        self._client.set_tag(self._parent, "autotransfer.skipped_sources", _short("\n".join(lines)))

    def _log_model(self, parent: str, folder: Path, image: str) -> None:
        from autotransfer.tracking.pyfunc_model import log_model, register_model

        assert self._started is not None
        dataset = str(self._started.params.get("dataset") or self._started.study)
        model_id = log_model(self._client, parent, folder, image)
        register_model(self._client, model_id, parent, registered_name(dataset), alias="recommended")

    def _search(self, query: str) -> list[Run]:
        runs: list[Run] = []
        token = None
        while True:
            page = self._client.search_runs(
                [self._experiment_id], query, order_by=["attributes.start_time DESC"], page_token=token
            )
            runs.extend(page)
            token = page.token
            if not token:
                return runs

    def _find_or_create_experiment(self, name: str, artifact_location: str | None) -> str:
        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name, artifact_location=artifact_location))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
            found = self._client.get_experiment_by_name(name)  # another process was faster
        if found.lifecycle_stage == "deleted":
            self._client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _attempt(self, what: str, action: Callable[[], Any]) -> None:
        """Do it; where the store fails, warn once of each kind and leave the store alone for a while."""
        try:
            action()
        except Exception as error:  # a listener must not raise, whatever the store or its driver raises
            self._rests_until = time.monotonic() + _REST_SECONDS
            level = logging.DEBUG if what in self._told else logging.WARNING
            self._told.add(what)
            _logger.log(
                level,
                "MLflow at %s: could not %s: %s The study goes on; its record there may be incomplete.",
                self._shown_uri,
                what,
                _first_line(error, self.tracking_uri),
            )


def registered_name(dataset: str) -> str:
    """The registered model's name for a dataset given as name, path or address.

    >>> registered_name("/data/My photos/")
    'autotransfer-My-photos'
    """
    last = re.split(r"[/\\]", dataset.rstrip("/\\"))[-1]
    return f"autotransfer-{re.sub(r'[^A-Za-z0-9._-]+', '-', last).strip('-.') or 'dataset'}"


def _check_reachable(uri: str) -> None:
    """Connect once, quickly: MLflow itself tries a database for minutes before it gives up."""
    if uri.startswith(("http://", "https://")):
        import requests

        # Whatever the server answers, it is there; what it refuses, MLflow's first call says better.
        requests.get(uri, timeout=_CONNECT_SECONDS, stream=True).close()
    elif re.match(r"(sqlite|postgresql|mysql|mssql)\b", uri):
        import sqlalchemy

        options = {"connect_timeout": _CONNECT_SECONDS} if uri.startswith(("postgresql", "mysql")) else {}
        engine = sqlalchemy.create_engine(uri, connect_args=options)
        try:
            with engine.connect() as connection:
                sqlalchemy.inspect(connection).get_table_names()
        finally:
            engine.dispose()


def _sqlite_file(uri: str) -> Path | None:
    match = re.match(r"sqlite(?:\+\w+)?:///([^?]+)", uri)
    return None if match is None or match[1] == ":memory:" else Path(match[1]).absolute()


def _without_password(uri: str) -> str:
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", uri)


def _first_line(error: Exception, uri: str) -> str:
    text = (str(error).strip() or type(error).__name__).splitlines()[0].replace(uri, _without_password(uri))
    return text if text.endswith(".") else f"{text}."


def _quoted(text: str) -> str:
    return f'"{text}"' if "'" in text else f"'{text}'"


def _short(text: Any) -> str:
    return str(text)[:_LONGEST_TEXT]


def _metrics(values: Mapping[str, float], step: int = 0) -> list[Metric]:
    now = int(time.time() * 1000)
    return [Metric(re.sub(r"[^\w\-. :/]", "_", name), float(value), now, step) for name, value in values.items()]


def _params(values: Mapping[str, Any]) -> list[Param]:
    return [Param(name, _short(value)) for name, value in values.items()]


def _tags(values: Mapping[str, str]) -> list[RunTag]:
    return [RunTag(name, _short(value)) for name, value in values.items()]
