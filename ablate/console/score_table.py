"""What arms get right on a probe, on the terminal."""

from rich.console import Console
from rich.text import Text

from ablate.console import parts
from ablate.records import StudyView
from ablate.scores import SOLVED, ranked


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
            _share(score.accuracy),
            f"{score.solved} of {score.n}",
            f"[{score.low:.0%}, {score.high:.0%}]" if bounded else "",
            "–" if score.steps is None else f"{score.steps:,.0f}",
            _share(score.searched),
        )
    console.print(table)
    told = f"solved: seeds with more than {SOLVED:.0%} right on held-out sequences; exact interval of their share"
    console.print(Text(told, style="dim"))


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"
