"""Figures about differences to the baseline and what they cost."""

import math
import statistics
from typing import TYPE_CHECKING

from ablate.records import StudyView
from ablate.report import contents, formats
from ablate.report.arms import BAND, HELD, INK, QUIET, UNSPENT, USEFUL, WASTE, Arm, confirmed, final_loss
from ablate.report.drawing import Figure
from ablate.report.table import Row, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

ROW = 0.33
"""Inches of one arm's row."""

PARTS = {
    "useful": ("useful", USEFUL),
    "waste": ("done again", WASTE),
    "reserved": ("reserved", HELD),
    "unspent": ("not spent", UNSPENT),
}
"""What a phase's compute is divided into: key of a row of `contents.budget`, words and colour."""


def forest(view: StudyView, arms: dict[str, Arm]) -> Figure | None:
    """Differences to the baseline with their intervals, best arm on top."""
    verdicts = sorted(view.verdicts, key=lambda verdict: verdict.delta)
    if not verdicts:
        return None
    base, margin = arms[view.plan.baseline.name], verdicts[0].margin

    def draw(drawing: "Drawing") -> None:
        axes = _rows(drawing, [arms[verdict.arm] for verdict in verdicts])
        axes.axvspan(-margin, margin, color=BAND, zorder=0)
        axes.axvline(0, color=INK, linewidth=1)
        for i, verdict in enumerate(verdicts):
            arm = arms[verdict.arm]
            if math.isfinite(verdict.high - verdict.low):  # one pair of seeds has no interval
                axes.plot([verdict.low, verdict.high], [i, i], color=arm.colour, linewidth=2.2)
            axes.plot([verdict.delta], [i], color=arm.colour, marker=arm.mark, markersize=6.5)
            text = f"{formats.signed(verdict.delta)}  {contents.KINDS[verdict.kind]}"
            axes.annotate(
                text, (1.02, i), xycoords=("axes fraction", "data"), va="center", fontsize=9, color=INK
            )
        drawing.supxlabel(
            f"← better · loss minus that of {base.label}, nats · worse →", fontsize=9, color=QUIET
        )

    header = ["Arm", "Δ, nats", "lower", "upper", "margin", "seeds"]
    rows = [
        [
            arms[v.arm].label,
            *map(formats.signed, (v.delta, v.low, v.high)),
            formats.general(v.margin),
            str(v.n),
        ]
        for v in verdicts
    ]
    note = (
        "Mean paired difference on fresh seeds with its 95 % interval; left of zero is better. "
        f"The grey band is the margin of ±{margin:g} nats: within it a difference counts as none."
    )
    title = f"Difference in loss to {base.label}, nats"
    return Figure("forest", title, note, plain(title, header, rows), 1.1 + ROW * len(verdicts), draw)


def pairs(view: StudyView, arms: dict[str, Arm]) -> Figure | None:
    """One dot per seed: whether the seeds agree."""
    done = confirmed(view)
    base = view.plan.baseline.name
    found = {
        arm: {replicate: _difference(done, arm, base, replicate) for replicate in sorted(done[arm])}
        for arm in arms
        if arm != base
    }
    found = {
        arm: {replicate: value for replicate, value in values.items() if value is not None}
        for arm, values in found.items()
    }
    shown = sorted(
        (arm for arm in found if found[arm]), key=lambda arm: statistics.fmean(found[arm].values())
    )
    if not shown:
        return None
    replicates = sorted({replicate for arm in shown for replicate in found[arm]})
    shift = {r: 0.26 * (2 * i / max(len(replicates) - 1, 1) - 1) for i, r in enumerate(replicates)}

    def draw(drawing: "Drawing") -> None:
        axes = _rows(drawing, [arms[name] for name in shown])
        axes.axvline(0, color=INK, linewidth=1)
        for i, name in enumerate(shown):
            arm, values = arms[name], found[name]
            centre = statistics.fmean(values.values())
            axes.plot([centre, centre], [i - 0.36, i + 0.36], color=arm.colour, linewidth=1.6)
            axes.plot(
                list(values.values()),
                [i + shift[r] for r in values],
                color=arm.colour,
                linestyle="none",
                marker=arm.mark,
                markersize=4.5,
                alpha=0.75,
            )
        words = f"← better · loss minus that of {arms[base].label}, nats · worse →"
        drawing.supxlabel(words, fontsize=9, color=QUIET)

    seeds = {row.spec.replicate: row.spec.seed for rows in done.values() for row in rows.values()}
    header = ["Arm", *(f"seed {seeds[r]}" for r in replicates)]
    rows = [[arms[name].label, *(formats.signed(found[name].get(r)) for r in replicates)] for name in shown]
    title = f"Difference in loss to {arms[base].label} by seed, nats"
    note = (
        "One mark per fresh seed, in their order from top to bottom; the upright line is the mean. "
        "Within a seed all arms saw the same tokens in the same order."
    )
    return Figure("pairs", title, note, plain(title, header, rows), 1.1 + ROW * 1.2 * len(shown), draw)


