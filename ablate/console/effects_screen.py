"""Effects of a design's factors on the terminal."""

from rich.console import Console
from rich.text import Text

from ablate.console import parts
from ablate.records import Effect, Effects

_TITLES = {
    "mains": "Effects of switching factors on",
    "interactions": "Interactions: beyond the sum of both alone",
    "shapley": "Shapley values",
}


def effects(console: Console, found: Effects) -> None:
    """Print a table per kind of effect, best first, and what they rest on."""
    for name, title in _TITLES.items():
        if rows := getattr(found, name):
            console.print(parts.heading(title))
            console.print(_table(rows, judged=name != "shapley"))
    if found.total is not None:
        value, low, high = found.total
        told = f"{parts.signed(value)} {parts.interval(low, high)}"
        console.print(Text(f"all on against all off {told}, the sum of the Shapley values"))
    console.print(Text(parts.words(f"{found.design}; {found.basis}"), style="dim"))
    for text in found.doubts:
        console.print(
            Text("no conclusion: ", style="bold red").append(parts.words(text), style="not bold default")
        )


def _table(rows: tuple[Effect, ...], judged: bool):
    aliased = any(row.aliases for row in rows)
    table = parts.table(
        "factor",
        ("Δ nats [95 % CI]", "right"),
        *((("p Holm", "right"), "switched on") if judged else ()),
        *(("aliased with",) if aliased else ()),
    )
    for row in sorted(rows, key=lambda row: row.estimate):
        cells: list[str | Text] = [
            Text(parts.words(row.name), style="bold"),
            f"{parts.signed(row.estimate)} {parts.interval(row.low, row.high)}".strip(),
        ]
        if judged:
            cells += [parts.probability(row.p_holm), Text(row.kind, style=parts.KINDS[row.kind])]
        table.add_row(*cells, *((Text(parts.words(", ".join(row.aliases)), "dim"),) if aliased else ()))
    return table
