"""Charts of what a study concludes and what it cost."""

import math
from typing import TYPE_CHECKING

from ablate.figures.parts import SYMBOLS, as_text, figure_of, note, nothing
from ablate.records import StudyView
from ablate.report import contents, effects, formats
from ablate.report.arms import BAND, INK, QUIET, arms

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def forest(view: StudyView) -> "Figure":
    """Differences to the baseline with their 95 % intervals over the margin's band, best arm on top."""
    faces = arms(view)
    verdicts = sorted(view.verdicts, key=lambda one: one.delta)
    if not verdicts:
        return nothing("No verdict yet.")
    labels = [as_text(faces[one.arm].label) for one in verdicts]
    traces = []
    for label, one in zip(labels, verdicts, strict=True):
        face = faces[one.arm]
        bounded = math.isfinite(one.high - one.low)  # one pair of seeds has no interval
        error = {"array": [one.high - one.delta], "arrayminus": [one.delta - one.low]} if bounded else {}
        traces.append(
            {
                "x": [one.delta],
                "y": [label],
                "name": label,
                "mode": "markers+text",
                "text": [contents.KINDS[one.kind]],
                "textposition": "top center",
                "textfont": {"size": 11, "color": QUIET},
                "marker": {"color": face.colour, "symbol": SYMBOLS[face.mark], "size": 10},
                "error_x": {"type": "data", "color": face.colour, "thickness": 2.2, "width": 0, **error},
                "hovertemplate": "%{x:+.4f} nats<extra>%{fullData.name}</extra>",
                "showlegend": False,
            }
        )
    margin, base = verdicts[0].margin, as_text(faces[view.plan.baseline.name].label)
    row = 44 if len(labels) <= 12 else 28  # pixels
    figure = figure_of(traces, "difference in loss, nats", "", 110 + row * len(labels))
    figure.update_yaxes(type="category", categoryarray=labels, range=[len(labels) - 0.5, -0.7])
    figure.update_xaxes(nticks=6)
    figure.add_vrect(-margin, margin, fillcolor=BAND, line_width=0, layer="below")
    figure.add_vline(0, line={"color": INK, "width": 1}, layer="below")
    note(figure, base, x=0, y=1, yref="paper", yanchor="bottom")
    return figure


def budget_bar(view: StudyView) -> "Figure":
    """Where the compute of each phase went."""
    rows = [row for row in contents.budget(view).rows[:-1] if row["cap"]]
    if not rows:
        return nothing("No compute has been allotted yet.")
    divisor, unit = formats.scale(max(row["cap"] for row in rows) * 1e6, "FLOP")
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "x": [row[key] * 1e6 / divisor for row in rows],
            "y": [row["phase"] for row in rows],
            "name": words,
            "marker": {"color": colour},
            "hovertemplate": f"%{{x:.3~g}} {unit}<extra>%{{fullData.name}}</extra>",
        }
        for key, (words, colour) in effects.PARTS.items()
    ]
    figure = figure_of(traces, f"compute, {unit}", "", 150 + 46 * len(rows))
    figure.update_layout(barmode="stack", bargap=0.45)
    figure.update_yaxes(type="category", autorange="reversed")
    return figure
