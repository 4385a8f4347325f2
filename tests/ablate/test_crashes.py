"""Processes that die at the worst moment: nothing is lost, nothing is paid twice, results stay the same."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_training
import optuna
import pytest
import small_studies
from small_studies import check, finish
from sqlalchemy import func, select

from ablate import db, reading, study
from ablate.home import Home
from ablate.scheduler import Scheduler
from ablate.search import open_storage
from ablate.worker import Worker

TESTS = Path(__file__).parents[1]


@pytest.fixture
def home(slowly_any_home):
    return slowly_any_home


def mirror(home: Home, name: str) -> optuna.Study:
    return optuna.load_study(study_name=name, storage=open_storage(home))


def crash(home: Home, name: str, fault: str) -> None:
    """A process that works alone on the study and is killed at a point."""
    code = f"""
import sys; sys.path.append({str(TESTS)!r})
from pathlib import Path
import fake_training
from ablate import scheduler, worker
from ablate.home import Home
worker.TICK_AFTER = 0.0
worker.main(Home(Path({str(home.root)!r}), {home.storage!r}), {name!r}, "dying", fake_training.train)
"""
    environment = {
        **os.environ,
        "ABLATE_TESTING": "1",
        "ABLATE_FAULT": fault,
        "PYTHONPATH": str(TESTS.parent),
    }
    ended = subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, check=False)
    assert ended.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "fault",
    [
        "claim.pre_commit:1:kill",
        "claim.post:2:kill",
        "finish.pre:3:kill",
        "ask.post:4:kill",
        "tell.post:2:kill",
    ],
)
def test_a_process_that_dies_anywhere_costs_nothing_but_time(home, fault):
    plan = small_studies.plan(extensions=0, lease=0.5)
    study.create(plan, home)
    crash(home, plan.study, fault)
    view = finish(home, plan)
    assert view.state == "done"
    assert len(view.trials) == 14
    for row in view.trials:
        assert row.result.val_loss == fake_training.loss(row.spec.arm, row.spec.lr, row.spec.seed)
    accounts = {a.phase: a.spent for a in view.accounts}
    assert accounts["search"] == 10 * plan.trial_mflop
    assert accounts["confirm"] == 4 * plan.trial_mflop
    assert accounts["evaluation"] == 14 * small_studies.EVALS * small_studies.EVALUATION_MFLOP
    complete = [t for t in mirror(home, plan.study).trials if t.state.name == "COMPLETE"]
    assert sorted(t.user_attrs["trial"] for t in complete) == list(range(10))
    assert not [t for t in mirror(home, plan.study).trials if not t.state.is_finished()]
    with db.connect(home).begin() as connection:
        open_jobs = select(func.count()).select_from(db.job).where(db.job.c.state != "done")
        assert connection.execute(open_jobs).scalar_one() == 0


class Chaos:
    """A meter that sometimes kills its process, and sometimes sleeps past its lease."""

    def __init__(self, meter, rng):
        self._meter, self._rng = meter, rng

    def debit(self, step, steps):
        self._meter.debit(step, steps)
        draw = self._rng.random()
        if draw < 0.004:
            os.kill(os.getpid(), signal.SIGKILL)
        if draw > 0.998:
            time.sleep(0.6)
        time.sleep(0.001)

    def progress(self, point):
        self._meter.progress(point)

    def durable(self, step):
        self._meter.durable(step)

    def note(self, text):
        self._meter.note(text)


def _storm(home: Home, name: str, worker: str, seed: int) -> None:
    db._engine.cache_clear()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    rng = random.Random(seed)

    def train(spec, corpus, folder, meter):
        return fake_training.train(spec, corpus, folder, Chaos(meter, rng))

    Worker(home, name, worker, train).run()


def test_eight_processes_with_random_kills_and_zombies(home):
    plan = small_studies.plan(
        arms=("dense", "csa", "hca", "v4"), replicates=3, contingency=10**6, lease=0.4, extensions=0
    )
    plan.run.launcher.max_attempts = 1000
    study.create(plan, home)
    context = multiprocessing.get_context("fork")
    started, killed = 0, 0
    running = {}
    scheduler = Scheduler(home, plan.study)
    deadline = time.monotonic() + 60
    while (view := reading.read(plan.study, home, with_verdicts=False)).state != "done":
        assert time.monotonic() < deadline, view.accounts
        scheduler.close()  # an open Optuna storage must not cross a fork
        for slot in range(8):
            process = running.get(slot)
            if process is not None and not process.is_alive():
                assert process.exitcode in (0, -signal.SIGKILL)
                killed += process.exitcode == -signal.SIGKILL
            if process is None or not process.is_alive():
                started += 1
                arguments = (home, plan.study, f"w{started}", started)
                running[slot] = context.Process(target=_storm, args=arguments)
                running[slot].start()
        scheduler.tick()
        check(home, plan)
        assert sum(a.spent + a.reserved for a in view.accounts) <= plan.total_mflop
        time.sleep(0.1)
    for process in running.values():
        process.join(20)
    scheduler.close()
    check(home, plan)
    view = reading.read(plan.study, home, with_verdicts=False)
    undisturbed = finish(Home(home.root / "other"), _created(plan, Home(home.root / "other")))

    def values(read):
        return {r.spec.fingerprint: (r.state, r.result.val_loss, r.result.tokens_hash) for r in read.trials}

    assert killed >= 3
    assert sum(r.attempts for r in view.trials) > len(view.trials)
    assert values(view) == values(undisturbed)
    spent = {a.phase: a.spent for a in view.accounts}
    assert spent["search"] == 20 * plan.trial_mflop
    assert spent["confirm"] == 12 * plan.trial_mflop
    assert sum(r.charged_mflop for r in view.trials) == sum(spent.values())
    assert sum(a.reserved for a in view.accounts) == 0
    told = [t.state.name for t in mirror(home, plan.study).trials]
    assert told.count("COMPLETE") == 20


def _created(plan, home):
    study.create(plan, home)
    return plan