def _difference(done: dict, arm: str, base: str, replicate: int) -> float | None:
    if replicate not in done[base]:
        return None
    own, other = final_loss(done[arm][replicate]), final_loss(done[base][replicate])
    return None if own is None or other is None else own - other


def pareto(view: StudyView, arms: dict[str, Arm]) -> Figure | None:
    """Loss against what decoding has to keep in memory."""
    points: list[Row] = [
        row
        for row in contents.contrasts(view, arms).rows
        if row["loss"] is not None and row["kv_bytes_per_token"] > 0
    ]
    if len(points) < 2:
        return None
    points.sort(key=lambda row: (row["kv_bytes_per_token"], row["loss"]))
    frontier: list[Row] = []
    for row in points:
        if not frontier or row["loss"] < frontier[-1]["loss"]:
            frontier.append(row)
    best = {row["arm"] for row in frontier}

    def draw(drawing: "Drawing") -> None:
        axes = drawing.subplots()
        axes.step(
            [row["kv_bytes_per_token"] for row in frontier],
            [row["loss"] for row in frontier],
            where="post",
            color=QUIET,
            linewidth=1,
            linestyle=(0, (3, 2)),
            zorder=1,
        )
        sizes = [row["kv_bytes_per_token"] for row in points]
        if sizes[-1] > 2 * sizes[0]:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_minor_locator(_nothing())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.4g}")
        for row in sorted(points, key=lambda row: arms[row["arm"]].named):
            arm = arms[row["arm"]]
            at = (row["kv_bytes_per_token"], row["loss"])
            axes.plot(*at, color=arm.colour, marker=arm.mark, markersize=7.5, linestyle="none")
            if arm.named or arm.name in best:
                axes.annotate(arm.label, at, (7, 5), textcoords="offset points", fontsize=9, color=arm.colour)
        axes.margins(0.12, 0.16)
        axes.set_xlabel("KV cache and state, bytes per token of context")
        axes.set_ylabel("final held-out loss, nats")

    header = ["Arm", "KV bytes/token", "loss, nats", "on the frontier"]
    rows = [
        [
            arms[row["arm"]].label,
            formats.general(row["kv_bytes_per_token"]),
            formats.loss(row["loss"]),
            "yes" if row["arm"] in best else "no",
        ]
        for row in points
    ]
    title = "Final loss, nats, against KV bytes per token"
    note = "Mean over fresh seeds; lower and further left is better. "
    if len(frontier) > 1:
        note += "No arm beats one on the dashed line in both."
    else:
        note += f"{arms[frontier[0]['arm']].label} is best in both."
    return Figure("pareto", title, note, plain(title, header, rows), 3.6, draw)


def budget(view: StudyView) -> Figure | None:
    """Where the compute went."""
    table = contents.budget(view)
    rows = [row for row in table.rows[:-1] if row["cap"]]
    if not rows:
        return None

    def draw(drawing: "Drawing") -> None:
        axes = drawing.subplots()
        divisor, unit = formats.scale(max(row["cap"] for row in rows) * 1e6, "FLOP")
        for i, row in enumerate(rows):
            left = 0.0
            for key, (_, colour) in PARTS.items():
                width = row[key] * 1e6 / divisor
                axes.barh(i, width, left=left, height=0.5, color=colour, linewidth=0)
                left += width
            text = formats.share(row["utilisation"])
            axes.annotate(
                text, (left, i), (4, 0), textcoords="offset points", va="center", fontsize=9, color=QUIET
            )
        _name_rows(axes, [row["phase"] for row in rows])
        axes.set_xlabel(f"compute, {unit}; share that was useful")
        handles = [_patch(colour) for _, colour in PARTS.values()]
        words = [text for text, _ in PARTS.values()]
        drawing.legend(handles, words, loc="outside upper left", ncols=4, columnspacing=1.2, handlelength=1)

    note = (
        "Useful compute trained and evaluated trials; what a fault made necessary twice is paid from the contingency "
        "alone."
    )
    return Figure("budget", "Compute by phase, FLOP", note, table, 1.05 + 0.36 * len(rows), draw)


def _rows(drawing: "Drawing", shown: list[Arm]) -> "Axes":
    axes = drawing.subplots()
    _name_rows(axes, [arm.label for arm in shown])
    for label, arm in zip(axes.get_yticklabels(), shown, strict=True):
        label.set_color(arm.colour if arm.named else QUIET)
    axes.locator_params(axis="x", nbins=4 if max(len(arm.label) for arm in shown) > 14 else 7)
    return axes


def _name_rows(axes: "Axes", names: list[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x")
    axes.tick_params(axis="y", labelcolor=INK)


def _nothing():
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _patch(colour: str):
    from matplotlib.patches import Patch

    return Patch(color=colour, linewidth=0)
