"""A running study in a log file: a line every ten seconds at most, and one at each change of phase."""

import sys
import time

from ablate import standing, units
from ablate.console import parts, standing_parts
from ablate.records import Plan, StudyView, TrialRow

EVERY_SECONDS = 10.0
_NAMED = 3
"""Ended trials that a line names; of the others it gives the number."""


class Log:
    """Shows readings as lines on stderr; call it with each new one."""

    def __init__(self, plan: Plan):
        self._plan = plan
        self._phase = ""
        self._ended: set[int] | None = None
        self._next = 0.0

    def __call__(self, view: StudyView) -> None:
        """Print a line if it is time for one, or the phase is another."""
        phase = standing_parts.stage(view)
        now = time.monotonic()
        if phase == self._phase and now < self._next:
            return
        ended = {row.number: row for row in view.trials if standing.ended(row)}
        news = [] if self._ended is None else [ended[n] for n in sorted(ended.keys() - self._ended)]
        if phase == self._phase and not news and not standing.running(view):
            return
        self._phase, self._ended, self._next = phase, set(ended), now + EVERY_SECONDS
        _say(f"{phase}: {_progress(view)}{_news(news)}")


def _progress(view: StudyView) -> str:
    spent, total = standing.spent(view), view.plan.total_mflop
    told = [
        standing_parts.trial_counts(view.trials),
        f"{units.compute(spent)} of {units.compute(total)} spent",
    ]
    left = standing_parts.time_line(view)
    return ", ".join([*told, left] if left else told)


def _news(rows: list[TrialRow]) -> str:
    """What has ended since the last line, trouble first."""
    if not rows:
        return ""
    rows = sorted(rows, key=lambda row: (row.state == "complete", row.number))
    told = [_ended(row) for row in rows[:_NAMED]]
    if len(rows) > _NAMED:
        told.append(f"{len(rows) - _NAMED} more")
    return "; ended: " + ", ".join(told)


def _ended(row: TrialRow) -> str:
    name = f"{row.number:03d} {parts.words(row.spec.arm)}"
    if row.state == "complete" and row.result is not None:
        return f"{name} {parts.nats(row.result.val_loss)}"
    reason = parts.words(row.result.reason) if row.result else ""
    return f"{name} {row.state}{f' ({reason[:80]})' if reason else ''}"


def _say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)
