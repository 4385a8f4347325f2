"""What became of a model that was cut out of a larger one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.text import Text

from ablate.console import parts

NAMES = {
    "heads": "heads per group",
    "latent": "q_lora_rank",
    "ranks": "o_lora_rank",
    "iheads": "indexer heads",
    "ichannels": "indexer channels",
    "width": "expert width",
    "k": "experts per token",
}
"""Axes as people know them, where the code has other names for them."""


def sliced(report: Mapping[str, Any], out: Path) -> None:
    """Print what was kept, where layers come from, what starts anew and why, and the losses."""
    console = parts.console()
    console.print(parts.heading(f"{out}, cut by {report['policy']}"))
    table = parts.table("axis", ("kept", "right"))
    for axis, kept in report["kept"].items():
        table.add_row(NAMES.get(axis, axis), kept)
    console.print(table)
    origins = ", ".join(f"{new} from {old}" for new, old in report["layers"].items() if new != old)
    console.print(Text(f"layers: {origins or 'each from the one of its number'}"))
    for reason, names in report["fresh"].items():
        console.print(Text(f"anew, since {reason}: {', '.join(names)}"))
    for key, (old, new) in report["differs"].items():
        console.print(Text(f"differs: {key} was {old}, is {new}"))
    if loss := report.get("loss"):
        console.print(
            Text(
                f"loss on {loss['tokens']:,} tokens: {loss['before']:.4f} nats before, {loss['after']:.4f} after"
            )
        )
