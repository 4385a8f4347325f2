"""A chart's numbers as a table, read off the chart itself, so that both always say the same."""

import html
from typing import Any


def rows(figure: Any) -> list[list[Any]]:
    """Header, then a row per point of every trace of a Plotly figure, except those that only decorate."""
    traces = [t for t in figure.data if getattr(t, "hoverinfo", None) != "skip" and _length(t)]
    has_error = any(_error(t) is not None for t in traces)
    by_row = all(list(t.y) == [t.name] for t in traces)  # y says what the name says
    header = ["Series", _title(figure.layout.xaxis, "x")]
    header += [] if by_row else [_title(figure.layout.yaxis, "y")]
    header += ["Lower end of the interval", "Upper end"] if has_error else []
    return [header, *(row for trace in traces for row in _trace(trace, by_row, has_error))]


def _trace(trace: Any, by_row: bool, has_error: bool) -> list[list[Any]]:
    made = []
    bars = _error(trace)
    for i in range(_length(trace)):
        x = _scalar(trace.x, i)
        row = [html.unescape(trace.name or ""), x]
        row += [] if by_row else [_scalar(trace.y, i)]
        if has_error:
            row += [x - bars.arrayminus[i], x + bars.array[i]] if bars is not None else [None, None]
        made.append(row)
    return made


def _length(trace: Any) -> int:
    x, y = getattr(trace, "x", None), getattr(trace, "y", None)
    return 0 if x is None or y is None else min(len(x), len(y))


def _error(trace: Any) -> Any:
    """Error bars along x, where the trace has some."""
    bars = getattr(trace, "error_x", None)
    return bars if bars is not None and bars.array is not None else None


def _scalar(values: Any, i: int) -> Any:
    """A plain Python value that shows names as they are; numpy's values have `item`."""
    value = values[i]
    value = value.item() if hasattr(value, "item") else value
    return html.unescape(value) if isinstance(value, str) else value


def _title(axis: Any, otherwise: str) -> str:
    return html.unescape(axis.title.text or otherwise)
