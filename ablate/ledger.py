"""The ledger of a study: compute reserved, spent and returned, in integer MFLOP.

Every change is one entry, known by its phase and key. An entry that is already there is not made again, so any
step may be repeated after a crash. A change that would break `spent + reserved <= cap` is refused as a whole, and the
database refuses it too (CHECK). All functions act inside the caller's transaction.
"""

from collections.abc import Mapping

from sqlalchemy import Connection, func, select, update

from ablate import db, stored
from ablate.errors import AblateError
from ablate.records import PhaseAccount
from ablate.stages import EVALUATION

CONTINGENCY = "contingency"
"""The phase that pays for work that a fault made necessary twice."""

_BACK = "/back"


class LedgerError(AblateError):
    """A payment that nothing covers: a defect, or an exhausted contingency."""


def open_accounts(connection: Connection, study: str, caps: Mapping[str, int], total: int) -> None:
    """Create the budget rows of a study.

    Raises:
        ValueError: the caps exceed `total`.
    """
    if sum(caps.values()) > total:
        raise ValueError(f"caps {dict(caps)} sum to more than the total of {total} MFLOP")
    for phase, cap in caps.items():
        connection.execute(
            db.budget.insert().values(study=study, phase=phase, cap=cap, spent=0, reserved=0, waste=0)
        )


def available(connection: Connection, study: str, phase: str) -> int:
    """MFLOP of a phase that are neither spent nor reserved."""
    b = db.budget.c
    return connection.execute(
        select(b.cap - b.spent - b.reserved).where(b.study == study, b.phase == phase)
    ).scalar_one()


def covers(connection: Connection, study: str, bill: Mapping[str, int]) -> bool:
    """Whether every phase has what a bill asks of it."""
    return all(available(connection, study, phase) >= amount for phase, amount in bill.items())


def reserve(
    connection: Connection, study: str, phase: str, amount: int, key: str, trial: int | None = None
) -> bool:
    """Set `amount` aside; False (and nothing changed) where the phase cannot cover it."""
    return _apply(connection, study, phase, "reserve", key, trial, reserved=amount)


def debit(
    connection: Connection, study: str, phase: str, amount: int, key: str, trial: int | None = None
) -> None:
    """Spend `amount` of what is reserved, before the work is done.

    Raises:
        LedgerError: it was not reserved.
    """
    if _seen(connection, study, phase, key):
        return
    if trial is not None and amount > outstanding(connection, study, phase, trial):
        raise LedgerError(f"trial {trial} wants {amount} MFLOP more than its reservation holds")
    if not _apply(connection, study, phase, "debit", key, trial, spent=amount, reserved=-amount):
        raise LedgerError(f"{amount} MFLOP of phase {phase} were never reserved")


def refund(
    connection: Connection, study: str, phase: str, amount: int, key: str, trial: int | None = None
) -> None:
    """Back from spent to reserved: a chunk that was paid ahead and not computed."""
    if amount and not _apply(connection, study, phase, "refund", key, trial, spent=-amount, reserved=amount):
        raise LedgerError(f"{amount} MFLOP of phase {phase} were never spent")


def release(connection: Connection, study: str, phase: str, trial: int) -> int:
    """End a trial's reservation; returns the MFLOP that go back to the phase."""
    rest = outstanding(connection, study, phase, trial)
    if rest and not _apply(connection, study, phase, "release", f"{trial}/release", trial, reserved=-rest):
        raise LedgerError(f"trial {trial} holds {rest} MFLOP that phase {phase} does not")
    return rest


def waste(
    connection: Connection, study: str, lost: Mapping[str, int], key: str, trial: int | None = None
) -> bool:
    """Let the contingency pay for what a fault lost, and give phases back what they paid for that.

    False (and nothing changed) where the contingency cannot cover all of it; the phases then keep the charge.

    Args:
        lost: MFLOP by phase.
    """
    whole = sum(lost.values())
    if not _apply(connection, study, CONTINGENCY, "waste", f"{key}/paid", trial, spent=whole, waste=whole):
        return False
    for phase, amount in lost.items():
        refund(connection, study, phase, amount, f"{key}{_BACK}", trial)
    return True


def given_back(key: str) -> bool:
    """Whether an entry gave a phase back what a fault lost."""
    return key.endswith(_BACK)


def outstanding(connection: Connection, study: str, phase: str, trial: int) -> int:
    """MFLOP that a trial still holds in reserve."""
    entry = db.ledger.c
    held = select(func.coalesce(func.sum(entry.reserved), 0)).where(
        entry.trial == trial, entry.study == study, entry.phase == phase
    )
    return int(connection.execute(held).scalar_one())


