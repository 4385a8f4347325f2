"""Workers that stop making progress, in real processes: their trials go on elsewhere, and they come to nothing."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import fake_training
import pytest
import small_studies
import torch
from sqlalchemy import select

from ablate import db, reading, study
from ablate.home import Home
from ablate.records import Plan, StudyView
from ablate.scheduler import Scheduler
from ablate.worker import Worker

LEASE = 2.0


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def far_worker(home: Home, plan: Plan, seconds: float) -> subprocess.Popen[str]:
    """A worker that nobody here has started or can end."""
    root = str(Path(__file__).parents[2])
    line = [sys.executable, fake_training.__file__, str(seconds), plan.study]
    return subprocess.Popen(
        [*line, "--home", str(home.root), "--name", "far"],
        env={**os.environ, "PYTHONPATH": root},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def holds(home: Home, plan: Plan, step: int) -> bool:
    """Whether the far worker has paid for `step` steps of a trial that is not done."""
    t, a = db.trial.c, db.attempt.c
    mine = (a.study == plan.study, a.worker == "far", a.state == "running", t.paid_steps >= step)
    with db.reading(db.connect(home)) as connection:
        rows = select(t.id).select_from(db.trial.join(db.attempt, a.trial == t.id)).where(*mine)
        return connection.execute(rows).first() is not None


def stop(process: subprocess.Popen[str], home: Home, plan: Plan) -> None:
    """Stop the far worker amid a trial."""
    while True:
        wait(lambda: holds(home, plan, 5))
        small_studies.freeze(process.pid, home)
        if holds(home, plan, 5):
            return
        process.send_signal(signal.SIGCONT)


def values(view: StudyView) -> dict[str, tuple[object, ...]]:
    return {
        row.spec.fingerprint: (row.state, row.result.val_loss, row.result.tokens_hash)
        for row in view.trials
        if row.result is not None
    }


def undisturbed(home: Home, plan: Plan) -> dict[str, tuple[object, ...]]:
    """What training gives where nothing stops; `hangs` has hung already."""
    other = Home(home.root / "other")
    other.trial(plan.study, 0).mkdir(parents=True)
    (other.trial(plan.study, 0) / "hung").touch()
    study.create(plan, other)
    return values(small_studies.finish(other, plan))


def test_a_stopped_worker_loses_its_trial_and_wakes_up_to_nothing(home: Home) -> None:
    plan = small_studies.plan(extensions=0, lease=LEASE)
    study.create(plan, home)
    Scheduler(home, plan.study).tick()
    far = far_worker(home, plan, 0.05)
    try:
        stop(far, home, plan)
        view = small_studies.finish(home, plan)  # returns once the lease has ended and all is done
        assert any("no progress from far" in text for _, kind, text in view.events if kind == "lost")
        before = reading.read(plan.study, home, with_verdicts=False)
        far.send_signal(signal.SIGCONT)
        far.communicate(timeout=60)
    finally:
        far.kill()
    after = reading.read(plan.study, home, with_verdicts=False)
    assert (after.trials, after.accounts) == (before.trials, before.accounts)
    assert values(after) == undisturbed(home, plan)
    small_studies.check(home, plan)


def test_a_worker_that_is_busy_with_nothing_loses_its_trial_and_ends_itself(home: Home) -> None:
    """Its process is alive and burns time, but the step does not advance; the log says where it hangs."""
    plan = small_studies.plan(arms=("dense", "hangs"), extensions=0, lease=LEASE)
    study.create(plan, home)
    Scheduler(home, plan.study).tick()
    far = far_worker(home, plan, 0.0)
    try:
        _, said = far.communicate(timeout=120)
    finally:
        far.kill()
    assert far.returncode == 1
    assert "Timeout" in said
    assert "fake_training.py" in said
    view = small_studies.finish(home, plan)
    assert view.state == "done"
    lost = [row for row in view.trials if row.attempts > 1]
    assert [row.spec.arm for row in lost] == ["hangs"]
    assert {row.state for row in view.trials} == {"complete"}
    assert values(view) == undisturbed(home, plan)


def test_exhausted_memory_ends_the_trial_and_not_the_worker(home: Home) -> None:
    """The real error of PyTorch's allocator; no loss is recorded, and it is not tried again."""
    plan = small_studies.plan(extensions=0)
    study.create(plan, home)

    def train(spec, corpus, folder, meter):
        if spec.lr == max(plan.lr_grid) and spec.arm == "csa":
            meter.debit(0, 1)
            torch.empty(2**46)
        return fake_training.train(spec, corpus, folder, meter)

    view = small_studies.finish(home, plan, train)
    (failed,) = [row for row in view.trials if row.state == "failed"]
    assert failed.result is not None
    assert failed.result.reason.startswith("oom: RuntimeError")
    assert failed.result.val_loss is None
    assert failed.attempts == 1
    assert {row.worker for row in view.trials} == {"w1"}
    assert sum(row.state == "complete" for row in view.trials) == len(view.trials) - 1


def test_the_worker_goes_on_after_a_divergence(home: Home) -> None:
    plan = small_studies.plan(arms=("dense", "diverges"), extensions=0)
    study.create(plan, home)
    scheduler = Scheduler(home, plan.study)
    worker = Worker(home, plan.study, "w1", fake_training.train)
    worker._idle = scheduler.tick  # type: ignore[method-assign]
    worker.run()
    scheduler.close()
    view = reading.read(plan.study, home, with_verdicts=False)
    assert view.state == "done"
    for row in view.trials:
        assert row.result is not None
        half = row.spec.arm == "diverges"
        assert row.state == ("diverged" if half else "complete")
        paid = row.charged_mflop - row.evaluation_mflop
        assert paid == row.result.useful_mflop < row.spec.allowance_mflop + (not half)
