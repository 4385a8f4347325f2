"""`ablate list`: what can be chosen, and where it comes from."""

from collections.abc import Sequence
from pathlib import Path

from ablate import config
from ablate.errors import BadInputError
from ablate.home import Home
from components import registry

PLURALS = {
    "models": "model",
    "budgets": "budget",
    "optimizers": "optimizer",
    "trainers": "trainer",
    "launchers": "launcher",
    "sweeps": "sweep",
}


def rows(what: str, config_dirs: Sequence[Path], home: str | None) -> list[dict[str, str]]:
    """One row per thing of a kind: components (all, or of one slot), options of a config group, or studies.

    Raises:
        BadInputError: no such kind.
    """
    if what == "components":
        return [_component(entry) for entry in registry.entries()]
    if what in registry.slots():
        return [_component(entry) for entry in registry.entries(what)]
    if what == "studies":
        return _studies(Home.at(home))
    group = PLURALS.get(what, what)
    if group in config.GROUPS:
        found = config.options(group, config_dirs)
        return [
            {"name": name, "summary": text, "file": str(config.file_of(group, name, config_dirs))}
            for name, text in found.items()
        ]
    allowed = ["components", "studies", *PLURALS, "data", "tracking", *registry.slots()]
    raise BadInputError(f"list {what}: {registry.unknown('kind', what, allowed)}")


def _component(entry: registry.Entry) -> dict[str, str]:
    return {"slot": entry.slot, "name": entry.name, "summary": entry.summary, "source": entry.source}


def _studies(home: Home) -> list[dict[str, str]]:
    if not home.database.exists():
        return []
    from ablate import study

    views = [study.view(name, home) for name in study.names(home)]
    return [
        {
            "name": view.name,
            "state": view.state,
            "trials": f"{sum(row.state == 'complete' for row in view.trials)} of {len(view.trials)}",
            "question": view.plan.question,
        }
        for view in views
    ]


def print_rows(found: Sequence[dict[str, str]]) -> None:
    """As a table, columns as wide as the terminal allows."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not found:
        console.print("none yet")
        return
    columns = [name for name in found[0] if name != "file"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(
            name, style="bold" if name == "name" else "", no_wrap=name in ("slot", "name", "state")
        )
    for row in found:
        table.add_row(*(row[name] for name in columns))
    console.print(table)
