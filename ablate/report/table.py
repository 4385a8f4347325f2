"""One table, written five ways: as text on the page, in Markdown and LaTeX, as raw values in CSV and JSON."""

import csv
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
"""Raw values by name, the same names in every row of a table."""


@dataclass(frozen=True)
class Column:
    """A column as people read it.

    Attributes:
        text: the cell's text, from the whole row.
        numeric: aligned to the right, never broken.
        group: tables with many columns are shown in parts of this name, one below the other.
        style: `code` or `badge`, for the page.
        wide: takes a line of its own where cells are stacked, on a phone.
        paper: whether it is in the LaTeX table, where room is short.
    """

    title: str
    text: Callable[[Row], str]
    numeric: bool = True
    group: str = ""
    style: str = ""
    wide: bool = False
    paper: bool = False


@dataclass(frozen=True)
class Table:
    """Rows of raw values and the columns in which they are shown; the first column names the row."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    @property
    def groups(self) -> list["Table"]:
        """The parts of a wide table, each with the naming column."""
        names = list(dict.fromkeys(column.group for column in self.columns[1:]))
        return [
            Table(
                f"{self.caption}: {name}" if name else self.caption,
                (self.columns[0], *(column for column in self.columns[1:] if column.group == name)),
                self.rows,
            )
            for name in names
        ]

    @property
    def cells(self) -> list[list[str]]:
        """Text of every cell."""
        return [[column.text(row) for column in self.columns] for row in self.rows]


def plain(caption: str, header: list[str], rows: list[list[Any]]) -> Table:
    """A table of ready texts, all but the first column numeric."""
    columns = tuple(
        Column(title, text=lambda row, title=title: row[title], numeric=i > 0)
        for i, title in enumerate(header)
    )
    return Table(caption, columns, tuple(dict(zip(header, row, strict=True)) for row in rows))


def to_csv(table: Table) -> str:
    """Raw values at full precision, one header line, empty where a value is missing (RFC 4180)."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(table.rows[0]) if table.rows else [])
    writer.writeheader()
    writer.writerows(table.rows)
    return out.getvalue()


def to_markdown(table: Table) -> str:
    """A pipe table that GitHub and its relatives render."""

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(markdown(cell) for cell in cells) + " |"

    head = [column.title for column in table.columns]
    rule = ["---:" if column.numeric else "---" for column in table.columns]
    return "\n".join([line(head), "| " + " | ".join(rule) + " |", *map(line, table.cells), ""])


def markdown(text: str) -> str:
    """Text that Markdown leaves alone: no markup, no HTML, no new cell, on one line."""
    return re.sub(r"([\\`*_{}\[\]<>#|~&$])", r"\\\1", " ".join(text.split()))


def to_latex(table: Table) -> str:
    """A `booktabs` table of the columns that fit on paper; needs no other package."""
    kept = [column for column in table.columns if column.paper]
    head = " & ".join(latex(column.title) for column in kept)
    body = [" & ".join(latex(column.text(row)) for column in kept) + r" \\" for row in table.rows]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table}",
            r"\centering\small",
            rf"\caption{{{latex(table.caption)}}}",
            rf"\begin{{tabular}}{{{''.join('r' if column.numeric else 'l' for column in kept)}}}",
            r"\toprule",
            head + r" \\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "[": "{[}",  # else an optional argument of the row end before it
    "]": "{]}",
    "−": "$-$",
    "×": r"$\times$",
    "∞": r"$\infty$",
    "Δ": r"$\Delta$",
    "±": r"$\pm$",
    "–": "--",
}


def latex(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))
