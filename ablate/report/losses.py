"""Held-out losses along training as lines: what the figures of the report and of the portal draw."""

import math
import statistics
from collections.abc import Callable

from ablate.records import Point, StudyView, TrialRow
from ablate.report.arms import confirmed

Line = list[tuple[float, float]]
"""(compute or tokens, loss), ascending."""

_MORE_POINTS = 60
"""Points of one drawn line at most; a report of a thousand trials stays small."""


def shown_trials(view: StudyView) -> tuple[dict[str, list[TrialRow]], str]:
    """Fresh seeds where there are some; before that the best learning rate of the search."""
    done = confirmed(view)
    if any(done.values()):
        kept = {arm: [r for r in rows.values() if r.state == "complete"] for arm, rows in done.items()}
        return kept, "Fresh seeds of the confirm phase that ran to their end."
    best = {curve.arm: curve.best for curve in view.lr_curves}
    rows = {
        arm: [r for r in view.trials if r.spec.arm == arm and r.spec.lr == lr and r.state == "complete"]
        for arm, lr in best.items()
    }
    return (
        rows,
        "No fresh seed has ended yet: these are search trials at each arm's best rate, which prove nothing.",
    )


def line(row: TrialRow, x: Callable[[Point], float]) -> Line:
    """A trial's held-out losses, thinned."""
    curve = row.result.curve if row.result else ()
    known = [
        (x(point), point.val_loss)
        for point in curve
        if point.val_loss is not None and math.isfinite(point.val_loss) and x(point) > 0
    ]
    if len(known) <= _MORE_POINTS:
        return known
    return [known[round(i * (len(known) - 1) / (_MORE_POINTS - 1))] for i in range(_MORE_POINTS)]


def mean_line(lines: list[Line]) -> Line:
    """Mean over seeds where all of them have a value; seeds of an arm are evaluated at the same steps."""
    together = {at for at, _ in lines[0]}.intersection(*({at for at, _ in one} for one in lines))
    values = {at: [loss for one in lines for place, loss in one if place == at] for at in together}
    return [(at, statistics.fmean(values[at])) for at in sorted(together)] or lines[0]


def gap(own: dict[int, Line], baseline: dict[int, Line]) -> Line:
    """Arm minus baseline over seeds that both have; the baseline is read off between its own points."""
    import numpy as np

    common = own.keys() & baseline.keys()
    if not common:
        return []
    mean = mean_line([own[replicate] for replicate in sorted(common)])
    base = mean_line([baseline[replicate] for replicate in sorted(common)])
    slack = 1.015  # evaluations fall on whole steps, of which the first has dozens before it
    at = [(x, loss) for x, loss in mean if base[0][0] / slack <= x <= base[-1][0] * slack]
    known = np.interp(np.log([x for x, _ in at]), np.log([x for x, _ in base]), [loss for _, loss in base])
    return [(x, loss - float(other)) for (x, loss), other in zip(at, known, strict=True)]
