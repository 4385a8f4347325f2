"""What arms get right on a probe, on the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ablate.console import parts
from ablate.records import StudyView
from ablate.scores import SOLVED, Score, ranked


def scores(console: Console, view: StudyView) -> None:
    """Print the scores, best first; nothing where arms read text."""
    if not view.scores:
        return
    console.print(parts.heading(f"Right answers on {parts.words(view.plan.run.data.source)}"))
    table = parts.table(
        "arm",
        ("accuracy", "right"),
        ("solved", "right"),
        ("[95 % CI]", "right"),
        ("steps to it", "right"),
        ("best in search", "right"),
    )
    for score in ranked(view.scores):
        bounded = score.low is not None and score.high is not None
        table.add_row(
            Text(parts.words(score.arm)),
            share(score.accuracy),
            f"{score.solved} of {score.n}",
            f"[{score.low:.0%}, {score.high:.0%}]" if bounded else "",
            "–" if score.steps is None else f"{score.steps:,.0f}",
            share(score.searched),
        )
    console.print(table)
    if any(score.reach for score in view.scores):
        console.print(_reach(view.scores))
    told = f"solved: seeds with more than {SOLVED:.0%} right on held-out sequences; exact interval of their share"
    console.print(Text(told, style="dim"))


def _reach(found: Sequence[Score]) -> Table:
    """Accuracy by how far back answers stand."""
    bins = sorted({far for score in found for far, _ in score.reach})
    table = parts.table("tokens back, up to", *((str(far), "right") for far in bins))
    for score in ranked(found):
        known = dict(score.reach)
        table.add_row(Text(parts.words(score.arm)), *(share(known.get(far)) for far in bins))
    return table


def share(value: float | None) -> str:
    """An accuracy, or a dash."""
    return "–" if value is None else f"{value:.1%}"
