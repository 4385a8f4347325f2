"""Charts of losses: along training, and over the learning rate."""

import math
from typing import TYPE_CHECKING, Any

from ablate import rounds
from ablate.figures.parts import DECORATION, SYMBOLS, as_text, drawn, figure_of, named, nothing, padded
from ablate.records import LrCurve, Point, StudyView
from ablate.report import losses
from ablate.report.arms import Arm, arms

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_PARABOLA = 25
"""Points of a drawn quadratic."""


def loss_vs_flops(view: StudyView) -> "Figure":
    """Held-out loss along training: seeds thin, the arm's mean thick.

    Fresh seeds where there are some, else each arm's best search trial. In view is the second half of the
    allowance, where arms differ; a double click shows the rest.
    """
    rows, _ = losses.shown_trials(view)
    lines = {
        face: [line for row in rows.get(face.name, []) if (line := losses.line(row, _flops))]
        for face in arms(view).values()
    }
    traces, late = [], []
    for face, own in drawn(lines):
        mean = losses.mean_line(own)
        if len(own) > 1:
            traces.append(_thin(face, own))
        traces.append(
            {
                "x": [at for at, _ in mean],
                "y": [loss for _, loss in mean],
                "mode": "lines+markers" if face.named else "lines",
                **named(face),
                "line": {"color": face.colour, "width": 2.2 if face.named else 1},
                "marker": {"color": face.colour, "symbol": SYMBOLS[face.mark], "size": 7},
                "hovertemplate": "%{y:.4f} nats at %{x:.3s}FLOP<extra>%{fullData.name}</extra>",
            }
        )
        late += [point for line in own for point in line if 2 * point[0] >= line[-1][0]]
    if not traces:
        return nothing("No trial has ended with a held-out loss yet.")
    figure = figure_of(traces, "training FLOPs", "held-out loss, nats")
    ends = padded([math.log10(at) for at, _ in late])
    figure.update_xaxes(type="log", tickformat="~s", dtick="D1", range=ends)
    figure.update_yaxes(range=padded([loss for _, loss in late]))
    return figure


def loss_vs_lr(view: StudyView) -> "Figure":
    """Tuning: final loss of every search trial over its rate, the quadratic through the best, its optimum.

    The filled mark is the rate that was confirmed. Trials that did not complete are crosses at the top: the
    capped loss that they count with is out of view.
    """
    faces = arms(view)
    curves = {faces[curve.arm]: [curve] for curve in view.lr_curves if curve.points}
    kept = [loss for own in curves.values() for _, loss, state in own[0].points if state == "complete"]
    if not curves:
        return nothing("No search trial has come to a loss yet.")
    low, high = padded(kept) if kept else (0.0, 1.0)
    traces = [trace for face, (curve,) in drawn(curves) for trace in _tuning(face, curve, high)]
    figure = figure_of(traces, "peak learning rate", "final held-out loss, nats")
    rates = sorted({rate for own in curves.values() for rate, _, _ in own[0].points})
    shown = rates if len(rates) <= 7 else rates[:: math.ceil(len(rates) / 7)]
    figure.update_xaxes(type="log", tickvals=shown, ticktext=[f"{rate:.2g}" for rate in shown])
    figure.update_yaxes(range=[low, high + 0.08 * (high - low)])
    return figure


def _flops(point: Point) -> float:
    return point.mflop * 1e6


def _thin(face: Arm, lines: list[losses.Line]) -> dict[str, Any]:
    """Single seeds in one trace, with a gap after each."""
    gap: list[tuple[float | None, float | None]] = [(None, None)]
    points = [point for line in lines for point in [*line, *gap]]
    return {
        "x": [at for at, _ in points],
        "y": [loss for _, loss in points],
        "mode": "lines",
        "line": {"color": face.colour, "width": 0.7},
        "opacity": 0.4,
        "legendgroup": as_text(face.label),
        **DECORATION,
    }


def _tuning(face: Arm, curve: LrCurve, ceiling: float) -> list[dict[str, Any]]:
    """Marks, crosses, the quadratic and its optimum for one arm."""
    group = {"legendgroup": as_text(face.label)}
    done = [(rate, loss) for rate, loss, state in curve.points if state == "complete"]
    lost = [(rate, loss) for rate, loss, state in curve.points if state != "complete"]
    symbol = SYMBOLS[face.mark]
    quadratic = rounds.quadratic(curve.points) if face.named else None
    traces: list[dict[str, Any]] = [
        {
            "x": [rate for rate, _ in done],
            "y": [loss for _, loss in done],
            "mode": "markers" if quadratic else "lines+markers",
            **named(face),
            "line": {"color": face.colour, "width": 1},
            "marker": {
                "color": face.colour,
                "symbol": [symbol if rate == curve.best else f"{symbol}-open" for rate, _ in done],
                "size": 8,
            },
            "hovertemplate": "%{y:.4f} nats at %{x:.3g}<extra>%{fullData.name}</extra>",
        }
    ]
    if lost:
        rates = [rate for rate, _ in lost]
        cross = {"color": face.colour, "symbol": "x-thin-open", "size": 9, "line": {"width": 2}}
        traces += [
            {"x": rates, "y": [ceiling] * len(lost), "mode": "markers", "marker": cross, **group}
            | DECORATION,
            {
                "x": rates,
                "y": [loss for _, loss in lost],
                "mode": "markers",
                "marker": cross,
                **named(face),
                "name": f"{as_text(face.label)}, not completed",
                "showlegend": False,
            },
        ]
    if quadratic:
        ends = math.log2(min(rate for rate, _ in done)), math.log2(max(rate for rate, _ in done))
        at = [ends[0] + (ends[1] - ends[0]) * i / (_PARABOLA - 1) for i in range(_PARABOLA)]
        traces.append(
            {
                "x": [2**x for x in at],
                "y": [quadratic.value + quadratic.curvature / 2 * (x - quadratic.x) ** 2 for x in at],
                "mode": "lines",
                "line": {"color": face.colour, "width": 1.4, "dash": "dot"},
                **group,
                **DECORATION,
            }
        )
    if quadratic and curve.optimum is not None:
        traces.append(
            {
                "x": [curve.optimum],
                "y": [quadratic.value],
                "mode": "markers",
                "marker": {"color": face.colour, "symbol": "star", "size": 11},
                **named(face),
                "name": f"{as_text(face.label)}, optimum of the quadratic",
                "showlegend": False,
                "hovertemplate": "%{x:.3g}<extra>%{fullData.name}</extra>",
            }
        )
    return traces
