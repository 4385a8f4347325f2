"""The MLflow mirror of a study. Our own tables hold the truth, and the mirror can be rebuilt from them.

One process writes it, in batches, while a study runs and once at its end. The one module of `ablate` that
imports mlflow, and only when it is used.
"""

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from filelock import FileLock

from ablate import schema
from ablate.errors import AblateError
from ablate.home import Home
from ablate.records import StudyView
from ablate.tracking_runs import Metric, RunContent, contents, note
from ablate.tracking_views import tags as view_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient

PORTAL = "http://127.0.0.1:8720"
"""Where `ablate dashboard` serves the store by default, under `/mlflow`."""

PAGES = {
    "All trials": "table&compareRunsMode=TABLE",
    "Charts": "charts&compareRunsMode=CHART",
    "Means by arm": "arms&compareRunsMode=CHART",
    "Difference to the baseline": "difference&compareRunsMode=CHART",
    "Arms side by side": "",
}
"""Comparisons that `links` knows, and the page state that each opens; the last is MLflow's own comparison."""

_KEY, _DIGEST, _NOTE = "ablate.key", "ablate.digest", "mlflow.note.content"
_BATCH = 1000  # metrics per call that MLflow takes


class TrackingError(AblateError):
    """The mirror could not be written or read. The study itself is not touched."""


@dataclass
class _Known:
    """A run that the store has: what was last written to it."""

    run_id: str
    digest: str = ""
    status: str = ""
    sent: set[tuple[str, int, int]] = field(default_factory=set)


