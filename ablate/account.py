"""Where the compute of a study went: the account per phase and arm, proved from the entries of the ledger."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, func, select, true

from ablate import db, ledger, stored
from ablate.home import Home
from ablate.jsonable import jsonable
from ablate.records import PhaseAccount
from ablate.stages import EVALUATION


@dataclass(frozen=True, kw_only=True)
class ArmAccount:
    """One arm in one phase, amounts in MFLOP.

    Attributes:
        returned: what ended trials had in reserve and did not use.
        waste: what a fault made necessary twice; the contingency paid for it.
        trials: how many by state; results of other studies, which cost nothing, count as `reused`.
    """

    arm: str
    spent: int
    reserved: int
    returned: int
    waste: int
    trials: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of the ledger: changes of an account in MFLOP. `trial` is its number in the study."""

    at: float
    kind: str
    phase: str
    trial: int | None
    attempt: int | None
    spent: int
    reserved: int
    waste: int
    key: str


@dataclass(frozen=True, kw_only=True)
class Account:
    """One consistent reading of a study's ledger.

    Attributes:
        fault: where the entries do not account for every FLOP; empty where they do.
    """

    study: str
    state: str
    total: int
    phases: tuple[PhaseAccount, ...]
    arms: Mapping[str, tuple[ArmAccount, ...]]
    """By phase."""
    entries: int
    fault: str
    events: tuple[Entry, ...] = field(default=())


def account(name: str, home: Home, with_events: bool = False) -> Account:
    """The account of a study, and whether its entries prove it.

    Args:
        with_events: also every entry, oldest first.

    Raises:
        BadInputError: there is no such study.
    """
    with db.reading(db.connect(home)) as connection:
        study = db.study_row(connection, name, home)
        plan = stored.plan_from_text(study.plan)
        fault = ""
        try:
            ledger.check(connection, name, plan.total_mflop)
        except AssertionError as error:
            fault = str(error)
        phases = ledger.accounts(connection, name)
        e = db.ledger.c
        count = select(func.count()).select_from(db.ledger).where(e.study == name)
        return Account(
            study=name,
            state=study.state,
            total=plan.total_mflop,
            phases=phases,
            arms={p.phase: _arms(connection, name, p.phase, [arm.name for arm in plan.arms]) for p in phases},
            entries=connection.execute(count).scalar_one(),
            fault=fault,
            events=_entries(connection, name) if with_events else (),
        )


def answer(found: Account) -> dict[str, Any]:
    """The account as data: strict JSON."""
    phases = [
        jsonable(phase)
        | {"free": phase.cap - phase.spent - phase.reserved, "arms": jsonable(found.arms[phase.phase])}
        for phase in found.phases
    ]
    whole = jsonable(found) | {"phases": phases, "accounted": not found.fault}
    del whole["arms"]
    return whole


def _arms(connection: Connection, study: str, phase: str, order: Sequence[str]) -> tuple[ArmAccount, ...]:
    """Accounts of the arms that have trials in a phase, in the order of the plan."""
    e, t = db.ledger.c, db.trial.c
    sums: dict[str, Counter[str]] = {}
    booked = (
        select(t.arm, e.kind, e.key, e.spent, e.reserved)
        .join(db.trial, t.id == e.trial)
        .where(e.study == study, e.phase == phase)
    )
    for row in connection.execute(booked):
        own = sums.setdefault(row.arm, Counter())
        own["spent"] += row.spent
        own["reserved"] += row.reserved
        own["returned"] -= row.reserved if row.kind == "release" else 0
        own["waste"] -= row.spent if ledger.given_back(row.key) else 0
    trials: dict[str, Counter[str]] = {}
    pays = t.phase == phase if phase != EVALUATION else true()
    for row in connection.execute(select(t.arm, t.state, t.reused_from).where(t.study == study, pays)):
        trials.setdefault(row.arm, Counter())["reused" if row.reused_from else row.state] += 1
        sums.setdefault(row.arm, Counter())
    return tuple(
        ArmAccount(
            arm=arm,
            trials=dict(trials[arm]),
            **{name: sums[arm][name] for name in ("spent", "reserved", "returned", "waste")},
        )
        for arm in order
        if arm in trials
    )


def _entries(connection: Connection, study: str) -> tuple[Entry, ...]:
    e = db.ledger.c
    rows = connection.execute(
        select(db.ledger, db.trial.c.number).outerjoin(db.trial).where(e.study == study).order_by(e.id)
    )
    return tuple(
        Entry(
            at=row.at,
            kind=row.kind,
            phase=row.phase,
            trial=row.number,
            attempt=ledger.attempt_of(row.key),
            spent=row.spent,
            reserved=row.reserved,
            waste=row.waste,
            key=row.key,
        )
        for row in rows
    )
