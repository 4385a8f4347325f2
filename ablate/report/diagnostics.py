"""Figure of diagnostics along training, one small panel each."""

import math
import statistics
from collections import defaultdict
from typing import TYPE_CHECKING

from ablate.records import StudyView, TrialRow
from ablate.report import formats, losses
from ablate.report.arms import QUIET, Arm
from ablate.report.drawing import Figure
from ablate.report.losses import Line
from ablate.report.table import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing

_COLUMNS = 3


def along_training(view: StudyView, arms: dict[str, Arm]) -> Figure | None:
    """Every diagnostic of the probes, mean over layers and seeds, against the share of the allowance."""
    rows, basis = losses.shown_trials(view)
    found = {arm: _lines(rows.get(arm, [])) for arm in arms}
    metrics = sorted({metric for lines in found.values() for metric, line in lines.items() if len(line) > 1})
    if not metrics:
        return None
    height = -(-len(metrics) // _COLUMNS)

    def draw(drawing: "Drawing") -> None:
        panels = drawing.subplots(height, _COLUMNS, sharex=True, squeeze=False)
        for axes in panels.flat[len(metrics) :]:
            axes.set_axis_off()
        for axes, metric in zip(panels.flat, metrics, strict=False):
            for arm, lines in found.items():
                if line := lines.get(metric):
                    own = arms[arm]
                    axes.plot(
                        [at for at, _ in line],
                        [value for _, value in line],
                        color=own.colour,
                        linewidth=1.2 if own.named else 0.7,
                        marker=own.mark,
                        markersize=2.5 if own.named else 0,
                    )
            axes.set_title(metric, loc="left", fontsize=7.5, color=QUIET)
            axes.set_xlim(0, 1.03)
            axes.tick_params(labelsize=7)
        drawing.supxlabel("share of the training", fontsize=9.5, color=QUIET)

    header = ["Diagnostic", "Arm", "share of the training", "mean over layers and seeds"]
    cells = [
        [metric, arms[arm].label, f"{at:.0%}", formats.general(value)]
        for metric in metrics
        for arm, lines in found.items()
        for at, value in lines.get(metric, [])
    ]
    title = "Diagnostics along training"
    note = f"{basis} Means over all layers that report one; by layer they are in MLflow, the last ones also below."
    return Figure("diagnostics", title, note, plain(title, header, cells), 0.6 + 1.15 * height, draw)


def _lines(rows: list[TrialRow]) -> dict[str, Line]:
    """By metric: (share of the allowance, mean over layers and trials)."""
    values: dict[str, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        for point in row.result.curve if row.result else ():
            at = row.spec.charge(point.step) / max(1, row.spec.allowance_mflop)
            for name, value in point.diagnostics.items():
                if math.isfinite(value):
                    values[name.rpartition("/")[2]][at].append(value)
    return {
        metric: [(at, statistics.fmean(found)) for at, found in sorted(line.items())]
        for metric, line in values.items()
    }
