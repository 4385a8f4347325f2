"""Figures of an open search: the lowest loss as compute is spent, and loss against a known cost."""

from typing import TYPE_CHECKING

from ablate.records import StudyView
from ablate.report import formats
from ablate.report.arms import COLOURS, INK, OTHER
from ablate.report.drawing import Figure
from ablate.report.table import plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Drawing


def anytime(view: StudyView) -> Figure | None:
    """Lowest loss so far over the compute that the search has been charged."""
    found = view.search
    if found is None or len(found.curve) < 2:
        return None
    tried, spent = [], 0
    for proposal in found.proposals:
        spent += proposal.mflop
        if proposal.trained:
            tried.append((spent * 1e6, proposal.value or 0.0, proposal.sampler == "random"))

    def draw(drawing: "Drawing") -> None:
        axes = drawing.subplots()
        divisor, unit = formats.scale(found.curve[-1][0] * 1e6, "FLOP")
        for chance, colour in ((False, COLOURS[0]), (True, OTHER)):
            own = [(at / divisor, value) for at, value, by in tried if by is chance]
            label = "drawn at random" if chance else "proposed by the sampler"
            axes.plot(*zip(*own, strict=True), "o", color=colour, markersize=4, label=label) if own else None
        axes.step(
            [at * 1e6 / divisor for at, _ in found.curve],
            [value for _, value in found.curve],
            where="post",
            color=INK,
            label="lowest so far",
        )
        axes.set_xlabel(f"compute charged by the search, {unit}")
        axes.set_ylabel("held-out loss, nats")
        axes.legend(loc="upper right")

    title = "Lowest loss of the search, nats, against compute charged"
    rows = [[formats.compute(at), formats.loss(value)] for at, value in found.curve]
    note = "Losses on the one seed of the search. They choose finalists and enter no verdict."
    return Figure("search", title, note, plain(title, ["charged", "lowest loss"], rows), 3.2, draw)


def front(view: StudyView) -> Figure | None:
    """Every proposal's loss against a known cost: the first of the objectives, else bytes of cache."""
    found = view.search
    done = [proposal for proposal in found.proposals if proposal.trained] if found else []
    if found is None or len(done) < 2:
        return None
    cost = (*found.objectives[1:], "kv_bytes_per_token")[0]
    best = sorted(
        (p.costs[cost], p.value or 0.0) for p in done if p.number in found.front
    )  # of all objectives, so that the line need not fall

    def draw(drawing: "Drawing") -> None:
        axes = drawing.subplots()
        axes.plot(
            [p.costs[cost] for p in done],
            [p.value or 0.0 for p in done],
            "o",
            color=OTHER,
            markersize=4,
            label="proposal",
        )
        axes.plot(*zip(*best, strict=True), "o-", color=COLOURS[0], linewidth=1, label="Pareto front")
        axes.set_xlabel(cost.replace("_", " "))
        axes.set_ylabel("held-out loss, nats")
        axes.legend(loc="upper right")

    title = f"Loss of proposals, nats, against {cost.replace('_', ' ')}"
    rows = [
        [
            str(p.number),
            formats.general(p.costs[cost]),
            formats.loss(p.value),
            "yes" if p.number in found.front else "no",
        ]
        for p in done
    ]
    header = ["proposal", cost.replace("_", " "), "loss, nats", "on the front"]
    note = f"No proposal beats one on the front in all of {', '.join(found.objectives)}. One seed each."
    return Figure("search_front", title, note, plain(title, header, rows), 3.2, draw)
