"""The MLflow mirror against real SQLite stores."""

import base64
import dataclasses
import json
import time
import zlib
from pathlib import Path

import pytest
import study_views

from ablate import schema, tracking, tracking_runs
from ablate.home import Home
from ablate.tracking import Exporter, TrackingError, links

TRACKING = schema.Tracking(name="mlflow")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """One store for all tests of this file: making one takes a second or two."""
    return Home(tmp_path_factory.mktemp("home"))


def read(home: Home, study: str):
    client = tracking.connect(home, TRACKING)
    experiment = client.get_experiment_by_name(study)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    return client, experiment, {run.data.tags["ablate.key"]: run for run in runs}


def test_every_trial_and_arm_is_one_flat_run_with_the_views_numbers(home: Home):
    view = study_views.view(name="numbers-1")
    assert Exporter(home, TRACKING).sync(view) >= len(view.trials)
    client, _, runs = read(home, view.name)
    assert len(runs) == len(view.trials) + len(view.plan.arms) + 1
    assert not any("mlflow.parentRunId" in run.data.tags for run in runs.values())
    for row in view.trials:
        run, result = runs[f"trial/{row.number}"], row.result
        assert result is not None
        assert run.data.metrics["val/loss"] == result.val_loss
        assert run.data.metrics["val/bpb"] == result.val_bpb
        assert run.data.metrics["cost/charged_mflop"] == row.charged_mflop
        assert run.data.params["lr"] == f"{row.spec.lr:.4g}"
        assert run.data.params["compress_ratios"] == view.plan.arm(row.spec.arm).variant.schedule
        assert run.data.tags["ablate.outcome"] == result.outcome
        assert run.info.status == "FINISHED"
        assert run.info.end_time == int(row.ended_at * 1000)
        assert run.inputs.dataset_inputs[0].dataset.digest == view.plan.data_fingerprint[:36]
    row = view.trials[40]
    assert row.result is not None
    assert runs["trial/40"].info.run_name == f"040 {row.spec.arm} s{row.spec.replicate} confirm"
    history = client.get_metric_history(runs["trial/40"].info.run_id, "curve/val_loss")
    expected = {
        round(1000 * p.step / row.spec.steps): p.val_loss for p in row.result.curve if p.val_loss is not None
    }
    assert {m.step: m.value for m in history} == expected
    assert len(history) == len(expected)
    assert max(expected) == 1000
    for verdict in view.verdicts:
        metrics = runs[f"arm/{verdict.arm}"].data.metrics
        assert (metrics["delta/mean"], metrics["delta/low"], metrics["delta/high"]) == (
            verdict.delta,
            verdict.low,
            verdict.high,
        )
        losses = [
            r.result.val_loss
            for r in view.trials
            if r.spec.arm == verdict.arm and r.spec.phase == "confirm" and r.result and r.result.val_loss
        ]
        assert metrics["val/loss"] == pytest.approx(sum(losses) / len(losses))
        assert metrics["val/n"] == verdict.n


def test_nothing_changed_adds_nothing_in_this_process_or_a_new_one(home: Home):
    view = study_views.view(name="again-1")
    exporter = Exporter(home, TRACKING)
    exporter.sync(view)
    assert exporter.sync(view) == 0
    assert Exporter(home, TRACKING).sync(view) == 0
    _, _, runs = read(home, view.name)
    assert len(runs) == len(view.trials) + len(view.plan.arms) + 1


def test_a_running_study_grows_and_ends(home: Home):
    exporter = Exporter(home, TRACKING)
    exporter.sync(study_views.view("running", 10, name="growing-1"))
    _, _, runs = read(home, "growing-1")
    assert runs["trial/10"].info.status == "RUNNING"
    assert "curve/train_loss" in runs["trial/10"].data.metrics
    assert "trial/20" not in runs, "a trial that waits has no run"
    assert runs["study"].info.status == "RUNNING"
    done = study_views.view(name="growing-1")
    exporter.sync(done)
    client, _, runs = read(home, "growing-1")
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    history = client.get_metric_history(runs["trial/10"].info.run_id, "curve/train_loss")
    assert len({m.step for m in history}) == len(history), "points seen while running are not written twice"


def test_an_interrupted_export_is_completed(home: Home, monkeypatch: pytest.MonkeyPatch):
    view = study_views.view(name="torn-1")
    exporter = Exporter(home, TRACKING)
    calls = []

    def fail(*args: object) -> None:
        calls.append(args)
        if len(calls) == 7:
            raise OSError("disk full")

    original = Exporter._write

    def write(self: Exporter, client, view, content) -> None:
        original(self, client, view, content)
        fail(content)

    monkeypatch.setattr(Exporter, "_write", write)
    with pytest.raises(TrackingError, match="disk full"):
        exporter.sync(view)
    assert exporter.sync(view) > 0
    _, _, runs = read(home, view.name)
    assert len(runs) == len(view.trials) + len(view.plan.arms) + 1


