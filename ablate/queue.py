"""Jobs and attempts: who may work on which trial, and what happens when a worker does not come back.

A claim is one transaction and hands out the attempt's number, the fencing token: whatever an attempt writes
later counts only while that number is the newest and its state is `running`. A lease ends on the database's
clock and is renewed by progress alone, so a hung trainer loses its trial.

All functions act inside the caller's transaction. On PostgreSQL rows are locked in one order, attempt, worker,
budget, so that no two transactions wait for each other; a trial and its job belong to whoever has the attempt.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select, update

from ablate import db, faults, ledger, stored
from ablate.records import Outcome, TrialResult, TrialSpec
from ablate.stages import EVALUATION


@dataclass(frozen=True)
class Claim:
    """A trial in a worker's hands. `paid_steps` is what earlier attempts have paid for."""

    trial: int
    number: int
    attempt: int
    spec: TrialSpec
    paid_steps: int


def enqueue(connection: Connection, study: str, trial: int) -> None:
    """Let workers take a trial that is reserved for."""
    connection.execute(db.job.insert().values(trial=trial, study=study, state="queued", attempt=0, losses=0))


def claim(connection: Connection, study: str, worker: str, lease: float) -> Claim | None:
    """Take the oldest waiting trial, or None.

    Args:
        lease: seconds without progress after which others may have it.
    """
    j, t = db.job.c, db.trial.c
    oldest = select(j.trial).where(j.study == study, j.state == "queued").order_by(j.trial).limit(1)
    found = connection.execute(oldest.with_for_update(skip_locked=True)).scalar()
    if found is None:
        return None
    connection.execute(update(db.job).where(j.trial == found).values(state="running", attempt=j.attempt + 1))
    number = connection.execute(select(j.attempt).where(j.trial == found)).scalar_one()
    connection.execute(
        db.attempt.insert().values(
            trial=found,
            number=number,
            study=study,
            worker=worker,
            state="running",
            lease_until=db.now() + lease,
            started_at=db.now(),
        )
    )
    row = connection.execute(select(db.trial).where(t.id == found)).one()
    connection.execute(
        update(db.trial).where(t.id == found).values(state="running", started_at=row.started_at or db.now())
    )
    connection.execute(_hands(study, worker, row.number))
    if number > 1:
        db.note(connection, study, "attempt", f"trial {row.number}: attempt {number} on {worker}")
    faults.point("claim.pre_commit")
    return Claim(found, row.number, number, stored.spec_from_text(row.spec), row.paid_steps)


def renew(connection: Connection, claim: Claim, lease: float, **columns: Any) -> bool:
    """Report progress and keep the lease; False if the attempt is no longer the current one.

    Args:
        columns: further columns of `attempt` to write.
    """
    a = db.attempt.c
    changed = connection.execute(
        update(db.attempt).where(*_current(claim)).values(lease_until=db.now() + lease, **columns)
    )
    if changed.rowcount == 0:
        return False
    mine = select(a.study, a.worker).where(a.trial == claim.trial, a.number == claim.attempt)
    study, worker = connection.execute(mine).one()
    connection.execute(_hands(study, worker, claim.number))
    return True


def finish(connection: Connection, claim: Claim, result: TrialResult, computed_steps: int) -> bool:
    """Accept a result and settle the trial's account; False if the attempt is no longer the current one.

    Args:
        computed_steps: steps below which all work was really done; what was paid beyond is given back.
    """
    row = _end_attempt(connection, claim, "finished", result.reason)
    if row is None:
        return False
    _refund(connection, row, claim.attempt, computed_steps)
    _end_trial(connection, row, result)
    if result.outcome != "complete":
        reason = result.reason or "no reason given"
        text = f"trial {row.number} ({row.arm}, {row.phase}) {result.outcome}: {reason}"
        db.note(connection, row.study, result.outcome, text)
    return True


def give_up(
    connection: Connection, claim: Claim, computed_steps: int, reason: str, max_attempts: int | None = None
) -> bool:
    """Put a trial back by the attempt that holds it; False if it is no longer the current one.

    Args:
        computed_steps: as for `finish`. max_attempts: counts this as a loss, after so many of which the
        trial fails; None for a stop on request.
    """
    row = _end_attempt(connection, claim, "stopped" if max_attempts is None else "lost", reason)
    if row is None:
        return False
    _refund(connection, row, claim.attempt, computed_steps)
    if max_attempts is None:
        db.note(connection, row.study, "stopped", f"trial {row.number}: {reason}")
        _requeue(connection, row, losses=0)
    else:
        _lose(connection, row, claim.attempt, reason, max_attempts)
    return True


