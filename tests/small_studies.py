"""Plans of tiny studies for tests of the engine: real variants, made-up numbers."""

import dataclasses
import os
import signal
import sqlite3
import time

import fake_training
import study_views

from ablate import db, ledger, reading
from ablate.home import Home
from ablate.records import Plan, StudyView
from ablate.scheduler import Scheduler
from ablate.stages import Stage, Staged
from ablate.worker import Train, Worker

STEP_MFLOP = 7
EVALS, EVALUATION_MFLOP = 4, 3
"""Evaluations of a trial, and what each costs."""


def plan(
    name: str = "engine-00000001",
    arms: tuple[str, ...] = ("dense", "csa"),
    steps: int = 40,
    points: int = 5,
    extensions: int = 1,
    replicates: int = 2,
    contingency: int = 4000,
    lease: float = 60.0,
    workers: int = 1,
    data: str = "c0ffee",
    early: tuple[Stage, ...] = (),
) -> Plan:
    """Arms by name, all of them the same small model; a step costs 7 MFLOP, but for those of `early`.

    Four evaluations per trial, at equal shares of its compute, cost 3 MFLOP each.
    """
    schedules = list(study_views.SCHEDULES.values())
    made = study_views.plan(
        name, {arm: schedules[i % len(schedules)] for i, arm in enumerate(arms)}, replicates=replicates
    )
    sweep = made.run.sweep
    run = dataclasses.replace(
        made.run,
        sweep=dataclasses.replace(
            sweep,
            search=dataclasses.replace(sweep.search, points=points, extensions=extensions),
            confirm=dataclasses.replace(sweep.confirm, replicates=replicates),
        ),
        launcher=dataclasses.replace(made.run.launcher, lease_seconds=lease, workers=workers),
    )
    staged = Staged(steps=steps, step_mflop=STEP_MFLOP, early=early)
    trial, at = staged.mflop, sorted(staged.reached(EVALS))
    evaluations = tuple((step, EVALUATION_MFLOP) for step in at)
    caps = {
        "search": len(arms) * (points + extensions) * trial,
        "confirm": len(arms) * replicates * trial,
        "evaluation": len(arms) * (points + extensions + replicates) * len(at) * EVALUATION_MFLOP,
        "contingency": contingency,
    }
    return dataclasses.replace(
        made,
        run=run,
        fingerprint=name,
        arms=tuple(
            dataclasses.replace(arm, step_mflop=STEP_MFLOP, steps=steps, early=early, evaluations=evaluations)
            for arm in made.arms
        ),
        trial_mflop=trial,
        caps=caps,
        total_mflop=sum(caps.values()),
        lr_grid=tuple(3e-3 * 2.0 ** (i - points // 2) for i in range(points)),
        workers=workers,
        data_fingerprint=data,
    )


def finish(home: Home, plan: Plan, train: Train = fake_training.train) -> StudyView:
    """Work in this process until the study is done; returns its view, the ledger checked."""
    scheduler = Scheduler(home, plan.study)
    worker = Worker(home, plan.study, "w1", train)
    worker._idle = scheduler.tick  # type: ignore[method-assign]  # no waiting between trials
    worker.run()
    scheduler.close()
    check(home, plan)
    return reading.read(plan.study, home, with_verdicts=False)


def check(home: Home, plan: Plan) -> None:
    """Prove the ledger's invariant."""
    with db.connect(home).begin() as connection:
        ledger.check(connection, plan.study, plan.total_mflop)


def freeze(pid: int, home: Home) -> None:
    """Stop a process, but not while it holds SQLite's write lock, which would stop everybody."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        connection = sqlite3.connect(home.database, timeout=0.5)
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.01)
        else:
            return
        finally:
            connection.close()
