"""All figures of a report, in the order in which they are read."""

from ablate.records import StudyView
from ablate.report import curves, diagnostics, effects, search_figure
from ablate.report.arms import Arm
from ablate.report.drawing import Figure

OF_A_SEARCH = ("search", "search_front")

NAMES = (
    *("budget", "forest", "pairs", "loss_vs_flops", "loss_vs_tokens", "loss_vs_lr", "pareto", "diagnostics"),
    *OF_A_SEARCH,
)
"""Files below `figures/` that a report may write, and so may remove."""


def figures(view: StudyView, arms: dict[str, Arm]) -> list[Figure]:
    """Those that have something to show."""
    made = [
        effects.budget(view),
        effects.forest(view, arms),
        effects.pairs(view, arms),
        curves.against_flops(view, arms),
        curves.against_tokens(view, arms),
        curves.against_lr(view, arms),
        effects.pareto(view, arms),
        diagnostics.along_training(view, arms),
        search_figure.anytime(view),
        search_figure.front(view),
    ]
    return [figure for figure in made if figure is not None]
