"""`ablate ledger`: the account of a study per phase and arm, its proof, and the log of entries."""

import time

from rich.text import Text

from ablate import units
from ablate.account import Account, ArmAccount
from ablate.console import parts

_STATES = {"complete": "done"}


def ledger(found: Account, with_events: bool = False) -> None:
    """Print accounts, whether the entries prove them, and with `with_events` every entry."""
    console = parts.console()
    console.print(
        Text(found.study, style="bold").append(f"  {found.state}", parts.STATES.get(found.state, ""))
    )
    amounts = ("cap", "spent", "reserved", "free", "returned", "waste")
    table = parts.table("FLOP", *((name, "right") for name in amounts), "trials")
    for phase in found.phases:
        arms = found.arms[phase.phase]
        free = phase.cap - phase.spent - phase.reserved
        returned = sum(arm.returned for arm in arms)
        numbers = (phase.cap, phase.spent, phase.reserved, free, returned, phase.waste)
        table.add_row(Text(phase.phase, "bold"), *map(_amount, numbers), _count(arms))
        for arm in arms:
            own = (
                "",
                _amount(arm.spent),
                _amount(arm.reserved),
                "",
                _amount(arm.returned),
                _amount(arm.waste),
            )
            table.add_row(f"  {parts.words(arm.arm)}", *own, _trials(arm))
    console.print(table)
    if with_events:
        _events(found)
    if found.fault:
        console.print(
            Text("\nThe ledger is broken: ", "bold red").append(parts.words(found.fault), "default")
        )
        return
    spent = sum(phase.spent for phase in found.phases)
    console.print(
        Text(
            f"\nEvery FLOP is accounted for: {found.entries:,} entries sum to these accounts and to what each trial "
            f"has paid; no phase is beyond its cap; {units.compute(spent)} of {units.compute(found.total)} are spent.",
            style="green",
        )
    )
    if any(phase.waste for phase in found.phases):
        told = "Waste is what a fault made necessary twice; the contingency pays for it, and no arm."
        console.print(Text(told, style="dim"))


def _events(found: Account) -> None:
    console = parts.console()
    console.print(parts.heading("Entries, in MFLOP"))
    table = parts.table(
        "time",
        "kind",
        "phase",
        ("trial", "right"),
        ("try", "right"),
        ("spent", "right"),
        ("reserved", "right"),
        "key",
    )
    for entry in found.events:
        table.add_row(
            time.strftime("%H:%M:%S", time.localtime(entry.at)),
            entry.kind,
            entry.phase,
            *("–" if number is None else str(number) for number in (entry.trial, entry.attempt)),
            _change(entry.spent),
            _change(entry.reserved),
            entry.key,
        )
    console.print(table)


def _amount(mflop: int) -> str:
    """`1.24 T`; a dash for nothing."""
    return units.compute(mflop).removesuffix("FLOP").strip() if mflop else "–"


def _change(mflop: int) -> str:
    return f"{mflop:+,}".replace("-", "−") if mflop else "–"


def _trials(arm: ArmAccount) -> str:
    return ", ".join(f"{count} {_STATES.get(state, state)}" for state, count in arm.trials.items())


def _count(arms: tuple[ArmAccount, ...]) -> str:
    count = sum(sum(arm.trials.values()) for arm in arms)
    return str(count) if count else ""