class Exporter:
    """Brings a study's experiment up to date, again and again. For one thread.

    Args:
        home: holds the SQLite store and the artifacts unless `tracking.uri` names another store.
    """

    def __init__(self, home: Home, tracking: schema.Tracking):
        self._home, self._tracking = home, tracking
        self._experiment = ""
        self._known: dict[str, _Known] = {}
        self._tags: dict[str, str] = {}
        self._client: MlflowClient | None = None

    def sync(self, view: StudyView) -> int:
        """Write what has changed since the last time; returns how many runs were created or updated.

        Safe to repeat, to interrupt, and to call from a new process.

        Raises:
            TrackingError: the store is out of reach or refuses; the next call starts from what it then has.
        """
        try:
            with self._alone():
                return self._sync(view)
        except Exception as error:  # whatever a tracking server can come up with
            self._client, self._experiment = None, ""
            raise _trouble(self._home, self._tracking, error) from error

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Two studies of one home may start together; MLflow cannot create one SQLite store twice at once."""
        if self._tracking.uri is not None:
            yield
            return
        self._home.root.mkdir(parents=True, exist_ok=True)
        with FileLock(self._home.mlflow.with_suffix(".lock"), timeout=120):
            yield

    def _sync(self, view: StudyView) -> int:
        if self._client is None or self._experiment_name != view.name:
            self._open(view.name)
        assert self._client is not None
        changed = 0
        for content in contents(view):
            known = self._known.get(content.key)
            if known is None or known.digest != content.digest:
                self._write(self._client, view, content)
                changed += 1
        changed += self._artifacts(self._client, view)
        arm_runs = {arm.name: self._known[f"arm/{arm.name}"].run_id for arm in view.plan.arms}
        for key, value in {_NOTE: note(view), **view_tags(view, arm_runs)}.items():
            if self._tags.get(key) != value:
                self._client.set_experiment_tag(self._experiment, key, value)
                self._tags[key] = value
        return changed

    def _open(self, study: str) -> None:
        """Connect, find or make the experiment, and learn which runs it has."""
        client = connect(self._home, self._tracking)
        experiment = client.get_experiment_by_name(study)
        if experiment is None:
            location = None if self._tracking.uri else (self._home.artifacts / study).as_uri()
            self._experiment = client.create_experiment(study, artifact_location=location)
            self._tags = {}
        else:
            if experiment.lifecycle_stage == "deleted":
                client.restore_experiment(experiment.experiment_id)
            self._experiment, self._tags = experiment.experiment_id, dict(experiment.tags)
        self._known = {
            run.data.tags[_KEY]: _Known(run.info.run_id, run.data.tags.get(_DIGEST, ""), run.info.status)
            for run in _runs(client, self._experiment)
            if _KEY in run.data.tags
        }
        self._client, self._experiment_name = client, study

    def _write(self, client: "MlflowClient", view: StudyView, content: RunContent) -> None:
        """Create or update one run. The digest is its last write, so an interrupted one is written again."""
        from mlflow.entities import Param, RunTag

        known = self._known.get(content.key)
        if known is None:
            run = client.create_run(
                self._experiment,
                start_time=content.started,
                tags={_KEY: content.key, **content.tags},
                run_name=content.name,
            )
            known = self._known[content.key] = _Known(run.info.run_id, status="RUNNING")
            if content.key.startswith("trial/"):
                client.log_inputs(known.run_id, datasets=[_dataset(view)])
        new = [m for m in content.metrics if (m.key, m.step, m.timestamp) not in known.sent]
        for start in range(0, len(new), _BATCH):
            client.log_batch(known.run_id, metrics=[_metric(m) for m in new[start : start + _BATCH]])
        known.sent |= {(m.key, m.step, m.timestamp) for m in new}
        if content.ended is not None:
            client.set_terminated(known.run_id, content.status, content.ended)
        elif content.status != known.status:
            client.update_run(known.run_id, content.status)
        known.status = content.status
        tags = {**content.tags, _DIGEST: content.digest}
        client.log_batch(
            known.run_id,
            params=[Param(key, value) for key, value in content.params.items()],
            tags=[RunTag(key, value) for key, value in tags.items()],
        )
        known.digest = content.digest

    def _artifacts(self, client: "MlflowClient", view: StudyView) -> int:
        """The configuration, and the report once it is there; each file again only when it has changed."""
        run_id = self._known["study"].run_id
        folder = self._home.report(view.name)
        files = sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else []
        state = ";".join(f"{p.name}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in files)
        if self._tags.get("ablate.report") == state:
            return 0
        if "ablate.report" not in self._tags:
            client.log_dict(run_id, schema.to_dict(view.plan.run), "config.json")
        if files:
            client.log_artifacts(run_id, str(folder), "report")
        client.set_experiment_tag(self._experiment, "ablate.report", state)
        self._tags["ablate.report"] = state
        return 1


def links(home: Home, tracking: schema.Tracking, view: StudyView, base_url: str = PORTAL) -> dict[str, str]:
    """Pages of MLflow that compare this study's runs, by what they show; empty where nothing is mirrored yet.

    Args:
        base_url: where the portal is; a tracking server (`tracking.uri=http…`) is linked to directly.

    Raises:
        TrackingError: the store cannot be read.
    """
    if tracking.uri is None and not home.mlflow.exists():
        return {}
    try:
        client = connect(home, tracking)
        experiment = client.get_experiment_by_name(view.name)
        arms = {}
        if experiment is not None:
            found = _runs(client, experiment.experiment_id, "tags.`ablate.kind` = 'arm'")
            arms = {run.data.tags["ablate.arm"]: run.info.run_id for run in found}
    except Exception as error:  # as above
        raise _trouble(home, tracking, error) from error
    if experiment is None:
        return {}
    server = tracking.uri is not None and tracking.uri.startswith("http")
    root = f"{str(tracking.uri).rstrip('/') if server else f'{base_url}/mlflow'}/#"
    number = experiment.experiment_id
    page = f"{root}/experiments/{number}/runs?workflowType=machine_learning&viewStateShareKey="
    order = [arm.name for arm in view.plan.arms if arm.name in arms]
    runs = quote("[" + ",".join(f'"{arms[name]}"' for name in order) + "]", safe="")
    side_by_side = f"{root}/compare-runs?runs={runs}&experiments=%5B%22{number}%22%5D"
    return {title: f"{page}{end}" if end else side_by_side for title, end in PAGES.items()}


def _trouble(home: Home, tracking: schema.Tracking, error: Exception) -> TrackingError:
    return TrackingError(f"{where(home, tracking)}: {type(error).__name__}: {error}")


def where(home: Home, tracking: schema.Tracking) -> str:
    """The store's address."""
    return tracking.uri or f"sqlite:///{home.mlflow}"


def connect(home: Home, tracking: schema.Tracking) -> "MlflowClient":
    """A client of the store; one in the home folder is created where there is none (seconds), in WAL mode."""
    quiet()
    from mlflow import MlflowClient

    if tracking.uri is None:
        home.artifacts.mkdir(parents=True, exist_ok=True)
        _write_ahead(home.mlflow)
    return MlflowClient(where(home, tracking))


def quiet() -> None:
    """Settings before mlflow is imported: no telemetry, an absent server noticed in seconds, no chatter."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # stdout is the command's answer
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _write_ahead(path: Path) -> None:
    """Readers and the one writer of a SQLite file then do not wait for each other; the mode persists."""
    with sqlite3.connect(path, timeout=60) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
    connection.close()


def _runs(client: "MlflowClient", experiment: str, where: str = "") -> Iterator[Any]:
    token = None
    while True:
        page = client.search_runs([experiment], where, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _metric(metric: Metric) -> Any:
    from mlflow.entities import Metric as Entity

    return Entity(metric.key, metric.value, metric.timestamp, metric.step)


def _dataset(view: StudyView) -> Any:
    """The corpus as MLflow's dataset column shows it; a digest there has at most 36 characters."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = view.plan.run.data
    dataset = Dataset(
        name=data.name if data.name != "???" else data.source,
        digest=view.plan.data_fingerprint[:36],
        source_type="local" if data.source == "stdlib" or data.files else "hugging_face",
        source=data.source,
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])
