"""Eight threads at one study at once, with leases that really end: no account is ever wrong, not even between."""

import contextlib
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import small_studies
from sqlalchemy import select

from ablate import db, ledger, queue, storage, stored, study
from ablate.enrolment import Overtaken
from ablate.errors import Superseded
from ablate.home import Home
from ablate.ledger import LedgerError
from ablate.meter import TrialMeter
from ablate.rounds import Slot
from ablate.scheduler import Scheduler
from ablate.stages import EVALUATION

STEPS, MFLOP = 12, small_studies.STEP_MFLOP
THREADS = 8
LEASE = 0.3


@dataclass
class Storm:
    """What the threads share.

    Attributes:
        saved: steps in each trial's checkpoint. settled: computed steps of trials whose result was accepted.
        left: actions still to be taken.
    """

    home: Home
    name: str
    total: int
    left: int
    saved: dict[int, int] = field(default_factory=dict)
    settled: dict[int, int] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)
    errors: list[BaseException] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    holders: int = 0

    def __post_init__(self):
        self.engine = db.connect(self.home)

    def note(self, what: str) -> None:
        with self.lock:
            self.left -= 1
            self.seen[what] += 1

    @property
    def over(self) -> bool:
        return self.left <= 0 or bool(self.errors)

    def guarded(self, loop, *arguments) -> None:
        """A thread: whatever it raises ends the storm."""
        try:
            loop(*arguments)
        except BaseException as error:
            self.errors.append(error)
            raise

    def work(self, worker: str, seed: int) -> None:
        """Claim, pay, save, die, sleep past the lease, give back and finish, at random."""
        rng = random.Random(seed)
        while not self.over:
            with self.engine.begin() as connection:
                claim = queue.claim(connection, self.name, worker, LEASE)
            if claim is None:
                time.sleep(0.01)
                continue
            self.note("claimed")
            with contextlib.suppress(Superseded):
                self._train(claim, rng)
                continue
            self.note("superseded")

    def _train(self, claim: queue.Claim, rng: random.Random) -> None:
        meter = TrialMeter(self.engine, self.name, claim, LEASE)
        step = self.saved.get(claim.trial, 0)
        while step < STEPS:
            draw = rng.random()
            if draw < 0.02:
                self.note("killed")
                return
            if draw < 0.04:
                time.sleep(1.5 * LEASE)
            if draw > 0.98:
                self._put_back(claim, meter, lost=draw > 0.99)
                return
            if 0.9 < draw < 0.92:
                break
            try:
                meter.debit(step, 1)
            except LedgerError:
                self._finish(claim, meter, "failed")
                return
            step += 1
            self.note("paid")
            if step % 4 == 0:
                self.saved[claim.trial] = step
                meter.durable(step)
                self.note("saved")
        self._finish(claim, meter, "complete" if step == STEPS else "diverged")

    def _finish(self, claim: queue.Claim, meter: TrialMeter, outcome: str) -> None:
        result = replace(queue.failed(claim.spec, meter.computed_steps, ""), outcome=outcome)
        with self.engine.begin() as connection:
            accepted = queue.finish(connection, claim, result, meter.computed_steps)
        self.note(outcome if accepted else "refused")
        with self.lock:
            if accepted:
                assert claim.trial not in self.settled, "two results of one trial"
                self.settled[claim.trial] = meter.computed_steps

    def _put_back(self, claim: queue.Claim, meter: TrialMeter, lost: bool) -> None:
        with self.engine.begin() as connection:
            queue.give_up(connection, claim, meter.computed_steps, "", 1000 if lost else None)
        self.note("put back")

    def schedule(self, seed: int) -> None:
        """What a tick does to the tables, under its lock: reap, and enqueue whatever can be paid."""
        scheduler = Scheduler(self.home, self.name)
        scheduler._optuna = lambda: SimpleNamespace(ask=lambda slot: None)  # type: ignore[assignment]
        rng = random.Random(seed)
        while not self.over:
            with storage.exclusive(self.home, f"{self.name}.tick", wait=False) as mine:
                if mine:
                    self.holders += 1
                    assert self.holders == 1, "two have the lock"
                    with self.engine.begin() as connection:
                        self.seen["reaped"] += len(queue.reap(connection, self.name, 1000))
                    place = rng.randrange(10**6)
                    phase = rng.choice(("search", "confirm"))
                    with contextlib.suppress(Overtaken):
                        self.seen["enqueued"] += scheduler._enqueue(
                            Slot(f"{phase}/{place}", phase, "dense", 0, place, 3e-3)
                        )
                    self.holders -= 1
            time.sleep(0.01)

    def prove(self) -> None:
        """The invariant, from one reading after another, while all the others write."""
        while not self.over:
            self.check()
            self.seen["proved"] += 1
            time.sleep(0.02)

    def check(self) -> None:
        """Every entry of every trial, walked through in order: what its phase has paid is what its row says."""
        with db.reading(self.engine) as connection:
            ledger.check(connection, self.name, self.total)
            e, t = db.ledger.c, db.trial.c
            paid: Counter[int] = Counter()
            evaluated: Counter[int] = Counter()
            held: Counter[int] = Counter()
            wasted: Counter[int] = Counter()
            for row in connection.execute(select(db.ledger).where(e.study == self.name).order_by(e.id)):
                if row.phase == ledger.CONTINGENCY:
                    wasted[row.trial] += row.waste
                    continue
                if row.phase == EVALUATION:
                    evaluated[row.trial] += row.spent
                    continue
                paid[row.trial] += row.spent
                held[row.trial] += row.reserved
                assert 0 <= paid[row.trial] <= STEPS * MFLOP
                assert held[row.trial] >= 0
            for row in connection.execute(select(db.trial).where(t.study == self.name)):
                assert paid[row.id] == row.paid_steps * MFLOP
                assert evaluated[row.id] == stored.spec_from_text(row.spec).evaluated(row.paid_steps)
                assert wasted[row.id] == row.wasted
                ended = row.state not in ("queued", "running")
                assert held[row.id] == (0 if ended else STEPS * MFLOP - paid[row.id])
            active = select(db.attempt.c.trial).where(
                db.attempt.c.study == self.name, db.attempt.c.state == "running"
            )
            trials = connection.execute(active).scalars().all()
            assert len(set(trials)) == len(trials), "two attempts at one trial"


