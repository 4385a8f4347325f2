"""The charts of the portal: Plotly figures with the colours, marks and order of arms of the report.

Names become text before they get in, because Plotly reads HTML in every string. Colours are those of a light
page; `layout.meta["dark"]` says what takes the place of each on a dark one. A study that has nothing to show
yet has a figure that says so. Plotly is imported when a figure is made.
"""

import html
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ablate import verdict
from ablate.records import LrCurve, StudyView
from ablate.report import contents, effects, formats, losses
from ablate.report.arms import BAND, CARD, INK, LINE, ON_DARK, QUIET, Arm, arms

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SYMBOLS = {
    "o": "circle",
    "s": "square",
    "^": "triangle-up",
    "D": "diamond",
    "v": "triangle-down",
    "P": "cross",
    "X": "x",
}
"""Marks of `ablate.report.arms` by Plotly's names."""

_DECORATION = {"hoverinfo": "skip", "showlegend": False}
"""Of traces that repeat what others say: they answer no pointer and are in no table."""

_PARABOLA = 25
"""Points of a drawn quadratic."""


def forest(view: StudyView) -> "Figure":
    """Differences to the baseline with their 95 % intervals over the margin's band, best arm on top."""
    faces = arms(view)
    verdicts = sorted(view.verdicts, key=lambda one: one.delta)
    if not verdicts:
        return _nothing("No verdict yet: no fresh seed has been compared.")
    labels = [_text(faces[one.arm].label) for one in verdicts]
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
    margin, base = verdicts[0].margin, _text(faces[view.plan.baseline.name].label)
    figure = _figure(traces, f"loss minus that of {base}, nats (left is better)", "", 110 + 44 * len(labels))
    figure.update_yaxes(type="category", categoryarray=labels, range=[len(labels) - 0.5, -0.7])
    figure.update_xaxes(zeroline=False)
    figure.add_vrect(-margin, margin, fillcolor=BAND, line_width=0, layer="below")
    figure.add_vline(0, line={"color": INK, "width": 1}, layer="below")
    return figure


def loss_vs_flops(view: StudyView) -> "Figure":
    """Held-out loss along training: seeds thin, the arm's mean thick.

    Fresh seeds where there are some, else each arm's best search trial. What is in view are the losses from a
    quarter of the allowance on, where arms differ; the axis can be pulled out to the rest.
    """
    rows, _ = losses.shown_trials(view)
    lines = {
        face: [line for row in rows.get(face.name, []) if (line := losses.line(row, _flops))]
        for face in arms(view).values()
    }
    traces, late = [], []
    for face, own in _drawn(lines):
        mean = losses.mean_line(own)
        if len(own) > 1:
            traces.append(_thin(face, own))
        traces.append(
            {
                "x": [at for at, _ in mean],
                "y": [loss for _, loss in mean],
                "mode": "lines+markers" if face.named else "lines",
                **_named(face),
                "line": {"color": face.colour, "width": 2.2 if face.named else 1},
                "marker": {"color": face.colour, "symbol": SYMBOLS[face.mark], "size": 7},
                "hovertemplate": "%{y:.4f} nats at %{x:.3s}FLOP<extra>%{fullData.name}</extra>",
            }
        )
        late += [loss for line in own for at, loss in line if 4 * at >= line[-1][0]]
    if not traces:
        return _nothing("No trial has ended with a held-out loss yet.")
    figure = _figure(traces, "training FLOPs", "held-out loss, nats")
    figure.update_xaxes(type="log", tickformat="~s", dtick="D2")
    figure.update_yaxes(range=_padded(late))
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
        return _nothing("No search trial has come to a loss yet.")
    low, high = _padded(kept) if kept else (0.0, 1.0)
    traces = [trace for face, (curve,) in _drawn(curves) for trace in _tuning(face, curve, high)]
    figure = _figure(traces, "peak learning rate", "final held-out loss, nats")
    rates = sorted({rate for own in curves.values() for rate, _, _ in own[0].points})
    shown = rates if len(rates) <= 7 else rates[:: math.ceil(len(rates) / 7)]
    figure.update_xaxes(type="log", tickvals=shown, ticktext=[f"{rate:.2g}" for rate in shown])
    figure.update_yaxes(range=[low, high + 0.08 * (high - low)])
    return figure


