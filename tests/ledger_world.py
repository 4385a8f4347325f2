"""Studies, eight workers, and a model in plain Python of what the queue and the ledger must say about them.

The world drives the real parts (scheduler, queue, ledger, meter) one transaction at a time, each worker with
sessions of its own; the model foresees every answer and every account from a few numbers per trial. Where the
real parts may choose, such as how far to pay ahead, the model takes the choice and holds it to its limits.
"""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import small_studies
from ledger_facts import (
    ALLOWANCE,
    CAPS,
    EVALUATIONS,
    MAX_ATTEMPTS,
    STEPS,
    STUDIES,
    TOTAL,
    Attempt,
    Hand,
    Paying,
    Trial,
    cost,
    evaluated,
)
from sqlalchemy import select, update

from ablate import db, ledger, queue, stored
from ablate.enrolment import Overtaken
from ablate.errors import StopTraining, Superseded
from ablate.home import Home
from ablate.ledger import LedgerError
from ablate.records import Plan
from ablate.rounds import Slot
from ablate.scheduler import Scheduler

_numbers = itertools.count()


@dataclass
class World:
    """The real database and the model side by side; every action checks its own answer."""

    home: Home
    studies: list[str] = field(default_factory=list)
    trials: dict[int, Trial] = field(default_factory=dict)
    running: dict[tuple[int, int], Attempt] = field(default_factory=dict)
    hands: dict[str, Hand] = field(default_factory=dict)
    stopping: set[str] = field(default_factory=set)
    slots: set[tuple[str, str]] = field(default_factory=set)
    clock: float = 0.0
    steps: int = 0
    seen: Counter[str] = field(default_factory=Counter)
    """How often what is worth testing has happened."""

    def __post_init__(self):
        self.engine = db.connect(self.home)
        self._schedulers = {}
        world = next(_numbers)
        for i in range(STUDIES):
            plan = dataclasses.replace(
                _plan(), study=f"world-{world}-{i}", data_fingerprint=f"world {world}", caps=CAPS
            )
            with self.engine.begin() as connection:
                row = {"name": plan.study, "fingerprint": "", "state": "running", "stopping": False}
                row |= {"plan": stored.plan_to_text(plan), "provenance": "{}", "created_at": db.now()}
                connection.execute(db.study.insert().values(**row))
                ledger.open_accounts(connection, plan.study, CAPS, TOTAL)
            scheduler = Scheduler(self.home, plan.study)
            scheduler._optuna = lambda: SimpleNamespace(ask=lambda slot: None)  # type: ignore[assignment]
            self._schedulers[plan.study] = scheduler
            self.studies.append(plan.study)

    def holder(self, number: int) -> str:
        """One of the workers that believe to hold a trial, if any does."""
        holders = sorted(self.hands)
        return holders[number % len(holders)] if holders else "w0"

    # what happens

    def enqueue(self, study: str, phase: str, seed: int, place: int) -> None:
        """The scheduler wants a slot: it is reserved and queued, found to be known, denied, or there already."""
        slot = Slot(f"{phase}/{place}", phase, "dense", 0, seed, 3e-3)  # type: ignore[arg-type]
        scheduler = self._schedulers[study]
        fingerprint = scheduler._spec(slot).fingerprint
        known = any(
            trial.fingerprint == fingerprint and trial.state in ("complete", "diverged")
            for trial in self.trials.values()
        )
        short = [
            p
            for p, mflop in ((phase, ALLOWANCE), ("evaluation", EVALUATIONS))
            if self._free(study, p) < mflop
        ]
        if not known and short:
            assert not scheduler._enqueue(slot)
            self.seen["denied" if phase in short else "denied for its evaluations"] += 1
            return
        if (study, slot.key) in self.slots:
            try:
                scheduler._enqueue(slot)
            except Overtaken:
                self.seen["enqueued twice"] += 1
                return
            raise AssertionError(f"slot {slot.key} of {study} was enqueued twice")
        assert scheduler._enqueue(slot)
        self.slots.add((study, slot.key))
        self.seen["reused" if known else "enqueued"] += 1
        t = db.trial.c
        row = self._one(select(db.trial).where(t.study == study, t.slot == slot.key))
        self.trials[row.id] = Trial(
            row.id, row.number, study, phase, fingerprint, row.state if known else "queued", reused=known
        )

    def claim(self, worker: str, study: str) -> None:
        """A free worker takes the oldest waiting trial."""
        if worker in self.hands:
            return
        waiting = [
            trial.id for trial in self.trials.values() if (trial.study, trial.state) == (study, "queued")
        ]
        found = self._do(queue.claim, study, worker, 60.0)
        assert (found.trial if found else None) == min(waiting, default=None)
        if found is None:
            return
        trial = self.trials[found.trial]
        trial.attempt += 1
        trial.state = "running"
        self.seen["claimed again" if trial.attempt > 1 else "claimed"] += 1
        assert (found.attempt, found.paid_steps, found.number) == (trial.attempt, trial.paid, trial.number)
        self.running[trial.id, found.attempt] = Attempt(worker, trial, found.attempt)
        paying = Paying(self.engine, study, found, 60.0)
        self.hands[worker] = Hand(found, trial, paying, trial.saved)

    def work(self, worker: str, steps: int, seconds: float) -> None:
        """A worker pays for steps and computes them."""
        hand = self.hands.get(worker)
        if hand is None or hand.doomed:
            return
        self.clock += seconds
        trial, before, first = hand.trial, hand.trial.paid, hand.asked is None
        attempt = self._current(hand)
        try:
            hand.meter.debit(hand.step, steps)
        except Superseded:
            assert attempt is None, "it is the current one"
            del self.hands[worker]
            self.seen["payment of a zombie"] += 1
            return
        except StopTraining:
            assert trial.study in self.stopping
            hand.doomed = True
            self.seen["asked to stop"] += 1
            if attempt:
                attempt.expired = False
            return
        except LedgerError as error:
            hand.doomed = True
            self._refused(hand, steps, str(error))
            return
        assert hand.step + steps <= STEPS, "it paid beyond its allowance"
        paid = self._one(select(db.trial.c.paid_steps).where(db.trial.c.id == trial.id)).paid_steps
        if attempt is None:  # it may use what it had paid for, and writes nothing
            assert paid == before
            assert not first
            assert hand.step + steps <= hand.meter._paid
        else:
            if first and before > hand.step:
                trial.wasted += cost(before) - cost(hand.step)
                again = evaluated(before) > evaluated(hand.step)
                self.seen["waste with evaluations" if again else "waste"] += 1
                trial.paid = hand.step
            assert max(hand.step + steps, trial.paid) <= paid <= STEPS
            if trial.study in self.stopping:
                assert paid == before
            if paid != before or first:
                attempt.expired = False
            trial.paid = paid
            self._read_lease(attempt)
        hand.step = hand.asked = hand.step + steps

    def _refused(self, hand: Hand, steps: int, reason: str) -> None:
        """There has to be a reason why a payment was refused, and it has to be the one that was given."""
        if hand.step + steps > STEPS:
            assert "allowance" in reason
            return
        assert hand.asked is None
        assert self._current(hand) is not None
        assert self._free(hand.trial.study, "contingency") < cost(hand.trial.paid) - cost(hand.step)
        assert "contingency exhausted" in reason
        self.seen["contingency exhausted"] += 1

    def save(self, worker: str, recorded: bool) -> None:
        """A worker writes a checkpoint; it may die before the database hears of it."""
        hand = self.hands.get(worker)
        if hand is None or hand.asked is None:
            return
        hand.trial.saved = hand.step
        if not recorded:
            return
        attempt = self._current(hand)
        try:
            hand.meter.durable(hand.step)
        except Superseded:
            assert attempt is None
            del self.hands[worker]
            self.seen["checkpoint of a zombie"] += 1
            return
        assert attempt is not None, "a fenced attempt has written"
        attempt.expired = False

    def end(self, worker: str, outcome: str) -> None:
        """A worker has a result: it computes what is left for a complete one, else it stopped early or failed."""
        hand = self.hands.get(worker)
        if hand is not None and outcome == "complete" and hand.step < STEPS:
            self.work(worker, STEPS - hand.step, 0.1)
            hand = self.hands.get(worker)
        if hand is None:
            return
        if hand.doomed:
            outcome = "failed"
        result = dataclasses.replace(
            queue.failed(hand.claim.spec, hand.computed, ""),
            outcome=outcome,
            val_loss=None if outcome == "failed" else 3.0,
        )
        accepted = self._do(queue.finish, hand.claim, result, hand.computed)
        attempt = self._leave(worker)
        assert accepted == (attempt is not None)
        self.seen["result of a zombie" if attempt is None else outcome] += 1
        if attempt is not None:
            self.seen["paid ahead and given back"] += attempt.trial.paid > hand.computed
            attempt.trial.paid = min(attempt.trial.paid, hand.computed)
            attempt.trial.state = outcome
        assert not self._do(queue.finish, hand.claim, result, hand.computed), "a result is accepted once"

    def put_back(self, worker: str, lost: bool) -> None:
        """A worker gives its trial back: asked to stop, or because of a fault around it."""
        hand = self.hands.get(worker)
        if hand is None:
            return
        accepted = self._do(queue.give_up, hand.claim, hand.computed, "", MAX_ATTEMPTS if lost else None)
        attempt = self._leave(worker)
        assert accepted == (attempt is not None)
        if attempt is not None:
            attempt.trial.paid = min(attempt.trial.paid, hand.computed)
            self._requeue(attempt.trial, lost)

    def kill(self, worker: str) -> None:
        """A worker dies; the database does not know."""
        self.hands.pop(worker, None)

    def bury(self, worker: str) -> None:
        """Somebody saw a worker die."""
        mine = [attempt for attempt in self.running.values() if attempt.worker == worker]
        for study in self.studies:
            found = self._do(queue.reap, study, MAX_ATTEMPTS, worker, "died")
            assert len(found) == sum(attempt.trial.study == study for attempt in mine)
        for attempt in mine:
            self._lose(attempt)

    def expire(self, worker: str) -> None:
        """The leases of a worker's attempts end."""
        a = db.attempt.c
        with self.engine.begin() as connection:
            connection.execute(update(db.attempt).where(a.worker == worker).values(lease_until=1.0))
        for attempt in self.running.values():
            if attempt.worker == worker:
                attempt.expired = True

    def reap(self, study: str) -> None:
        """The scheduler takes back what leases no longer cover."""
        late = [a for a in self.running.values() if a.expired and a.trial.study == study]
        found = self._do(queue.reap, study, MAX_ATTEMPTS)
        assert sorted(found) == sorted(attempt.worker for attempt in late)
        for attempt in late:
            self._lose(attempt)

    def stop(self, study: str, stopping: bool) -> None:
        """A person asks the study's workers to stop, or goes on."""
        with self.engine.begin() as connection:
            connection.execute(update(db.study).where(db.study.c.name == study).values(stopping=stopping))
        (self.stopping.add if stopping else self.stopping.discard)(study)

    def repeat(self, worker: str) -> None:
        """The answer of a worker's last payment was lost, so it is made again; nothing may change."""
        hand = self.hands.get(worker)
        if hand is None or hand.asked is None or hand.trial.study in self.stopping or hand.doomed:
            return
        attempt = self._current(hand)
        try:
            hand.meter._settle(**hand.meter.last)
        except Superseded:
            assert attempt is None
            del self.hands[worker]
            return
        except LedgerError as error:
            raise AssertionError("what was paid was to be paid again") from error
        assert attempt is not None, "a fenced attempt has written"
        attempt.expired = False
        self.seen["paid again"] += 1

    # what must hold

    def check(self) -> None:
        """Everything that must hold after every step, from one reading of the tables."""
        with db.reading(self.engine) as connection:
            for study in self.studies:
                ledger.check(connection, study, TOTAL)
                self._check(connection, study)

    def _check(self, connection: Any, study: str) -> None:
        own = [trial for trial in self.trials.values() if trial.study == study]
        e, b, t, a = db.ledger.c, db.budget.c, db.trial.c, db.attempt.c
        booked: dict[tuple[str, int], list[int]] = {}
        for row in connection.execute(select(db.ledger).where(e.study == study)):
            sums = booked.setdefault((row.phase, row.trial), [0, 0, 0])
            for i, amount in enumerate((row.spent, row.reserved, row.waste)):
                sums[i] += amount
        expected = {}
        for trial in own:
            for phase, amounts in trial.accounts.items() if not trial.reused else ():
                expected[phase, trial.id] = [*amounts, 0]
            if trial.wasted:
                expected["contingency", trial.id] = [trial.wasted, 0, trial.wasted]
        assert booked == expected
        spent = 0
        for row in connection.execute(select(db.budget).where(b.study == study)):
            sums = [sum(v[i] for (phase, _), v in expected.items() if phase == row.phase) for i in range(3)]
            assert [row.spent, row.reserved, row.waste] == sums
            assert row.spent + row.reserved <= row.cap == CAPS[row.phase]
            spent += row.spent
        assert spent <= TOTAL
        rows = connection.execute(
            select(db.trial, db.job.c.attempt, db.job.c.losses).outerjoin(db.job).where(t.study == study)
        )
        found = {
            row.id: (row.state, row.paid_steps, row.wasted, row.attempt or 0, row.losses or 0) for row in rows
        }
        assert found == {
            trial.id: (trial.state, trial.paid, trial.wasted, trial.attempt, trial.losses) for trial in own
        }
        active = connection.execute(
            select(a.trial, a.number, a.worker).where(a.study == study, a.state == "running")
        ).all()
        assert {(row.trial, row.number): row.worker for row in active} == {
            key: attempt.worker for key, attempt in self.running.items() if attempt.trial.study == study
        }
        assert len({row.trial for row in active}) == len(active), "two attempts at one trial"

    # helpers

    def _free(self, study: str, phase: str) -> int:
        own = [trial for trial in self.trials.values() if trial.study == study]
        if phase == "contingency":
            return CAPS[phase] - sum(trial.wasted for trial in own)
        return CAPS[phase] - sum(sum(t.accounts.get(phase, [])) for t in own if not t.reused)

    def _current(self, hand: Hand) -> Attempt | None:
        return self.running.get((hand.claim.trial, hand.claim.attempt))

    def _leave(self, worker: str) -> Attempt | None:
        hand = self.hands.pop(worker)
        return self.running.pop((hand.claim.trial, hand.claim.attempt), None)

    def _lose(self, attempt: Attempt) -> None:
        del self.running[attempt.trial.id, attempt.number]
        self._requeue(attempt.trial, lost=True)

    def _requeue(self, trial: Trial, lost: bool) -> None:
        trial.losses += lost
        trial.state = "failed" if trial.losses >= MAX_ATTEMPTS else "queued"
        self.seen["poison" if trial.state == "failed" else "lost" if lost else "put back"] += 1

    def _read_lease(self, attempt: Attempt) -> None:
        a = db.attempt.c
        mine = select(a.lease_until).where(a.trial == attempt.trial.id, a.number == attempt.number)
        attempt.expired = self._one(mine).lease_until == 1.0

    def _one(self, query: Any) -> Any:
        with db.reading(self.engine) as connection:
            return connection.execute(query).one()

    def _do(self, what: Callable[..., Any], *arguments: Any) -> Any:
        with self.engine.begin() as connection:
            return what(connection, *arguments)


def _plan() -> Plan:
    if not _plans:
        _plans.append(small_studies.plan(steps=STEPS))
    return _plans[0]


_plans: list[Plan] = []