def storm(home: Home, actions: int) -> Storm:
    """Threads at work until so many actions are taken."""
    plan = small_studies.plan(steps=STEPS, points=40, replicates=40, contingency=10**6)
    study.create(plan, home)
    shared = Storm(home, plan.study, plan.total_mflop, actions)
    loops = [(shared.work, f"w{i}", i) for i in range(THREADS)]
    loops += [(shared.schedule, 1), (shared.schedule, 2), (shared.prove,)]
    threads = [threading.Thread(target=shared.guarded, args=loop) for loop in loops]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not shared.errors, shared.errors
    shared.check()
    t = db.trial.c
    ended = select(t.id, t.paid_steps).where(
        t.study == plan.study, t.state.in_(("complete", "diverged", "failed"))
    )
    with db.reading(shared.engine) as connection:
        paid = {row.id: row.paid_steps for row in connection.execute(ended)}
    assert paid == shared.settled, "what was paid is what was computed"
    return shared


def test_eight_threads_at_once(any_home):
    seen = storm(any_home, 400).seen
    assert seen["complete"] > 5
    assert seen["proved"] > 5


@pytest.mark.slow
def test_eight_threads_at_once_for_long(any_home):
    seen = storm(any_home, 5000).seen
    print(f"\n{dict(seen)}")
    for what in ("superseded", "killed", "reaped", "put back", "complete", "diverged", "proved"):
        assert seen[what] > 5, what