def budget_bar(view: StudyView) -> "Figure":
    """Where the compute of each phase went."""
    rows = [row for row in contents.budget(view).rows[:-1] if row["cap"]]
    if not rows:
        return _nothing("No compute has been allotted yet.")
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
    figure = _figure(traces, f"compute, {unit}", "", 150 + 46 * len(rows))
    figure.update_layout(barmode="stack", bargap=0.45)
    figure.update_yaxes(type="category", autorange="reversed")
    return figure


def _flops(point: Any) -> float:
    return point.mflop * 1e6


def _drawn(values: dict[Arm, list[Any]]) -> Iterable[tuple[Arm, list[Any]]]:
    """Arms that have something, those on top last: the baseline, before it the ones with a colour."""
    shown = [(face, own) for face, own in values.items() if own]
    return sorted(shown, key=lambda item: (item[0].named, item[0].is_baseline))


def _named(face: Arm) -> dict[str, Any]:
    """Name and place in the legend: the plan's order, only arms that have a colour of their own."""
    label = _text(face.label)
    return {"name": label, "legendgroup": label, "legendrank": face.order, "showlegend": face.named}


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
        "legendgroup": _text(face.label),
        **_DECORATION,
    }


def _tuning(face: Arm, curve: LrCurve, ceiling: float) -> list[dict[str, Any]]:
    """Marks, crosses, the quadratic and its optimum for one arm."""
    group = {"legendgroup": _text(face.label)}
    done = [(rate, loss) for rate, loss, state in curve.points if state == "complete"]
    lost = [(rate, loss) for rate, loss, state in curve.points if state != "complete"]
    symbol = SYMBOLS[face.mark]
    quadratic = verdict.quadratic(curve.points) if face.named else None
    traces: list[dict[str, Any]] = [
        {
            "x": [rate for rate, _ in done],
            "y": [loss for _, loss in done],
            "mode": "markers" if quadratic else "lines+markers",
            **_named(face),
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
            | _DECORATION,
            {
                "x": rates,
                "y": [loss for _, loss in lost],
                "mode": "markers",
                "marker": cross,
                **_named(face),
                "name": f"{_text(face.label)}, not completed",
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
                **_DECORATION,
            }
        )
    if quadratic and curve.optimum is not None:
        traces.append(
            {
                "x": [curve.optimum],
                "y": [quadratic.value],
                "mode": "markers",
                "marker": {"color": face.colour, "symbol": "star", "size": 11},
                **_named(face),
                "name": f"{_text(face.label)}, optimum of the quadratic",
                "showlegend": False,
                "hovertemplate": "%{x:.3g}<extra>%{fullData.name}</extra>",
            }
        )
    return traces


def _padded(values: list[float]) -> list[float]:
    pad = 0.08 * (max(values) - min(values) or 0.1)
    return [min(values) - pad, max(values) + pad]


def _text(label: str) -> str:
    """A label that Plotly shows as it is."""
    return html.escape(label, quote=False)


def _figure(traces: list[dict[str, Any]], x: str, y: str, height: int = 380) -> "Figure":
    import plotly.graph_objects as go

    axis = {"gridcolor": LINE, "linecolor": LINE, "zeroline": False, "automargin": True}
    return go.Figure(
        [{"type": "scatter", **trace} for trace in traces],
        {
            "template": "none",
            "height": height,
            "font": {"color": INK, "size": 12},
            "paper_bgcolor": CARD,
            "plot_bgcolor": CARD,
            "xaxis": {**axis, "title": {"text": x}},
            "yaxis": {**axis, "title": {"text": y}},
            "margin": {"l": 60, "r": 16, "t": 16, "b": 50},
            "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": -0.2, "yanchor": "top"},
            "hovermode": "closest",
            "meta": {"dark": ON_DARK},
        },
    )


def _nothing(words: str) -> "Figure":
    """A figure that says why it is empty."""
    figure = _figure([], "", "", 140)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    figure.add_annotation(
        text=words, x=0.5, y=0.5, xref="paper", yref="paper", showarrow=False, font={"color": QUIET}
    )
    return figure