def accounts(connection: Connection, study: str) -> tuple[PhaseAccount, ...]:
    """All phases of a study, in the order in which they were opened."""
    rows = connection.execute(select(db.budget).where(db.budget.c.study == study)).mappings()
    order = {"calibrate": 0, "search": 1, "confirm": 2, EVALUATION: 3, CONTINGENCY: 4}
    columns = ("phase", "cap", "spent", "reserved", "waste")
    found = [PhaseAccount(**{name: row[name] for name in columns}) for row in rows]
    return tuple(sorted(found, key=lambda account: order.get(account.phase, 9)))


def check(connection: Connection, study: str, total: int) -> None:
    """Prove the invariant from the entries: of every account, and of every trial that they name.

    Raises:
        AssertionError: with the account that is wrong.
    """
    booked = _booked(connection, study)
    found = accounts(connection, study)
    for account in found:
        sums = tuple(
            map(sum, zip(*(v for (phase, _), v in booked.items() if phase == account.phase), strict=True))
        )
        stated = (account.spent, account.reserved, account.waste)
        if (sums or (0, 0, 0)) != stated:
            raise AssertionError(f"{study}/{account.phase}: entries sum to {sums}, not {stated}")
        if account.spent + account.reserved > account.cap or min(stated) < 0:
            raise AssertionError(f"{study}: {account} is outside its cap")
    if sum(account.spent + account.reserved for account in found) > total:
        raise AssertionError(f"{study}: more than {total} MFLOP spent and reserved")
    t = db.trial.c
    columns = (t.id, t.number, t.phase, t.state, t.spec, t.paid_steps, t.wasted)
    for row in connection.execute(select(*columns).where(t.study == study, t.reused_from.is_(None))):
        bill = stored.spec_from_text(row.spec).bill(0, row.paid_steps)
        for phase in (row.phase, EVALUATION):
            spent, reserved, _ = booked.get((phase, row.id), (0, 0, 0))
            owed = bill.get(phase, 0)
            if spent != owed:
                text = f"{phase} has spent {spent} MFLOP, but {row.paid_steps} steps of {owed} in all are paid for"
                raise AssertionError(f"{study}, trial {row.number}: {text}")
            if reserved < 0 or (reserved and row.state not in ("queued", "running")):
                raise AssertionError(f"{study}, trial {row.number}, {row.state}: holds {reserved} MFLOP")
        if booked.get((CONTINGENCY, row.id), (0, 0, 0)) != (row.wasted, 0, row.wasted):
            raise AssertionError(f"{study}, trial {row.number}: not {row.wasted} MFLOP of waste are booked")


def attempt_of(key: str) -> int | None:
    """Number of the attempt that made an entry; None for what the trial as a whole booked."""
    parts = key.split("/")
    return int(parts[1]) if len(parts) > 2 else None


def _booked(connection: Connection, study: str) -> dict[tuple[str, int | None], tuple[int, int, int]]:
    """Sums of entries, (spent, reserved, waste), by phase and trial."""
    entry = db.ledger.c
    changes = (entry.spent, entry.reserved, entry.waste)
    sums = (
        select(entry.phase, entry.trial, *(func.sum(change).label(change.name) for change in changes))
        .where(entry.study == study)
        .group_by(entry.phase, entry.trial)
    )
    return {
        (row.phase, row.trial): (int(row.spent), int(row.reserved), int(row.waste))
        for row in connection.execute(sums)
    }


def _seen(connection: Connection, study: str, phase: str, key: str) -> bool:
    entry = db.ledger.c
    same = select(entry.id).where(entry.study == study, entry.phase == phase, entry.key == key)
    return connection.execute(same).first() is not None


def _hold(connection: Connection, study: str) -> None:
    """Lock all accounts of a study in one order, so that transactions that change several never wait in a circle."""
    b = db.budget.c
    accounts = select(b.phase).where(b.study == study).order_by(b.phase).with_for_update()
    connection.execute(accounts).all()


def _apply(
    connection: Connection,
    study: str,
    phase: str,
    kind: str,
    key: str,
    trial: int | None,
    *,
    spent: int = 0,
    reserved: int = 0,
    waste: int = 0,
) -> bool:
    """The one way in which an account changes; True also where the entry is there already."""
    if _seen(connection, study, phase, key):
        return True
    _hold(connection, study)
    b = db.budget.c
    changed = connection.execute(
        update(db.budget)
        .where(
            b.study == study,
            b.phase == phase,
            b.spent + b.reserved + (spent + reserved) <= b.cap,
            b.spent + spent >= 0,
            b.reserved + reserved >= 0,
        )
        .values(spent=b.spent + spent, reserved=b.reserved + reserved, waste=b.waste + waste)
    )
    if changed.rowcount == 0:
        return False
    connection.execute(
        db.ledger.insert().values(
            study=study,
            phase=phase,
            kind=kind,
            key=key,
            trial=trial,
            spent=spent,
            reserved=reserved,
            waste=waste,
            at=db.now(),
        )
    )
    return True
