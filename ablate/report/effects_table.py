"""The tables of a design's effects: main effects, interactions, Shapley values."""

from ablate.records import Effect, Effects, StudyView
from ablate.report import formats
from ablate.report.contents import KINDS
from ablate.report.table import Column, Row, Table

SECTIONS = {
    "mains": "Effect of switching each factor on",
    "interactions": "Two-way interactions: what both factors do beyond the sum of each alone",
    "shapley": "Shapley values: shares of the factors in the difference between all on and all off",
}
"""Fields of `Effects` and the captions of their tables."""


def effects(view: StudyView) -> list[Table]:
    """One table per kind of effect that the design has; none where it has no factors."""
    if view.effects is None:
        return []
    return [
        _table(caption, name, getattr(view.effects, name))
        for name, caption in SECTIONS.items()
        if getattr(view.effects, name)
    ]


def notes(found: Effects) -> list[str]:
    """What the numbers rest on, in sentences."""
    lines = [f"{found.design[:1].upper()}{found.design[1:]}.", f"Negative is better; {found.basis}."]
    if found.total is not None:
        value, low, high = (formats.signed(number) for number in found.total)
        lines.append(
            f"All factors on against all off: {value} nats [{low}, {high}], which the Shapley values sum to."
        )
    return lines + [f"No conclusion: {text}." for text in found.doubts]


def _table(caption: str, kind: str, found: tuple[Effect, ...]) -> Table:
    rows: list[Row] = [
        {
            "factor": effect.name,
            "effect": effect.estimate,
            "low": effect.low,
            "high": effect.high,
            "p": effect.p,
            "p_holm": effect.p_holm,
            "verdict": effect.kind,
            "aliases": " + ".join(effect.aliases),
        }
        for effect in sorted(found, key=lambda effect: effect.estimate)
    ]
    columns = [
        Column("Factor", lambda r: r["factor"], numeric=False, paper=True),
        Column("Effect [95 % interval], nats", _interval, wide=True, paper=True),
    ]
    if kind != "shapley":
        columns += [
            Column("p", lambda r: formats.probability(r["p"])),
            Column("p, Holm", lambda r: formats.probability(r["p_holm"]), paper=True),
            Column("Switched on, it", lambda r: KINDS[r["verdict"]], False, style="badge", paper=True),
        ]
    if any(effect.aliases for effect in found):
        columns.append(Column("Aliased with", lambda r: r["aliases"], False))
    return Table(caption, tuple(columns), tuple(rows))


def _interval(row: Row) -> str:
    return f"{formats.signed(row['effect'])} [{formats.signed(row['low'])}, {formats.signed(row['high'])}]"
