"""Compute multipliers over sizes on the terminal."""

from collections.abc import Sequence

from rich.text import Text

from ablate import units
from ablate.console import parts
from ablate.multiplier import Multiplier
from ablate.records import Plan


def planned(plans: Sequence[Plan]) -> None:
    """Print the studies of a ladder and what they take together."""
    console = parts.console()
    console.print(parts.heading(f"Ladder of {len(plans)} sizes, a study each"))
    table = parts.table("study", ("FLOP per trial", "right"), ("steps", "right"), ("at most", "right"))
    for plan in plans:
        steps = str(min(arm.steps for arm in plan.arms))
        table.add_row(plan.study, units.compute(plan.trial_mflop), steps, units.compute(plan.total_mflop))
    console.print(table)
    total = sum(plan.total_mflop for plan in plans)
    times = [plan.estimated_seconds for plan in plans]
    known = [seconds for seconds in times if seconds is not None]
    told = f", about {units.duration(sum(known))}" if len(known) == len(times) else ""
    console.print(Text(f"together at most {units.compute(total)}{told}"))


def multipliers(found: Sequence[Multiplier]) -> None:
    """Print a row per arm, the most compute saved first, and each in a sentence."""
    console = parts.console()
    console.print(parts.heading("Compute multipliers"))
    table = parts.table("arm", ("γ [95 % CI]", "right"), ("exponent [95 % CI]", "right"), "trend", "level")
    ordered = sorted(found, key=lambda one: -(one.gamma or 0.0))
    for one in ordered:
        gamma = "–" if one.gamma is None else f"{one.gamma:.3f} [{one.low:.3f}, {one.high:.3f}]"
        exponent = f"{one.exponent[0]:+.3f} [{one.exponent[1]:+.3f}, {one.exponent[2]:+.3f}]"
        table.add_row(Text(parts.words(one.arm), "bold"), gamma, exponent, one.trend, one.level)
    console.print(table)
    for one in ordered:
        console.print(Text(parts.words(one.sentence)))
