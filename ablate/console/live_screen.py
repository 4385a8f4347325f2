"""A study while it runs: a live view where somebody watches, plain lines in a log."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.text import Text

from ablate import standing
from ablate.console import log_lines, parts, standing_parts
from ablate.records import Plan, StudyView

PER_SECOND = 2
"""Redraws, by a thread: a new size of the window is followed even where nothing else has changed."""

_EVENTS = 4


@contextmanager
def live(plan: Plan) -> Iterator[Callable[[StudyView], None]]:
    """Yield what shows a new reading of the study, on stderr, until the block ends.

    On a terminal a view that is redrawn and leaves no trace; else, lines (`log_lines`).
    """
    if not parts.is_terminal():
        yield log_lines.Log(plan)
        return
    screen = _Screen(plan)
    console = Console(stderr=True, markup=False, highlight=False, emoji=False)
    with Live(
        screen, console=console, refresh_per_second=PER_SECOND, transient=True, vertical_overflow="crop"
    ):
        yield screen.show


class _Screen:
    """Draws the newest reading to the size that the terminal has now."""

    def __init__(self, plan: Plan):
        self._plan, self._view = plan, None
        self._began = time.monotonic()

    def show(self, view: StudyView) -> None:
        """Keep for the next redraw."""
        self._view = view

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        elapsed = time.monotonic() - self._began
        if self._view is None:
            yield Text(f"{self._plan.study}: starting {self._plan.workers} workers", style="dim")
            return
        yield draw(self._view, elapsed, options.max_width, console.size.height)


def draw(view: StudyView, elapsed: float, width: int, height: int) -> RenderableType:
    """The view in `width` columns and `height` lines: events give way first, then trials, then arms."""
    lines, basis = standing.arms(view)
    head = Text(view.name, style="bold").append(f"  {standing_parts.stage(view)}", style="not bold green")
    progress = standing_parts.progress_rows(view, width, elapsed)
    room = height - len(progress) - 6  # head, blank lines, the heading of the table, Ctrl-C
    arms = max(1, min(len(lines), room))
    room -= arms + 1
    running = min(len(standing.running(view)), max(0, room - 1))
    room -= running + 1
    shown: list[RenderableType] = [
        _line(head, width),
        parts.facts(progress),
        Text(),
        standing_parts.arms_table(
            view, lines, width, arms if arms == len(lines) else max(1, arms - 1), fold=False
        ),
    ]
    if height > 30:
        shown.append(_line(Text(f"ranked by {basis}", style="dim"), width))
        room -= 1
    if running:
        shown += [Text(), standing_parts.running_rows(view, running)]
    room -= 2
    events = standing_parts.event_rows(view, min(_EVENTS, max(0, room - 1)))
    if events:
        shown += [Text(), *(_line(event, width) for event in events)]
    if room > 0:
        hint = "Ctrl-C stops and keeps everything; in a browser: ablate dashboard"
        shown += [Text(), _line(Text(hint, style="dim"), width)]
    return Group(*shown)


def _line(text: Text, width: int) -> Text:
    text.truncate(width, overflow="ellipsis")
    return text
