"""The stages of curricula on the terminal."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from ablate import stages, units
from ablate.console import parts
from ablate.records import ArmPlan

_TRAINS = {
    stages.SPARSE: "as configured",
    stages.DENSE: "dense",
    stages.WARMUP: "indexer warm-up",
}


def curricula(arms: Sequence[ArmPlan]) -> Table:
    """A row per stage of every arm that has a curriculum."""
    table = parts.table(
        "arm",
        ("sequences", "right"),
        ("steps", "right"),
        ("tokens", "right"),
        ("FLOP per step", "right"),
        ("of compute", "right"),
        "stage",
    )
    for arm in arms:
        if not arm.early:
            continue
        trainer = arm.run.trainer
        last = (trainer.batch_size, trainer.seq_len, arm.counts[-1], arm.step_mflop, stages.SPARSE)
        before = [(s.batch_size, s.seq_len, s.steps, s.step_mflop, s.attention) for s in arm.early]
        for index, (rows, length, steps, mflop, attention) in enumerate([*before, last]):
            table.add_row(
                Text(parts.words(arm.name) if index == 0 else "", style="bold"),
                f"{rows:,} x {length:,}",
                f"{steps:,}",
                units.count(steps * rows * length),
                units.compute(mflop),
                f"{steps * mflop / arm.mflop:.1%}",
                Text(_TRAINS[attention], style="dim"),
            )
    return table
