"""What became of a model that was cut out of a larger one."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def sliced(report: Mapping[str, Any], out: Path) -> None:
    """Print what was kept, where layers come from, what starts anew and why, and the losses."""
    console = Console(highlight=False)
    console.print(f"{out}  by policy {report['policy']}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("axis")
    table.add_column("kept")
    for axis, kept in report["kept"].items():
        table.add_row(axis, kept)
    console.print(table)
    pairs = ", ".join(f"{new} from {old}" for new, old in report["layers"].items())
    console.print(f"layers: {pairs}")
    for reason, names in report["fresh"].items():
        console.print(f"anew, since {reason}: {', '.join(names)}")
    for key, (old, new) in report["differs"].items():
        console.print(f"differs: {key} {old} -> {new}")
    if loss := report.get("loss"):
        console.print(
            f"loss on {loss['tokens']:,} tokens: {loss['before']:.4f} nats before, {loss['after']:.4f} after"
        )
