"""What the portal's charts have in common: marks, names as text, legend, axes, and what is drawn first."""

import html
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ablate.report.arms import CARD, INK, LINE, ON_DARK, QUIET, Arm

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

DECORATION = {"hoverinfo": "skip", "showlegend": False}
"""Of traces that repeat what others say: they answer no pointer and are in no table."""

_LEGEND = {
    "orientation": "h",
    "traceorder": "normal",
    "x": 0,
    "xanchor": "left",
    "y": 1.02,
    "yanchor": "bottom",
}


def figure_of(traces: list[dict[str, Any]], x: str, y: str, height: int = 380) -> "Figure":
    """A figure of these traces between two named axes."""
    import plotly.graph_objects as go

    axis = {"gridcolor": LINE, "linecolor": LINE, "zeroline": False, "tickangle": 0, "automargin": True}
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
            "legend": _LEGEND,
            "hovermode": "closest",
            "meta": {"dark": ON_DARK},
        },
    )


def nothing(words: str) -> "Figure":
    """A figure that says why it is empty."""
    figure = figure_of([], "", "", 140)
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False)
    note(figure, words, x=0.5, y=0.5, xref="paper", yref="paper")
    return figure


def note(figure: "Figure", words: str, **place: Any) -> None:
    """Quiet words in a figure."""
    figure.add_annotation(text=words, showarrow=False, font={"size": 11, "color": QUIET}, **place)


def as_text(label: str) -> str:
    """A label that Plotly shows as it is: it reads tags, and `%{…}` as a value to put in."""
    return html.escape(label, quote=False).replace("{", "&#123;")


def named(face: Arm) -> dict[str, Any]:
    """Name and place in the legend: the plan's order, only arms that have a colour of their own."""
    label = as_text(face.label)
    return {"name": label, "legendgroup": label, "legendrank": face.order, "showlegend": face.named}


def drawn(values: dict[Arm, list[Any]]) -> Iterable[tuple[Arm, list[Any]]]:
    """Arms that have something, those on top last: the baseline, before it the ones with a colour."""
    shown = [(face, own) for face, own in values.items() if own]
    return sorted(shown, key=lambda item: (item[0].named, item[0].is_baseline))


def padded(values: list[float]) -> list[float]:
    """Range of an axis that holds all values and a little more."""
    pad = 0.08 * (max(values) - min(values) or 0.1)
    return [min(values) - pad, max(values) + pad]
