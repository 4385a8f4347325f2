"""`ablate list`: what can be chosen, and where it comes from."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate import config, explain, pricing, units
from ablate.errors import BadInputError
from ablate.home import Home
from ablate.schema import Run
from components import registry

if TYPE_CHECKING:
    from rich.console import Console

PLURALS = {
    "models": "model",
    "budgets": "budget",
    "optimizers": "optimizer",
    "trainers": "trainer",
    "launchers": "launcher",
    "sweeps": "sweep",
}


def rows(
    what: str, overrides: Sequence[str], config_dirs: Sequence[Path], home: str | None
) -> list[dict[str, Any]]:
    """One row per thing of a kind: components (all, or of one slot), options of a config group, or studies.

    Args:
        overrides: of the configuration in whose model components are priced.

    Raises:
        BadInputError: no such kind, or overrides where none have a meaning.
    """
    group = PLURALS.get(what, what)
    if what == "studies" or (group in config.GROUPS and what != "optimizer"):
        if overrides:
            raise BadInputError(f"list {what} {overrides[0]}: overrides only matter to costs of components.")
        return _studies(Home.at(home)) if what == "studies" else _options(group, config_dirs)
    run = config.load(
        overrides, config_dirs, require_sweep=False
    )  # brings plugins, and the model to price in
    if what != "components" and what not in registry.slots():
        allowed = ["components", "studies", *PLURALS, "data", "tracking", *registry.slots()]
        raise BadInputError(f"list {what}: {registry.unknown('kind', what, allowed)}")
    seq_len = pricing.sequence_length(run, overrides)
    entries = registry.entries(None if what == "components" else what)
    return [_component(entry, run, seq_len) for entry in entries]


def _options(group: str, config_dirs: Sequence[Path]) -> list[dict[str, Any]]:
    found = config.options(group, config_dirs)
    files = {name: str(config.file_of(group, name, config_dirs)) for name in found}
    return [{"name": name, "summary": text, "file": files[name]} for name, text in found.items()]


def _component(entry: registry.Entry, run: Run, seq_len: int) -> dict[str, Any]:
    cost = explain.facts(pricing.price(entry, run, seq_len), run, seq_len)
    facts = {"slot": entry.slot, "name": entry.name, "summary": entry.summary, "source": entry.source}
    return {**facts, "cost": cost}


def _studies(home: Home) -> list[dict[str, Any]]:
    from ablate import study

    return [_study(name, home) for name in study.names(home)]


def _study(name: str, home: Home) -> dict[str, Any]:
    from ablate import study

    try:
        view = study.view(name, home)
    except BadInputError as error:  # a study of another version must not hide the others
        return {"name": name, "state": "unreadable", "trials": "-", "question": str(error)}
    return {
        "name": name,
        "state": view.state,
        "trials": f"{sum(row.state == 'complete' for row in view.trials)} of {len(view.trials)}",
        "question": view.plan.question,
    }


def print_rows(found: Sequence[dict[str, Any]]) -> None:
    """As a table, columns as wide as the terminal allows."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not found:
        console.print("none yet")
        return
    if "slot" in found[0]:
        _print_components(console, found)
        return
    columns = [name for name in found[0] if name != "file"]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, style="bold" if name == "name" else "", no_wrap=name in ("name", "state"))
    for row in found:
        table.add_row(*(Text(str(row[name])) for name in columns))
    console.print(table)


def _print_components(console: "Console", found: Sequence[dict[str, Any]]) -> None:
    """By slot: name, cost, and below the line what it is from."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("component", style="bold", no_wrap=True)
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("FLOP/token", justify="right", no_wrap=True)
    table.add_column("what it is, and its source")
    for slot, rows in itertools.groupby(found, key=lambda row: row["slot"]):
        table.add_row(Text(slot, "bold cyan"))
        for row in rows:
            text = Text(row["summary"]).append(
                f"\n{row['source']}", "dim"
            )  # brackets in formulas are no markup
            table.add_row("  " + row["name"], *_cost(row["cost"]), text)
    console.print(table)
    priced = [row["cost"] for row in found if row["cost"]]
    if priced:
        console.print(
            Text(
                f"Cost: parameters and training FLOPs per token of all instances in model={priced[0]['model']} at "
                f"{priced[0]['seq_len']:,} tokens per sequence, with the entry wherever its slot occurs, without the "
                "parts it uses; for an optimizer its own work, spread over the tokens of a step. Another model: "
                "ablate list components model=NAME. More about one: ablate show SLOT/NAME."
            )
        )


def _cost(cost: dict[str, Any] | None) -> tuple[str, str]:
    """Parameters and training FLOPs per token; `-` where the model has no place for the entry."""
    if cost is None:
        return "-", "-"
    flops = units.flops(cost["train_flops_per_token"]).removesuffix("FLOP").strip()
    return f"{cost['params']:,}" if cost["instances"] else "", flops
