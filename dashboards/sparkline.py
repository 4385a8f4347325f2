"""A trial's curve as a line on the page."""

import math

from ablate.records import Point


def polyline(points: list[Point], steps: int, width: float = 160, height: float = 36) -> str:
    """Training losses over steps as the `points` of an SVG polyline; empty with fewer than two."""
    known = [
        (p.step, p.train_loss) for p in points if p.train_loss is not None and math.isfinite(p.train_loss)
    ]
    if len(known) < 2:
        return ""
    low, high = min(v for _, v in known), max(v for _, v in known)
    scale = (height - 4) / (high - low or 1)
    return " ".join(f"{width * s / max(1, steps):.1f},{2 + (high - v) * scale:.1f}" for s, v in known)
