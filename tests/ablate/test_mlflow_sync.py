"""`ablate mlflow sync`: the mirror made anew from the study database, in the home folder and on a server."""

import dataclasses
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
import small_studies
from typer.testing import CliRunner

from ablate import cli, schema, study, tracking
from ablate.home import Home
from ablate.records import StudyView


def finished(home: Home, uri: str | None = None) -> StudyView:
    """A small study that ran to its end without being mirrored."""
    plan = small_studies.plan(points=3, extensions=0)
    run = dataclasses.replace(plan.run, tracking=schema.Tracking(name="mlflow", uri=uri))
    plan = dataclasses.replace(plan, run=run)
    study.create(plan, home)
    small_studies.finish(home, plan)
    return study.view(plan.study, home)


def same(home: Home, view: StudyView) -> None:
    """The store says what the study says, trial by trial."""
    client = tracking.connect(home, view.plan.run.tracking)
    experiment = client.get_experiment_by_name(view.name)
    assert experiment is not None
    runs = {r.data.tags["ablate.key"]: r for r in client.search_runs([experiment.experiment_id])}
    assert len(runs) == len(view.trials) + len(view.plan.arms) + 1
    for row in view.trials:
        assert row.result is not None
        assert runs[f"trial/{row.number}"].data.metrics["val/loss"] == row.result.val_loss
        assert runs[f"trial/{row.number}"].data.tags["ablate.arm"] == row.spec.arm
    for verdict in view.verdicts:
        assert runs[f"arm/{verdict.arm}"].data.metrics["delta/mean"] == verdict.delta


def test_a_lost_mirror_is_made_anew(tmp_path: Path):
    home = Home(tmp_path).create()
    view = finished(home)
    for _ in range(2):
        said = CliRunner().invoke(cli.app, ["mlflow", "sync", view.name, "--home", str(home.root)])
        assert said.exit_code == 0, said.output
        assert str(home.mlflow) in said.output
        same(home, view)
        for file in home.root.glob("mlflow.db*"):
            file.unlink()
        shutil.rmtree(home.artifacts)


def sync(home: Home) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ablate.cli", "mlflow", "sync", "--home", str(home.root), "--json"]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


class Server:
    """A real `mlflow server` over one folder."""

    def __init__(self, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.uri, self.folder = f"http://127.0.0.1:{self.port}", folder

    def __enter__(self) -> "Server":
        self.folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "mlflow", "server", "--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.folder}/store.db"]
        command += ["--artifacts-destination", f"{self.folder}/artifacts"]
        quiet = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
        self._process = subprocess.Popen(
            command, env=quiet, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        for _ in range(600):
            assert self._process.poll() is None, "the server ended"
            try:
                with urlopen(f"{self.uri}/health", timeout=5):
                    return self
            except (URLError, OSError):
                time.sleep(0.1)
        raise AssertionError("the server does not start")

    def __exit__(self, *_: object) -> None:
        os.killpg(self._process.pid, 15)  # its workers too
        self._process.wait(30)


@pytest.mark.slow
def test_a_tracking_server_that_stops_and_starts(tmp_path: Path):
    home = Home(tmp_path / "home").create()
    server = Server(tmp_path / "server")
    view = finished(home, server.uri)
    refused = sync(home)
    assert refused.returncode == 1
    assert server.uri in refused.stderr
    assert "Traceback" not in refused.stderr
    with server:
        first = sync(home)
        assert first.returncode == 0, first.stderr
        told = json.loads(first.stdout)
        assert told["store"] == server.uri
        assert all(url.startswith(f"{server.uri}/#/") for url in told["links"].values())
        same(home, view)
    assert sync(home).returncode == 1, "it is gone"
    with server:
        assert json.loads(sync(home).stdout)["changed"] == 0, "it has kept everything"
    shutil.rmtree(server.folder)
    with server:
        assert sync(home).returncode == 0
        same(home, view)
    assert study.view(view.name, home) == view, "the study itself is never touched"
