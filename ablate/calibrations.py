"""Measured step times in the study database: found again by what they are of, and charged to one study."""

from collections.abc import Iterable

from sqlalchemy import Connection, select, update
from sqlalchemy.exc import IntegrityError

from ablate import db, ledger
from ablate.home import Home
from ablate.records import Plan

PHASE = "calibrate"


def known(home: Home, keys: Iterable[str]) -> dict[str, float]:
    """Seconds per step of those that have been measured."""
    if not db.exists(home):
        return {}
    c = db.calibration.c
    with db.reading(db.connect(home)) as connection:
        wanted = select(c.key, c.step_seconds).where(c.key.in_(list(keys)))
        return {row.key: row.step_seconds for row in connection.execute(wanted)}


def record(home: Home, key: str, step_seconds: float) -> None:
    """Keep a measurement; an earlier one of the same key stands, so that plans made from it stay as they are."""
    values = {"key": key, "step_seconds": step_seconds, "study": None, "at": db.now()}
    try:
        with db.connect(home).begin() as connection:
            connection.execute(db.calibration.insert().values(**values))
    except IntegrityError:
        pass  # another process was quicker


def charge(connection: Connection, plan: Plan) -> None:
    """Let a new study pay for the measurements that no study has paid for yet."""
    c = db.calibration.c
    for speed in plan.speeds:
        mine = update(db.calibration).where(c.key == speed.key, c.study.is_(None))
        if not speed.measured or connection.execute(mine.values(study=plan.study)).rowcount == 0:
            continue
        key = f"{PHASE}/{speed.arm}"
        if not ledger.reserve(connection, plan.study, PHASE, speed.mflop, f"{key}/reserve"):
            raise ledger.LedgerError(f"phase {PHASE} does not cover the {speed.mflop} MFLOP of measuring")
        ledger.debit(connection, plan.study, PHASE, speed.mflop, f"{key}/debit")
        note = f"measuring {speed.arm} is charged: {speed.step_seconds:.4g} s per step"
        db.note(connection, plan.study, PHASE, note)
