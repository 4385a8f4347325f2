"""A chart's numbers as a table, read off the chart itself, so that both always say the same."""

from typing import Any


def rows(figure: Any) -> list[list[Any]]:
    """Header, then a row per point of every trace of a Plotly figure, except those that only decorate."""
    traces = [t for t in figure.data if getattr(t, "hoverinfo", None) != "skip" and _length(t)]
    has_error = any(_error(t) is not None for t in traces)
    named = any(t.name for t in traces)
    header = ["Series"] if named else []
    header += [_title(figure.layout.xaxis, "x"), _title(figure.layout.yaxis, "y")]
    header += ["Interval, lower part", "Interval, upper part"] if has_error else []
    return [header, *(row for trace in traces for row in _trace(trace, named, has_error))]


def _trace(trace: Any, named: bool, has_error: bool) -> list[list[Any]]:
    made = []
    bars = _error(trace)
    for i in range(_length(trace)):
        row = [trace.name or ""] if named else []
        row += [_scalar(trace.x, i), _scalar(trace.y, i)]
        if has_error:
            upper = _scalar(bars.array, i) if bars is not None else None
            lower = _scalar(bars.arrayminus, i) if bars is not None and bars.arrayminus is not None else upper
            row += [lower, upper]
        made.append(row)
    return made


def _length(trace: Any) -> int:
    x, y = getattr(trace, "x", None), getattr(trace, "y", None)
    return 0 if x is None or y is None else min(len(x), len(y))


def _error(trace: Any) -> Any:
    for name in ("error_x", "error_y"):
        bars = getattr(trace, name, None)
        if bars is not None and bars.array is not None:
            return bars
    return None


def _scalar(values: Any, i: int) -> Any:
    """A plain Python value; numpy's have `item`."""
    value = values[i]
    return value.item() if hasattr(value, "item") else value


def _title(axis: Any, otherwise: str) -> str:
    text = axis.title.text if axis is not None and axis.title is not None else None
    return text or otherwise
