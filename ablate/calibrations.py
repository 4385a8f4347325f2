"""Measured step times in the study database: found again by what they are of, and charged to one study."""

from collections.abc import Iterable

from sqlalchemy import Column, Connection, Float, String, Table, inspect, select, update
from sqlalchemy.exc import IntegrityError

from ablate import db, ledger
from ablate.home import Home
from ablate.records import Plan

PHASE = "calibrate"

_table = Table(
    "calibration",
    db.metadata,
    Column("key", String, primary_key=True),  # machine, library, arm, shape of a step
    Column("step_seconds", Float, nullable=False),
    Column("study", String),  # which has paid
    Column("at", Float, nullable=False),
)


def known(home: Home, keys: Iterable[str]) -> dict[str, float]:
    """Seconds per step of those that have been measured."""
    if not home.storage and not home.database.exists():
        return {}
    with db.reading(db.connect(home)) as connection:
        if not inspect(connection).has_table(_table.name):
            return {}
        wanted = select(_table.c.key, _table.c.step_seconds).where(_table.c.key.in_(list(keys)))
        return {row.key: row.step_seconds for row in connection.execute(wanted)}


def record(home: Home, key: str, step_seconds: float) -> None:
    """Keep a measurement; an earlier one of the same key stands, so that plans made from it stay as they are."""
    values = {"key": key, "step_seconds": step_seconds, "study": None, "at": db.now()}
    with db.connect(home).begin() as connection:
        _table.create(connection, checkfirst=True)
    try:
        with db.connect(home).begin() as connection:
            connection.execute(_table.insert().values(**values))
    except IntegrityError:
        pass  # another process was quicker


def charge(connection: Connection, plan: Plan) -> None:
    """Let a new study pay for the measurements that no study has paid for yet."""
    for speed in plan.speeds:
        mine = update(_table).where(_table.c.key == speed.key, _table.c.study.is_(None))
        if not speed.measured or connection.execute(mine.values(study=plan.study)).rowcount == 0:
            continue
        key = f"{PHASE}/{speed.arm}"
        if not ledger.reserve(connection, plan.study, PHASE, speed.mflop, f"{key}/reserve"):
            raise ledger.LedgerError(f"phase {PHASE} does not cover the {speed.mflop} MFLOP of measuring")
        ledger.debit(connection, plan.study, PHASE, speed.mflop, f"{key}/debit")
        note = f"measuring {speed.arm} is charged: {speed.step_seconds:.4g} s per step"
        db.note(connection, plan.study, PHASE, note)
