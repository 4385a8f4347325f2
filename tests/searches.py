"""Open searches for tests of the engine: real plans and prices, losses from a formula."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import fake_training
import small_studies

from ablate import config, planning, reading, study
from ablate.home import Home
from ablate.proposals import Proposals
from ablate.records import Meter, Plan, StudyView, TrialResult, TrialSpec
from ablate.worker import Train, Worker

SMALL = (
    "sweep=schedule_search",
    "budget=smoke",
    "tracking=off",
    "trainer.seq_len=64",
    "trainer.batch_size=2",
    "launcher.workers=1",
    "sweep.search.extensions=0",
    "sweep.search.finalists=2",
    "sweep.search.trials=8",
    "sweep.search.control=0",
    "sweep.confirm.replicates=2",
)
DEEP = 0.01
"""Nats that every CSA layer gains, by formula."""


def plan(home: Home, *overrides: str) -> Plan:
    """The shipped search, with trials of a few steps."""
    return planning.make_plan(config.load([*SMALL, *overrides]), home)


def loss(run: dict[str, Any], lr: float, seed: int) -> float:
    """CSA layers help, a wide window helps less, and every schedule has a little of its own."""
    text = f"{run['model']['compress_ratios']} {run['model']['index_topk']} {run['model']['sliding_window']}"
    layers = run["model"]["compress_ratios"].count("csa")
    noise = int(hashlib.sha256(f"{text} {seed}".encode()).hexdigest()[:8], 16) / 2**32
    rate = 0.05 * abs(lr / 3e-3 - 1)
    return 6.0 - DEEP * layers - 1e-4 * run["model"]["sliding_window"] + 1e-3 * noise + rate


def train(spec: TrialSpec, corpus: Any, workdir: Path, meter: Meter) -> TrialResult:
    """Pays like a real trainer; the loss is by formula."""
    done = fake_training.train(spec, corpus, workdir, meter)
    if done.outcome != "complete":
        return done
    return dataclasses.replace(done, val_loss=loss(spec.run, spec.lr, spec.seed))


def explore(home: Home, plan: Plan, train: Train = train) -> StudyView:
    """The open search alone, without tuning and confirmation; the ledger checked."""
    study.create(plan, home)
    search, worker = Proposals(home, plan), Worker(home, plan.study, "w1", train)
    while search.advance() is None:
        claim = worker._claim()
        assert claim is not None
        worker._work(claim, train)
    search.close()
    small_studies.check(home, plan)
    return reading.read(plan.study, home)
