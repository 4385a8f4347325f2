"""A trial enters a study: with a result that somebody has paid for, or reserved for and waiting for a worker."""

from typing import Any

from sqlalchemy import Connection, func, select

from ablate import db, ledger, queue, stored
from ablate.records import TrialSpec

ENDED = ("complete", "diverged", "failed", "cancelled")
"""States of trials that have come to their end."""


class Overtaken(Exception):
    """Another process has made this slot's trial."""


def known(connection: Connection, spec: TrialSpec) -> db.Found | None:
    """A finished trial of any study with the same fingerprint."""
    t = db.trial.c
    same = select(db.trial).where(
        t.fingerprint == spec.fingerprint, t.state.in_(("complete", "diverged")), t.result.is_not(None)
    )
    return connection.execute(same.order_by(t.id).limit(1)).first()


def enrol(
    connection: Connection, study: str, slot: str, spec: TrialSpec, known: db.Found | None, **columns: Any
) -> int:
    """Enter a trial; returns its id.

    Args:
        slot: its place in the plan. known: a trial whose result it takes over. columns: further ones of the row.

    Raises:
        LedgerError: a phase cannot pay for it.
        Overtaken: the slot has a trial. One process at a time plans, unless a server ended its lock.
    """
    s, t = db.study.c, db.trial.c
    connection.execute(select(s.name).where(s.name == study).with_for_update(key_share=True))
    if connection.execute(select(t.id).where(t.study == study, t.slot == slot)).first() is not None:
        raise Overtaken(slot)
    last = connection.execute(select(func.max(t.number)).where(t.study == study)).scalar()
    values: dict[str, Any] = {
        "study": study,
        "number": 0 if last is None else last + 1,
        "slot": slot,
        "fingerprint": spec.fingerprint,
        "arm": spec.arm,
        "phase": spec.phase,
        "spec": stored.spec_to_text(spec),
        **columns,
    }
    if known is not None:
        origin = known.reused_from or known.study
        values |= {"state": known.state, "result": known.result, "reused_from": origin}
        values |= {"started_at": db.now(), "ended_at": db.now()}
        text = f"trial {values['number']} ({spec.arm}, {spec.phase}) was already paid for by {origin}"
        db.note(connection, study, "reused", text)
        return _key(connection.execute(db.trial.insert().values(**values)).inserted_primary_key)
    trial = _key(connection.execute(db.trial.insert().values(state="queued", **values)).inserted_primary_key)
    for phase, amount in spec.bill(0, spec.steps).items():
        if not ledger.reserve(connection, study, phase, amount, f"{trial}/reserve", trial):
            raise ledger.LedgerError(f"phase {phase} had {amount} MFLOP a moment ago")
    queue.enqueue(connection, study, trial)
    return trial


def _key(made: Any) -> int:
    assert made is not None
    return made[0]
