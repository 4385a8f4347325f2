"""How figures look, and how one becomes a file and a part of a page that may be dark.

Figures are drawn once, in fixed light colours on white: that is the file. For the page every colour becomes a
CSS variable with the same name in both themes, text stays text in the page's font, and identifiers get the
figure's name in front, because several figures share one document.
"""

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from ablate.report.arms import (
    BAND,
    CARD,
    COLOURS,
    HELD,
    INK,
    LINE,
    OTHER,
    QUIET,
    UNSPENT,
    USEFUL,
    WASTE,
)
from ablate.report.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Drawing

WIDTH = 5.0
"""Inches of a figure: two fit beside each other on a desktop, and on a phone text is still readable."""

VARIABLES = {
    INK: "ink",
    QUIET: "quiet",
    LINE: "line",
    BAND: "band",
    CARD: "card",
    USEFUL: "useful",
    HELD: "held",
    WASTE: "waste",
    UNSPENT: "unspent",
    OTHER: "other",
    **{colour: f"arm{i}" for i, colour in enumerate(COLOURS)},
}
"""Colours as drawn, and the variables of the page that take their place."""

_SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # arm names may hold dollars
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.labelsize": 9.5,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "text.color": INK,
    "axes.labelcolor": QUIET,
    "axes.edgecolor": LINE,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": QUIET,
    "ytick.labelcolor": QUIET,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "figure.facecolor": CARD,
    "axes.facecolor": "none",
    "savefig.facecolor": CARD,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@dataclass(frozen=True)
class Figure:
    """A figure before it is drawn, and the numbers that it shows.

    Attributes:
        title: what is on the axes, as a heading.
        note: how to read it, in a sentence or two.
        draw: fills an empty drawing of that height in inches.
    """

    name: str
    title: str
    note: str
    table: Table
    height: float
    draw: Callable[["Drawing"], None]


@dataclass(frozen=True)
class Drawn:
    """A figure as files and as a part of the page."""

    figure: Figure
    svg: bytes
    png: bytes
    inline: str


def render(figure: Figure) -> Drawn:
    """Draw a figure once and write it in all forms."""
    import matplotlib
    from matplotlib.figure import Figure as Drawing

    svg, png = io.BytesIO(), io.BytesIO()
    settings: Any = {**_SETTINGS, "svg.hashsalt": figure.name}
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()  # a user's own style must not change a report
        matplotlib.rcParams.update(settings)
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # the SVG has the reader's fonts
        drawing = Drawing(figsize=(WIDTH, figure.height), layout="constrained")
        figure.draw(drawing)
        drawing.savefig(svg, format="svg", metadata={"Date": None, "Creator": None, "Title": figure.title})
        drawing.set_layout_engine("none")  # keeps what the first drawing has laid out
        drawing.savefig(png, format="png", dpi=160, metadata={"Software": None})
    return Drawn(figure, svg.getvalue(), png.getvalue(), inline(svg.getvalue(), figure))


def inline(svg: bytes, figure: Figure) -> str:
    """The drawing as an element of an HTML page."""
    root = ElementTree.fromstring(svg)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        for name in [name for name in element.attrib if name.startswith("{")]:
            element.attrib[name.rpartition("}")[2]] = element.attrib.pop(name)
    for child in [child for child in root if child.tag == "metadata"]:
        root.remove(child)
    used = set(re.findall(rb'(?:url\(|href=")#([\w.-]+)', svg))
    for element in root.iter():
        _adapt(element, figure.name, used)
    size = {name: root.attrib.pop(name) for name in ("width", "height")}
    root.attrib |= {"role": "img", "aria-label": f"{figure.title}. {figure.note}"}
    root.attrib["style"] = f"max-width: {float(size['width'].removesuffix('pt')) * 1.5:.0f}px"
    for name in ("version", "space"):
        root.attrib.pop(name, None)
    return ElementTree.tostring(root, encoding="unicode")


def _adapt(element: Any, prefix: str, used: set[bytes]) -> None:
    """Colours to variables, identifiers to this figure's own."""
    identity = element.attrib.pop("id", "")
    if identity.encode() in used:
        element.attrib["id"] = f"{prefix}-{identity}"
    if element.attrib.get("href", "").startswith("#"):
        element.attrib["href"] = f"#{prefix}-{element.attrib['href'][1:]}"
    for name in ("style", "clip-path", "fill", "stroke"):
        if name in element.attrib:
            text = element.attrib[name].replace("url(#", f"url(#{prefix}-")
            element.attrib[name] = re.sub(r"#[0-9a-f]{6}\b", _variable, text)
    if element.tag == "text":
        element.attrib["style"] = re.sub(
            r"font(-family)?: ([^;]*?)'DejaVu Sans'[^;]*", r"font\1: \2var(--sans)", element.attrib["style"]
        )


def _variable(match: re.Match[str]) -> str:
    name = VARIABLES.get(match[0])
    return f"var(--{name})" if name else match[0]


def end_labels(axes: "Axes", ends: list[tuple[float, float, str, str]], height: float) -> None:
    """Names at the right edge beside where lines end, moved apart where they would overlap.

    Args:
        ends: (x, y, text, colour); the limits of y are final.
        height: of the axes in points, about.
    """
    low, high = axes.get_ylim()
    ends = sorted(ends, key=lambda end: end[1])
    places = _apart([(y - low) / (high - low) for _, y, _, _ in ends], gap=12.5 / height)
    for (x, y, text, colour), place in zip(ends, places, strict=True):
        axes.annotate(
            text,
            xy=(x, y),
            xytext=(1.045, place),
            textcoords="axes fraction",
            va="center",
            color=colour,
            fontsize=9,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3},
            annotation_clip=False,
        )


def _apart(wanted: list[float], gap: float) -> list[float]:
    """Ascending places at least `gap` apart and, where they had to move, around where they wanted to be."""
    piles: list[tuple[float, int]] = []  # centre and number of labels that touch
    for place in wanted:
        centre, number = place, 1
        while piles and centre - piles[-1][0] < gap * (number + piles[-1][1]) / 2:
            below, count = piles.pop()
            centre, number = (centre * number + below * count) / (number + count), number + count
        piles.append((centre, number))
    return [centre + gap * (i - (number - 1) / 2) for centre, number in piles for i in range(number)]
