"""Figures of losses: along training, and over the learning rate."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from ablate.records import LrCurve, Point, StudyView
from ablate.report import formats, losses
from ablate.report.arms import INK, LINE, QUIET, Arm, shortened
from ablate.report.drawing import Figure, end_labels
from ablate.report.losses import Line
from ablate.report.table import Table, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

_AMOUNTS = {1.0: "", 1e3: ", thousands", 1e6: ", millions", 1e9: ", billions", 1e12: ", trillions"}
"""How many tokens one unit of the axis is."""


def against_flops(view: StudyView, arms: dict[str, Arm]) -> Figure | None:
    """Held-out loss along training, and its difference to the baseline at equal compute."""
    return _along(
        view,
        arms,
        "loss_vs_flops",
        lambda point: point.mflop * 1e6,
        "training FLOPs",
        "FLOP",
        differences=True,
    )


def against_tokens(view: StudyView, arms: dict[str, Arm]) -> Figure | None:
    """Held-out loss along the text that was read."""
    return _along(
        view,
        arms,
        "loss_vs_tokens",
        lambda point: point.tokens,
        "training tokens",
        "tokens",
        differences=False,
    )


def _along(
    view: StudyView,
    arms: dict[str, Arm],
    name: str,
    x: Callable[[Point], float],
    words: str,
    unit: str,
    differences: bool,
) -> Figure | None:
    rows, basis = losses.shown_trials(view)
    lines = {
        arm: {row.spec.replicate: line for row in rows.get(arm, []) if (line := losses.line(row, x))}
        for arm in arms
    }
    lines = {arm: found for arm, found in lines.items() if found}
    if not lines:
        return None
    base = view.plan.baseline.name
    means = {arm: losses.mean_line(list(found.values())) for arm, found in lines.items()}
    gaps = {
        arm: losses.gap(found, lines[base]) for arm, found in lines.items() if arm != base and base in lines
    }
    gaps = {arm: line for arm, line in gaps.items() if line} if differences else {}

    def draw(drawing: "Drawing") -> None:
        divisor, scaled_unit = formats.scale(max(line[-1][0] for line in means.values()), unit)
        if gaps:
            upper, lower = drawing.subplots(2, sharex=True, height_ratios=(3, 2))
        else:
            upper = lower = drawing.subplots()
        for arm in sorted(lines, key=lambda arm: (arms[arm].named, arms[arm].is_baseline)):
            _draw_arm(upper, arms[arm], list(lines[arm].values()), means[arm], divisor)
        upper.set_ylabel("held-out loss, nats")
        ends = [
            (*line[-1], arms[arm].label, arms[arm].colour) for arm, line in means.items() if arms[arm].named
        ]
        if gaps:
            lower.axhline(0, color=INK, linewidth=1.2)
            for arm, line in sorted(gaps.items(), key=lambda item: arms[item[0]].named):
                own = arms[arm]
                lower.plot(
                    [at / divisor for at, _ in line],
                    [value for _, value in line],
                    color=own.colour,
                    linewidth=1.8 if own.named else 0.8,
                    marker=own.mark,
                    markersize=3.5 if own.named else 0,
                )
            lower.set_ylabel("minus baseline, nats")
            ends = [
                (*line[-1], arms[arm].label, arms[arm].colour)
                for arm, line in gaps.items()
                if arms[arm].named
            ]
            ends.append((means[base][-1][0], 0.0, arms[base].label, arms[base].colour))
        _log_axis(lower, [at / divisor for line in means.values() for at in (line[0][0], line[-1][0])])
        lower.set_xlabel(f"{words}, {scaled_unit}" if unit == "FLOP" else f"{words}{_AMOUNTS[divisor]}")
        end_labels(
            lower,
            [(at / divisor, y, text, colour) for at, y, text, colour in ends],
            height=95 if gaps else 170,
        )

    title = f"Held-out loss, nats, against {words}"
    note = (
        f"{basis} Thin lines are single seeds, thick lines their mean. "
        "The learning rate decays towards the end, so only last points are final results."
    )
    if gaps:
        note += f" Below: the mean minus that of {arms[base].label} at equal compute; under zero is better."
    return Figure(name, title, note, _table(title, means, lines, arms, words), 4.4 if gaps else 3.2, draw)


def _draw_arm(axes: "Axes", arm: Arm, lines: list[Line], mean: Line, divisor: float) -> None:
    from matplotlib.collections import LineCollection

    thin = [[(at / divisor, loss) for at, loss in line] for line in lines]
    axes.add_collection(LineCollection(thin, colors=arm.colour, linewidths=0.5, alpha=0.4))
    axes.plot(
        [at / divisor for at, _ in mean],
        [loss for _, loss in mean],
        color=arm.colour,
        linewidth=2 if arm.named else 0.9,
        marker=arm.mark,
        markersize=3.5 if arm.named else 0,
    )


def _table(
    title: str, means: dict[str, Line], lines: dict[str, dict[int, Line]], arms: dict[str, Arm], words: str
) -> Table:
    header = ["Arm", words, "mean loss, nats", "seeds"]
    rows = [
        [arms[arm].label, formats.count(at), formats.loss(loss), str(len(lines[arm]))]
        for arm, line in means.items()
        for at, loss in line
    ]
    return plain(title, header, rows)


def _log_axis(axes: "Axes", ends: list[float]) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axes.set_xscale("log")
    axes.set_xlim(min(ends) / 1.06, max(ends) * 1.06)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def against_lr(view: StudyView, arms: dict[str, Arm]) -> Figure | None:
    """Tuning of every arm, one small panel each, the baseline's curve behind all of them."""
    curves = [curve for curve in view.lr_curves if curve.points]
    if not curves:
        return None
    base = next((curve for curve in curves if arms[curve.arm].is_baseline), None)
    columns = min(3 if len(curves) <= 9 else 5, len(curves))
    lines = -(-len(curves) // columns)
    rates = sorted({rate for curve in curves for rate, _, _ in curve.points})
    kept = [loss for curve in curves for _, loss, outcome in curve.points if outcome == "complete"]
    low, high = (min(kept), max(kept)) if kept else (0.0, 1.0)
    pad = 0.12 * (high - low or 0.1)

    def draw(drawing: "Drawing") -> None:
        panels = drawing.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
        for axes in panels.flat[len(curves) :]:
            axes.set_axis_off()
        for axes, curve in zip(panels.flat, curves, strict=False):
            _panel(axes, curve, base, arms, ceiling=high + pad)
        first = panels[0, 0]
        first.set_ylim(low - pad, high + 2 * pad)
        first.set_xscale("log", base=2)
        first.set_xlim(rates[0] / 1.3, rates[-1] * 1.3)
        ticks = sorted({rates[0], rates[-1]}) if columns < 4 else [rates[len(rates) // 2]]
        for axes in panels.flat[: len(curves)]:
            axes.set_xticks(ticks, [f"{rate:.2g}" for rate in ticks])
            axes.tick_params(axis="x", labelbottom=True, which="major", labelsize=8)
            axes.minorticks_off()
            if len(ticks) > 1:  # neighbours' labels must not touch
                axes.get_xticklabels()[0].set_horizontalalignment("left")
                axes.get_xticklabels()[-1].set_horizontalalignment("right")
        drawing.supxlabel("peak learning rate", fontsize=9.5, color=QUIET)
        drawing.supylabel("final held-out loss, nats", fontsize=9.5, color=QUIET)

    header = [
        "Arm",
        "learning rate",
        "loss, nats",
        "became",
        "best",
        "optimum of the quadratic",
        "at the edge",
    ]
    rows = [
        [
            arms[curve.arm].label,
            formats.rate(rate),
            formats.loss(loss),
            outcome,
            "yes" if rate == curve.best else "",
            formats.rate(curve.optimum),
            "yes" if curve.at_edge else "no",
        ]
        for curve in curves
        for rate, loss, outcome in curve.points
    ]
    title = "Final loss, nats, against learning rate"
    note = (
        "Search trials on a seed of their own. The filled mark is the best rate tried, the triangle at the "
        "bottom the optimum of the quadratic in log2 of the rate, used on fresh seeds; × diverged. A best rate "
        "at the edge of the grid forbids a verdict."
        + (f" Grey: {arms[base.arm].label}." if base and len(curves) > 1 else "")
    )
    return Figure("loss_vs_lr", title, note, plain(title, header, rows), 0.75 + 1.5 * lines, draw)


def _panel(axes: "Axes", curve: LrCurve, base: LrCurve | None, arms: dict[str, Arm], ceiling: float) -> None:
    arm = arms[curve.arm]
    if base is not None and base.arm != curve.arm:
        axes.plot(*_sound(base), color=LINE, linewidth=1.6)
    axes.plot(*_sound(curve), color=arm.colour, linewidth=1.2)
    for rate, loss, outcome in curve.points:
        if outcome != "complete":
            axes.plot([rate], [ceiling], color=arm.colour, marker="x", markersize=5)
            continue
        face = arm.colour if rate == curve.best else "none"
        axes.plot([rate], [loss], color=arm.colour, marker=arm.mark, markersize=4.5, markerfacecolor=face)
    if curve.optimum is not None:
        axes.plot(
            [curve.optimum], [0.03], transform=axes.get_xaxis_transform(), color=arm.colour, marker=6, ms=5
        )
    axes.set_title(
        shortened(arm.label, 17 if len(arms) <= 9 else 12),
        color=arm.colour if arm.named else QUIET,
        loc="left",
        fontsize=9 if len(arms) <= 9 else 7.5,
    )
    if curve.at_edge:
        axes.annotate("at the edge", (0.98, 0.9), xycoords="axes fraction", ha="right", fontsize=8, color=INK)


def _sound(curve: LrCurve) -> tuple[list[float], list[float]]:
    kept = [(rate, loss) for rate, loss, outcome in curve.points if outcome == "complete"]
    return [rate for rate, _ in kept], [loss for _, loss in kept]
