"""What an open search has found, on the terminal."""

from rich.console import Console
from rich.text import Text

from ablate import units
from ablate.console import parts
from ablate.searched import Proposal, Searched

_SHOWN, _BEST = 12, 5
"""Points of a front that are listed, and of the best while there are no finalists yet."""


def search(console: Console, found: Searched) -> None:
    """Print what became of the proposals, the best or the front, and what fresh seeds left of the finalists."""
    console.print(parts.heading("Open search"))
    counts = ", ".join(f"{number} {state}" for state, number in found.counts.items())
    console.print(Text(f"{len(found.proposals)} proposals: {counts or 'none yet'}"))
    shown = [proposal for proposal in found.proposals if proposal.number in found.front]
    if len(found.objectives) > 1 and shown:
        console.print(_front(found, sorted(shown, key=lambda p: p.value or 0.0)[:_SHOWN]))
        console.print(
            Text(f"no other proposal is better in all of {', '.join(found.objectives)}", style="dim")
        )
        if len(shown) > _SHOWN:
            console.print(Text(f"… {len(shown) - _SHOWN} more of them in the report", style="dim"))
    if not found.finalists:
        best = sorted((p for p in found.proposals if p.trained), key=lambda p: p.value or 0.0)[:_BEST]
        if best and len(found.objectives) == 1:
            console.print(_front(found, best))
            console.print(
                Text("the best so far, on the one seed of the search: nothing is confirmed", style="dim")
            )
        return
    table = parts.table(
        "finalist",
        ("search", "right"),
        ("tuned", "right"),
        ("fresh seeds", "right"),
        ("shrinkage", "right"),
        "is",
    )
    by_number = {proposal.number: proposal for proposal in found.proposals}
    for finalist in found.finalists:
        table.add_row(
            Text(parts.words(finalist.arm), style="bold"),
            parts.nats(finalist.search),
            parts.nats(finalist.tuned),
            parts.nats(finalist.confirmed),
            parts.signed(finalist.shrinkage),
            Text(f"proposal {finalist.proposal}: {parts.words(setting(by_number[finalist.proposal]))}"),
        )
    console.print(table)
    told = f"; that of the baseline is {parts.signed(found.baseline_shrinkage)}"
    text = (
        "shrinkage: loss on fresh seeds less that of the search, which chose the best and enters no verdict"
    )
    console.print(Text(text + (told if found.baseline_shrinkage is not None else ""), style="dim"))


def _front(found: Searched, shown: list[Proposal]):
    costs = found.objectives[1:]
    table = parts.table("proposal", ("loss", "right"), *((_unit(name), "right") for name in costs), "is")
    for proposal in shown:
        figures = [units.count(proposal.costs[name]) for name in costs]
        table.add_row(
            str(proposal.number), parts.nats(proposal.value), *figures, parts.words(setting(proposal))
        )
    return table


def _unit(name: str) -> str:
    """A cost's name, folded where it is long."""
    return name.replace("_per_", "\nper ").replace("_", " ")


def setting(proposal: Proposal) -> str:
    """What a proposal sets, its schedule in canonical form first."""
    overrides = dict(proposal.overrides)
    drawn = overrides.pop("model.compress_ratios", None)
    told = [proposal.schedule if proposal.schedule else str(drawn)] if drawn is not None else []
    return ", ".join([*told, *(f"{key.removeprefix('model.')}={value}" for key, value in overrides.items())])
