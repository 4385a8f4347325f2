"""The charts of the portal: Plotly figures with the colours, marks and order of arms of the report.

Names become text before they get in, because Plotly reads HTML in every string. Colours are those of a light
page; `layout.meta["dark"]` says what takes the place of each on a dark one. A study that has nothing to show
yet has a figure that says so. Plotly is imported when a figure is made.
"""

from ablate.figures.effects import budget_bar, forest
from ablate.figures.losses import loss_vs_flops, loss_vs_lr

__all__ = ["budget_bar", "forest", "loss_vs_flops", "loss_vs_lr"]
