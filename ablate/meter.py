"""How a trainer pays for its steps: ahead of them, in chunks, in the transaction that renews its lease.

The evaluations that follow a step are paid with it, so that a number of steps tells all that a trial has paid.
"""

import math
import time
from collections.abc import Callable

from sqlalchemy import Connection, Engine, select, update

from ablate import db, ledger, queue, storage, stored
from ablate.errors import StopTraining, Superseded
from ablate.ledger import LedgerError
from ablate.queue import Claim
from ablate.records import Point

CHUNK_SECONDS = 0.5
"""Work that is paid for at once; also the least time between two renewals of the lease."""

FIRST_CHUNK = 0.02
"""Share of the allowance that is paid for before the speed is known."""


class TrialMeter:
    """The `Meter` of one attempt. While a server is out of reach, it waits, and training with it.

    Args:
        renewed: is called whenever progress has renewed the lease.

    Attributes:
        computed_steps: steps below which all work has been done and none is needed again.
        stopped, superseded: why training was asked to end, for the worker, whatever the trainer makes of it.
        failure: a payment that was refused, in words.
    """

    def __init__(
        self,
        engine: Engine,
        study: str,
        claim: Claim,
        lease: float,
        stop: Callable[[], bool] = lambda: False,
        renewed: Callable[[], None] = lambda: None,
    ):
        self._engine, self._study, self._claim, self._lease, self._stop = engine, study, claim, lease, stop
        self._on_renewal = renewed
        self._paid: int | None = None  # None until the first debit tells where this attempt begins
        self._asked = claim.paid_steps
        self._began = (0, 0.0)
        self._renewed = -math.inf
        self._point: Point | None = None
        self.stopped = self.superseded = False
        self.failure = ""

    @property
    def computed_steps(self) -> int:
        """As above; where this attempt has paid for nothing, what earlier ones have."""
        return self._asked

    def debit(self, step: int, steps: int) -> None:
        """Pay for `steps` steps from `step` on, before computing them; renews the lease.

        The first call tells where the attempt resumes. What earlier attempts paid for beyond that is done
        again: the contingency pays, and the phases get it back.

        Raises:
            Superseded: another attempt has taken over.
            StopTraining: the worker or the study is asked to stop; nothing was paid.
            LedgerError: the contingency is exhausted, or the steps exceed the allowance.
        """
        if self._stop():
            self._raise_stop()
        moment = time.monotonic()
        if self._paid is None:
            self._began = (step, moment)
            self._paid = self._settle(step, step + self._chunk(step, steps, moment), first=True)
        elif step + steps > self._paid:
            self._paid = self._settle(self._paid, step + self._chunk(step, steps, moment))
        elif moment - self._renewed >= CHUNK_SECONDS:
            self._settle(self._paid, self._paid)
        self._asked = step + steps

    def progress(self, point: Point) -> None:
        """Make a point visible, at most twice a second.

        Raises:
            Superseded: another attempt has taken over.
        """
        self._point = point
        if time.monotonic() - self._renewed >= CHUNK_SECONDS:
            self._report()

    def durable(self, step: int) -> None:
        """Record that a verified checkpoint holds everything up to `step`.

        Raises:
            Superseded: another attempt has taken over.
        """
        self._report(durable_step=step)

    def _report(self, **columns: int) -> None:
        def write() -> None:
            with self._engine.begin() as connection:
                self._renew(connection, **columns)

        storage.patiently(write)

    def note(self, text: str) -> None:
        """Record an event of the trial."""
        with self._engine.begin() as connection:
            db.note(connection, self._study, "checkpoint", f"trial {self._claim.number}: {text}")

    def _chunk(self, step: int, steps: int, moment: float) -> int:
        """Steps to pay for now: half a second's work, never beyond the allowance or the next checkpoint."""
        begun, since = self._began
        whole = self._claim.spec.steps
        if step > begun and moment > since:
            ahead = math.ceil(CHUNK_SECONDS * (step - begun) / (moment - since))
        else:
            ahead = math.ceil(FIRST_CHUNK * whole)
        if step + steps > whole:
            self._refuse(f"step {step + steps} was to be paid for, but the allowance has {whole}")
        every = self._claim.spec.run["trainer"]["checkpoint_steps"] or whole
        return min(max(steps, ahead), whole - step, every - step % every)

    def _settle(self, start: int, until: int, first: bool = False) -> int:
        """Renew, and pay for the steps from `start` to `until`; returns up to where is paid."""

        def write() -> bool:
            with self._engine.begin() as connection:
                self._renew(connection)
                wants = select(db.study.c.stopping).where(db.study.c.name == self._study)
                stopping = connection.execute(wants).scalar_one()
                if not stopping:
                    paid = self._resume(connection, start) if first else start
                    self._pay(connection, paid, until)
            return stopping

        if storage.patiently(write):
            self._raise_stop()
        return until

    def _resume(self, connection: Connection, start: int) -> int:
        """Settle what earlier attempts paid for beyond `start`; returns up to where is paid."""
        trial, attempt = db.trial.c, db.attempt.c
        paid = connection.execute(select(trial.paid_steps).where(trial.id == self._claim.trial)).scalar_one()
        mine = (attempt.trial == self._claim.trial, attempt.number == self._claim.attempt)
        if connection.execute(select(attempt.first_step).where(*mine)).scalar_one() is not None:
            return paid  # this was committed, and the answer was lost
        connection.execute(update(db.attempt).where(*mine).values(first_step=start))
        if paid <= start:
            return paid
        lost = self._claim.spec.bill(start, paid)
        mflop = sum(lost.values())
        key = f"{self._claim.trial}/{self._claim.attempt}/waste"
        if not ledger.waste(connection, self._study, lost, key, self._claim.trial):
            free = ledger.available(connection, self._study, ledger.CONTINGENCY)
            self._refuse(
                f"contingency exhausted: a fault lost {paid - start} steps, {mflop} MFLOP; {free} are left"
            )
        connection.execute(
            update(db.trial).where(trial.id == self._claim.trial).values(wasted=trial.wasted + mflop)
        )
        note = f"trial {self._claim.number}: {paid - start} steps are done again, paid from the contingency"
        db.note(connection, self._study, "waste", note)
        return start

    def _pay(self, connection: Connection, paid: int, until: int) -> None:
        if until <= paid:
            return
        trial = self._claim.trial
        key = f"{trial}/{self._claim.attempt}/to-{until}"
        try:
            for phase, amount in self._claim.spec.bill(paid, until).items():
                ledger.debit(connection, self._study, phase, amount, key, trial)
        except LedgerError as error:
            self._refuse(str(error))
        connection.execute(update(db.trial).where(db.trial.c.id == trial).values(paid_steps=until))

    def _renew(self, connection: Connection, **columns: int) -> None:
        point = {"progress": stored.point_to_text(self._point)} if self._point else {}
        if not queue.renew(connection, self._claim, self._lease, **point, **columns):
            self.superseded = True
            raise Superseded(f"trial {self._claim.number}, attempt {self._claim.attempt}")
        self._point = None
        self._renewed = time.monotonic()
        self._on_renewal()

    def _raise_stop(self) -> None:
        self.stopped = True
        raise StopTraining("asked to stop")

    def _refuse(self, reason: str) -> None:
        self.failure = reason
        raise LedgerError(reason)
