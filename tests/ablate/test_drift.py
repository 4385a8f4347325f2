"""A study goes on only under the conditions that it began with, or by force, and then everybody is told."""

import dataclasses
import json
import signal
import sys
from pathlib import Path

import fake_training
import pytest
import report_pages
import small_studies

from ablate import config, data, drift, planning, questions, registration, report, study
from ablate.errors import AblateError, BadInputError
from ablate.home import Home
from ablate.records import Plan
from ablate.scheduler import Scheduler
from ablate.worker import Worker

PART = "parts_of_my_own"


@pytest.fixture
def part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of components, as a person may have one."""
    folder = tmp_path / "code"
    (folder / PART).mkdir(parents=True)
    file = folder / PART / "__init__.py"
    file.write_text("GATE = 1\n")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, PART, raising=False)  # that of another test's folder
    return file


@pytest.fixture
def plan(tmp_path: Path, part: Path) -> Plan:
    """A real plan over a text of its own, trained by pretence."""
    (tmp_path / "words.txt").write_text("\n".join(f"the layer learns {i}" for i in range(300)))
    loaded = config.load(
        [
            "sweep=smoke",
            "data=text",
            f"data.files=[{tmp_path / 'words.txt'}]",
            "data.tokenizer=bytes",
            "data.val_tokens=64",
            "trainer.seq_len=32",
            "trainer.device=cpu",
            "budget.contingency=0.5",
            f"plugins=[{PART}]",
        ]
    )
    return planning.make_plan(loaded, Home(tmp_path))


@pytest.fixture
def home(tmp_path: Path, plan: Plan) -> Home:
    """Holds the study with one trial done and one left at a checkpoint."""
    home = Home(tmp_path)
    study.create(plan, home)
    taken = []

    def train(spec, corpus, folder, meter):
        taken.append(spec)
        if len(taken) == 1:
            return fake_training.train(spec, corpus, folder, meter, every=1)
        meter.debit(0, 1)
        (folder / "step-000000001").mkdir()
        worker.asked_by = signal.SIGTERM
        meter.debit(1, 1)
        raise AssertionError("a worker that is asked to stop pays for nothing more")

    worker = Worker(home, plan.study, "w1", train)
    scheduler = Scheduler(home, plan.study)
    worker._idle = scheduler.tick  # type: ignore[method-assign]
    worker.run()
    scheduler.close()
    states = [row.state for row in study.view(plan.study, home).trials]
    assert states.count("complete") == 1
    assert set(states) == {"complete", "queued"}
    return home


def deviations(home: Home, plan: Plan) -> list[str]:
    return registration.deviations(study.view(plan.study, home))


def checkpoints(home: Home, plan: Plan) -> list[Path]:
    return list(home.trial(plan.study, 0).parent.glob("*/step-*"))


def test_the_same_conditions_go_on_without_a_word(home: Home, plan: Plan) -> None:
    study.create(drift.replanned(plan, [], home), home)
    study.create(plan, home)
    assert deviations(home, plan) == []
    assert len(checkpoints(home, plan)) == 1


def test_changed_code_is_refused_by_its_name_and_recorded_when_forced(
    home: Home, plan: Plan, part: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = study.view(plan.study, home)
    key = f"code_{PART}"
    part.write_text("GATE = 2\n")
    with pytest.raises(BadInputError, match=rf"{key} was {before.provenance[key]}, now \w+") as refused:
        study.create(plan, home)
    assert "--force" in str(refused.value)
    assert "code_components" not in str(refused.value), "only what differs"
    assert study.view(plan.study, home) == before, "a refusal changes nothing"

    study.create(plan, home, force=True)
    view = study.view(plan.study, home)
    (told,) = registration.deviations(view)
    assert f"{key} was {before.provenance[key]}, now {view.provenance[key]}" in told
    assert view.provenance[registration.HASH] == before.provenance[registration.HASH]
    assert [row.spec for row in view.trials] == [row.spec for row in before.trials]
    assert len(checkpoints(home, plan)) == 1, "the same trials, so their checkpoints are good"
    study.create(plan, home)
    assert len(deviations(home, plan)) == 1, "agreed once, not asked again"
    small_studies.finish(home, plan)
    questions.verdict(plan.study, str(tmp_path))
    assert key in capsys.readouterr().out
    page = report_pages.Page(
        report.write(study.view(plan.study, home), tmp_path / "report")["HTML report"].read_text()
    )
    assert told in " ".join(page.words)


def test_nothing_is_asked_before_anything_was_trained(tmp_path: Path, plan: Plan, part: Path) -> None:
    home = Home(tmp_path / "fresh")
    study.create(plan, home)
    part.write_text("GATE = 2\n")
    study.create(plan, home)
    study.create(plan, home)
    assert deviations(home, plan) == []


def test_changed_data_is_refused_and_when_forced_begins_unfinished_trials_anew(
    home: Home, plan: Plan, tmp_path: Path
) -> None:
    before = study.view(plan.study, home)
    with (tmp_path / "words.txt").open("a") as file:
        file.write("\none more line")
    now = drift.replanned(plan, [], home)
    assert now.data_fingerprint == data.fingerprint(plan.run.data) != plan.data_fingerprint
    wanted = f"data was {plan.data_fingerprint}, now {now.data_fingerprint}"
    with pytest.raises(BadInputError, match=wanted):
        study.create(now, home)
    assert study.view(plan.study, home) == before

    study.create(now, home, force=True)
    (told,) = deviations(home, plan)
    assert wanted in told
    assert checkpoints(home, plan) == []
    view = small_studies.finish(home, now)
    for old, new in zip(before.trials, view.trials, strict=False):
        done = old.state == "complete"
        assert new.spec.data_fingerprint == (plan if done else now).data_fingerprint
        assert (new.spec.fingerprint == old.spec.fingerprint) == done
    lost = next(row for row in view.trials if row.attempts == 2)
    assert {a.phase: a.waste for a in view.accounts}["contingency"] == lost.spec.step_mflop
    assert lost.charged_mflop - lost.evaluation_mflop == (lost.spec.steps + 1) * lost.spec.step_mflop


def test_changed_configuration_is_refused_and_when_forced_is_that_of_later_trials(
    home: Home, plan: Plan
) -> None:
    before = study.view(plan.study, home)
    now = drift.replanned(plan, ["optimizer.grad_clip=0.25", "launcher.workers=3"], home)
    with pytest.raises(BadInputError, match=r"optimizer.grad_clip was 1.0, now 0.25") as refused:
        study.create(now, home)
    assert "launcher" not in str(refused.value)
    assert study.view(plan.study, home) == before

    study.create(now, home, force=True)
    view = small_studies.finish(home, now)
    assert view.plan.workers == 3
    assert any("optimizer.grad_clip was 1.0, now 0.25" in text for text in registration.deviations(view))
    for row in view.trials:
        done = row.spec.fingerprint in {r.spec.fingerprint for r in before.trials if r.state == "complete"}
        assert row.spec.run["optimizer"]["grad_clip"] == (1.0 if done else 0.25)
    assert len({row.spec.fingerprint for row in view.trials}) == len(view.trials) == 14


def test_where_it_runs_may_change_freely(home: Home, plan: Plan) -> None:
    changes = ["launcher.workers=3", "launcher.lease_seconds=7", "tracking.enabled=false"]
    study.create(drift.replanned(plan, changes, home), home)
    kept = study.view(plan.study, home).plan
    assert (kept.workers, kept.run.launcher.lease_seconds, kept.run.tracking.enabled) == (3, 7, False)
    assert deviations(home, plan) == []


@pytest.mark.parametrize(
    "change", ["trainer.batch_size=4", "sweep.confirm.replicates=3", "model.head_dim=32"]
)
def test_what_changes_the_cost_is_another_study(home: Home, plan: Plan, change: str) -> None:
    with pytest.raises(BadInputError, match="another study"):
        drift.replanned(plan, [change], home)


@pytest.mark.parametrize(
    ("change", "told"),
    [("trainer.checkpoint_seconds=3", "has no effect"), ("optimizer.gradclip=1", "grad_clip")],
)
def test_what_would_have_no_effect_is_refused(home: Home, plan: Plan, change: str, told: str) -> None:
    with pytest.raises(BadInputError, match=told):
        drift.replanned(plan, [change], home)


def test_a_worker_with_other_code_does_not_join_and_one_that_is_there_leaves(
    home: Home, plan: Plan, part: Path
) -> None:
    there = Worker(home, plan.study, "w1", fake_training.train)
    assert not there._over()
    part.write_text("GATE = 2\n")
    with pytest.raises(AblateError, match=f"code_{PART}"):
        Worker(home, plan.study, "w2").run()
    study.create(plan, home, force=True)
    assert there._over()
    there.run()
    assert [row.state for row in study.view(plan.study, home).trials].count("complete") == 1


def test_kernels_and_libraries_count_as_code_and_what_was_not_recorded_does_not() -> None:
    was = {"torch": "2.1", "code_kernels": "compiled", "git_commit": "a", "cpu": "one", "scipy": "1"}
    here = {
        "torch": "2.2",
        "code_kernels": "none",
        "git_commit": "b",
        "cpu": "two",
        "scipy": "2",
        "numpy": "2",
    }
    found = drift.of_code(was, here)
    assert [difference.what for difference in found] == ["torch", "code_kernels", "git_commit"]
    same = dataclasses.replace(found[0], now="2.1")
    assert json.dumps(str(same)) == '"torch was 2.1, now 2.1"'
    assert drift.of_code(was, {**was, "git_commit": "b"}) == [], "a commit alone is no other code"
