"""Pieces that the screens are made of: numbers as people read them, bars, small curves, tables."""

import math
import sys
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

NARROWEST = 80
"""Columns that every table fits in; a narrower terminal wraps lines, and no number is cut."""

ROOMY = 110
"""Columns from which on tables need not fold two figures into one cell."""

KINDS = {"helps": "green", "hurts": "red", "equivalent": "cyan", "inconclusive": "yellow"}
"""Colour of a verdict; the word is always there too."""

STATES = {"planned": "cyan", "running": "green", "stopped": "yellow", "done": "green"}

_LEVELS = "▁▂▃▄▅▆▇█"


def console(*, stderr: bool = False) -> Console:
    """Text is shown as it is: arm names and events are no markup."""
    made = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if made.width < NARROWEST:
        made.width = NARROWEST
    return made


def words(text: str) -> str:
    """One line without control characters, whatever a name or a worker's last words hold."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def nats(value: float | None) -> str:
    """A loss, or a dash."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.4f}"


def signed(value: float | None) -> str:
    """A difference with its sign, or a dash."""
    return "–" if value is None or not math.isfinite(value) else f"{value:+.4f}".replace("-", "−")


def interval(low: float | None, high: float | None) -> str:
    """`[low, high]`; empty where there is none."""
    if low is None or high is None or not math.isfinite(high - low):
        return ""
    return f"[{signed(low)}, {signed(high)}]"


def percent(value: float) -> str:
    """A relative difference with its sign, to a tenth of a percent unless it is huge."""
    return f"{value:+.{0 if abs(value) >= 10 else 1}%}".replace("-", "−")


def probability(value: float) -> str:
    """A p-value, or a dash."""
    if not math.isfinite(value):
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def rate(value: float | None) -> str:
    """A learning rate, or a dash."""
    return "–" if value is None else f"{value:.3g}"


def bar(share: float, width: int, style: str = "green") -> Text:
    """A bar of that many columns, readable without colours too."""
    full = round(width * min(1.0, max(0.0, share)))
    return Text("━" * full, style=style).append("─" * (width - full), style="dim")


def sparkline(values: Sequence[float], width: int) -> Text:
    """A curve in that many columns, lowest value at the bottom; empty with fewer than two values."""
    known = [v for v in values if math.isfinite(v)]
    if len(known) < 2:
        return Text()
    picked = [known[round(i * (len(known) - 1) / (width - 1))] for i in range(width)]
    low, span = min(picked), (max(picked) - min(picked)) or 1.0
    return Text("".join(_LEVELS[round((v - low) / span * (len(_LEVELS) - 1))] for v in picked), style="blue")


def table(*columns: str | tuple[str, str], fold: bool = True) -> Table:
    """An empty table. A column is its heading, flush left and foldable, or (heading, "right") for numbers.

    Args:
        fold: long names go on in a further line; otherwise they end in an ellipsis.
    """
    made = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for column in columns:
        if isinstance(column, tuple):
            made.add_column(column[0], justify="right", no_wrap=True)
        else:
            made.add_column(column, overflow="fold" if fold else "ellipsis", no_wrap=not fold)
    return made


def heading(text: str) -> Text:
    """The title of a section, with a blank line before it."""
    return Text(f"\n{text}", style="bold")


def facts(rows: Sequence[tuple[str, str | Text]]) -> Table:
    """Labels and what they label, aligned."""
    made = Table.grid(padding=(0, 2))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for label, value in rows:
        made.add_row(label, value)
    return made


def is_terminal(stderr: bool = True) -> bool:
    """Whether somebody watches; a log file gets plain lines."""
    return Console(stderr=stderr).is_terminal and (sys.stderr if stderr else sys.stdout).isatty()