def reap(
    connection: Connection, study: str, max_attempts: int, worker: str | None = None, reason: str = ""
) -> list[str]:
    """Take back what dead workers hold; returns the workers' names.

    Args:
        worker: known to be dead, so its attempts end whatever their leases say; None reaps expired leases.
    """
    a = db.attempt.c
    ended = a.worker == worker if worker is not None else a.lease_until < db.now()
    held = select(a.trial, a.number, a.worker).where(a.study == study, a.state == "running", ended)
    held = held.order_by(a.trial).with_for_update(skip_locked=worker is None)  # who writes makes progress
    dead = connection.execute(held).all()
    for name in sorted({row.worker for row in dead}):
        connection.execute(_hands(study, name, None, seen=False))
    for trial, number, name in dead:
        why = reason or f"no progress from {name} within its lease"
        connection.execute(
            update(db.attempt)
            .where(a.trial == trial, a.number == number)
            .values(state="lost", ended_at=db.now(), reason=why)
        )
        row = connection.execute(select(db.trial).where(db.trial.c.id == trial)).one()
        _lose(connection, row, number, why, max_attempts)
    return [row.worker for row in dead]


def expired(connection: Connection, study: str) -> bool:
    """Whether there is anything to reap."""
    a = db.attempt.c
    late = select(a.trial).where(a.study == study, a.state == "running", a.lease_until < db.now())
    return connection.execute(late.limit(1)).first() is not None


def failed(spec: TrialSpec, steps: int, reason: str, outcome: Outcome = "failed") -> TrialResult:
    """The result of a trial that has none: no loss, and the steps that were charged."""
    trainer = spec.run["trainer"]
    return TrialResult(
        outcome=outcome,
        val_loss=None,
        val_bpb=None,
        steps=steps,
        tokens=steps * trainer["seq_len"] * trainer["batch_size"],
        useful_mflop=spec.charge(steps),
        seconds=0.0,
        reason=reason,
    )


def _lose(connection: Connection, row: db.Found, attempt: int, reason: str, max_attempts: int) -> None:
    """Count a loss; the trial waits for another attempt, or ends after too many."""
    losses = connection.execute(select(db.job.c.losses).where(db.job.c.trial == row.id)).scalar_one() + 1
    text = f"trial {row.number} ({row.arm}): attempt {attempt} lost: {reason}"
    db.note(connection, row.study, "lost", text)
    if losses < max_attempts:
        _requeue(connection, row, losses=1)
        return
    poison = f"poison: {losses} attempts were lost, the last one: {reason}"
    paid = connection.execute(select(db.trial.c.paid_steps).where(db.trial.c.id == row.id)).scalar_one()
    connection.execute(update(db.job).where(db.job.c.trial == row.id).values(losses=losses))
    _end_trial(connection, row, failed(stored.spec_from_text(row.spec), paid, poison))
    db.note(connection, row.study, "failed", f"trial {row.number} ({row.arm}): {poison}")


def _requeue(connection: Connection, row: db.Found, losses: int) -> None:
    j = db.job.c
    connection.execute(
        update(db.job).where(j.trial == row.id).values(state="queued", losses=j.losses + losses)
    )
    connection.execute(update(db.trial).where(db.trial.c.id == row.id).values(state="queued"))


def _end_trial(connection: Connection, row: db.Found, result: TrialResult) -> None:
    connection.execute(
        update(db.trial)
        .where(db.trial.c.id == row.id)
        .values(state=result.outcome, result=stored.result_to_text(result), ended_at=db.now())
    )
    connection.execute(update(db.job).where(db.job.c.trial == row.id).values(state="done"))
    for phase in (EVALUATION, row.phase):
        ledger.release(connection, row.study, phase, row.id)


def _end_attempt(connection: Connection, claim: Claim, state: str, reason: str) -> db.Found | None:
    """The trial's row if the attempt was current; it then ends in `state`."""
    changed = connection.execute(
        update(db.attempt).where(*_current(claim)).values(state=state, ended_at=db.now(), reason=reason)
    )
    if changed.rowcount == 0:
        return None
    row = connection.execute(select(db.trial).where(db.trial.c.id == claim.trial)).one()
    connection.execute(_hands(row.study, _worker_of(connection, claim), None))
    return row


def _refund(connection: Connection, row: db.Found, attempt: int, computed_steps: int) -> None:
    if row.paid_steps > computed_steps:
        spec, key = stored.spec_from_text(row.spec), f"{row.id}/{attempt}/refund"
        for phase, ahead in spec.bill(computed_steps, row.paid_steps).items():
            ledger.refund(connection, row.study, phase, ahead, key, row.id)
        connection.execute(update(db.trial).where(db.trial.c.id == row.id).values(paid_steps=computed_steps))


def _current(claim: Claim) -> tuple[Any, ...]:
    a = db.attempt.c
    return a.trial == claim.trial, a.number == claim.attempt, a.state == "running"


def _worker_of(connection: Connection, claim: Claim) -> str:
    a = db.attempt.c
    mine = select(a.worker).where(a.trial == claim.trial, a.number == claim.attempt)
    return connection.execute(mine).scalar_one()


def _hands(study: str, worker: str, number: int | None, seen: bool = True) -> Any:
    """What a worker holds now; `seen` where that is news of the worker itself."""
    w = db.worker.c
    values = {"trial": number} | ({"seen_at": db.now()} if seen else {})
    return update(db.worker).where(w.study == study, w.name == worker).values(values)