def test_what_is_not_finite_is_left_out(home: Home):
    view = study_views.view(name="finite-1")
    Exporter(home, TRACKING).sync(view)
    _, _, runs = read(home, view.name)
    metrics = runs["trial/0"].data.metrics
    assert "diag/bad" not in metrics
    assert "loss/balance" not in metrics
    assert metrics["diag/grad_norm"] == 0.4
    assert all(abs(value) < 1e300 for run in runs.values() for value in run.data.metrics.values())


def test_names_of_any_length_and_content_stay_text(home: Home):
    payload = '<img src=x onerror=alert(1)>"]{}' + "x" * 900
    view = study_views.view(
        name="payload-1",
        arms={"base": "dense*4", payload: "swa*4"},
        question="<script>alert(1)</script> [a](b)",
    )
    Exporter(home, TRACKING).sync(view)
    _, experiment, runs = read(home, view.name)
    assert "<script>" not in experiment.tags["mlflow.note.content"]
    assert "&lt;script&gt;" in experiment.tags["mlflow.note.content"]
    names = [run.data.params["arm"] for key, run in runs.items() if key.startswith("trial/")]
    assert any(name.startswith("<img") and len(name) <= 500 for name in names)


def test_runs_say_where_they_come_from(home: Home):
    view = study_views.view(name="origin-1")
    report = home.report(view.name)
    report.mkdir(parents=True)
    (report / "report.html").write_text("<p>report</p>")
    exporter = Exporter(home, TRACKING)
    exporter.sync(view)
    client, _, runs = read(home, view.name)
    assert runs["trial/0"].data.tags["mlflow.source.git.commit"] == view.provenance["git_commit"]
    assert runs["study"].data.tags["provenance.torch"] == view.provenance["torch"]
    run_id = runs["study"].info.run_id
    assert {f.path for f in client.list_artifacts(run_id)} == {"config.json", "report"}
    stored = Path(client.download_artifacts(run_id, "config.json")).read_text()
    assert schema.from_dict(json.loads(stored)) == view.plan.run
    (report / "report.html").write_text("<p>another report</p>")
    assert exporter.sync(view) == 1
    assert "another" in Path(client.download_artifacts(run_id, "report/report.html")).read_text()


def test_views_are_tags_that_mlflow_can_unpack(home: Home):
    view = study_views.view(name="views-1")
    Exporter(home, TRACKING).sync(view)
    _, experiment, runs = read(home, view.name)
    found = links(home, TRACKING, view, "http://127.0.0.1:9999")
    assert all(url.startswith("http://127.0.0.1:9999/mlflow/#/") for url in found.values())
    for url in found.values():
        if "viewStateShareKey=" in url:
            key = url.split("viewStateShareKey=")[1].split("&")[0]
            kind, _, packed = experiment.tags[f"mlflow.sharedViewState.{key}"].partition(";")
            assert kind == "deflate"
            state = json.loads(zlib.decompress(base64.b64decode(packed)))
            assert state["searchFilter"].startswith("tags.`ablate.kind`")
    assert all(runs[f"arm/{arm.name}"].info.run_id in found["Arms side by side"] for arm in view.plan.arms)


def test_links_of_a_study_that_is_not_mirrored(home: Home, tmp_path: Path):
    view = study_views.view(name="absent-1")
    assert links(Home(tmp_path / "nothing"), TRACKING, view) == {}
    assert not (tmp_path / "nothing").exists()


def test_a_server_that_is_not_there_is_noticed_soon(tmp_path: Path):
    away = dataclasses.replace(TRACKING, uri="http://127.0.0.1:9")
    begun = time.monotonic()
    with pytest.raises(TrackingError, match=r"127\.0\.0\.1:9"):
        Exporter(Home(tmp_path), away).sync(study_views.view("running", 3))
    assert time.monotonic() - begun < 20


def test_parameters_are_what_tells_arms_apart():
    params = tracking_runs.arm_params(study_views.plan())
    assert params["v4"]["compress_ratios"] == "swa,csa@4,hca@16,csa@4"
    assert params["v4"]["residual"] == "mhc"
    assert "optimizer.grad_clip" not in params["v4"]
    assert tracking_runs.differing_params(study_views.plan()) == ["compress_ratios"]


def test_a_note_of_any_study_fits_into_mlflow(home: Home):
    arms = {"b" * 10_000: "dense*4"} | {f"{i:02d}" + "_" * 10_000: "swa*4" for i in range(50)}
    view = study_views.view(name="long-1", arms=arms, question="Q" * 10_000, replicates=1)
    note = tracking_runs.note(view)
    assert len(note) <= 20_000
    shown = note.count("\n- ") - 1
    assert 0 < shown < 50
    assert note.endswith(f"- and {50 - shown} more")
    few = dataclasses.replace(view, trials=view.trials[:2], verdicts=view.verdicts[:2])
    assert Exporter(home, TRACKING).sync(few) > 0
