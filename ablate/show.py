"""`ablate show`: a model's parameters, FLOPs and layers without allocating it, a component, or a sweep."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ablate import config, explain, pricing, schema, units
from ablate.costs import CostTable
from ablate.errors import BadInputError
from ablate.variant import Variant, listed
from components import registry
from components.slots import Indexer
from components.spec import Cost


@dataclass(frozen=True)
class Shown:
    """The same facts twice: for programs and for people."""

    data: dict[str, Any]
    picture: RenderableType

    def print(self) -> None:
        """To the terminal."""
        Console(highlight=False).print(self.picture)


def show(what: Sequence[str], config_dirs: Sequence[Path]) -> Shown:
    """What `what[0]` names, with the other entries as overrides.

    Raises:
        BadInputError: it names nothing that can be shown.
    """
    first = what[0]
    if first.startswith("sweep="):
        return _sweep(config.load(list(what), config_dirs))
    if "=" in first:
        return model(list(what), config_dirs)
    if "/" in first:
        return _component(first, what[1:], config_dirs)
    raise BadInputError(f"show {first}: nothing of that form. Allowed: model=NAME, SLOT/NAME, sweep=NAME.")


def _component(named: str, overrides: Sequence[str], config_dirs: Sequence[Path]) -> Shown:
    run = config.load(
        overrides, config_dirs, require_sweep=False
    )  # brings plugins, and the model to price in
    slot, _, name = named.partition("/")
    try:
        entry = registry.get(slot, name)
    except registry.UnknownNameError as error:
        raise BadInputError(f"show {named}: {error}") from error
    return Shown(*explain.component(entry, run, pricing.sequence_length(run, overrides)))


def model(overrides: Sequence[str], config_dirs: Sequence[Path] = ()) -> Shown:
    """Parameter and FLOP table per component, layers, warnings, totals with and without prediction layers."""
    from ablate import curriculum, optimization

    run = config.load(overrides, config_dirs, require_sweep=False)
    seq_len = pricing.sequence_length(run, overrides)
    variant = Variant.from_run(run, run.model.vocab_size or run.data.vocab_size)
    variant.check(seq_len)
    table = variant.costs(seq_len)
    curriculum.check(run, variant, f"model {run.model.name}")
    warnings = [*variant.warnings(seq_len), *_unchosen(variant, seq_len)]
    optimizer = optimization.flops_per_step(run.optimizer, variant)
    data = {
        "model": run.model.name,
        "fingerprint": variant.fingerprint,
        "seq_len": seq_len,
        "schedule": variant.schedule,
        "components": [
            {"component": label, "count": count, **dataclasses.asdict(cost)}
            for label, count, cost in table.backbone_rows
        ],
        "backbone": dataclasses.asdict(table.backbone),
        "prediction_layers": dataclasses.asdict(table.prediction),
        "total_params": table.total.params,
        "total_active_params": table.total.active_params,
        "optimizer": {"name": run.optimizer.name, "flops_per_step": optimizer},
        "warnings": warnings,
    }
    beside = f"optimizer/{run.optimizer.name} computes {units.flops(optimizer)} of its own per step"
    stretches = curriculum.priced(run, variant) if run.trainer.curriculum else []
    data["curriculum"] = stretches
    staged = [
        f"curriculum, {s['share']:.4g} of a trial's compute: {s['batch_size']} x {s['seq_len']:,} tokens per step, "
        f"attention {s['attention']}, {units.flops(s['train_flops_per_step'])} per step"
        for s in stretches
    ]
    notes = [*warnings, *([beside] if optimizer else []), *staged]
    return Shown(data, _model_picture(run.model.name, variant, seq_len, table, notes))


def _unchosen(variant: Variant, seq_len: int) -> list[str]:
    """Up to where indexers have nothing to choose; one that never has is the component's own warning."""
    found: dict[str, list[int]] = {}
    for layer in variant.layers:
        used = {part.slot: part for part in variant.parts(layer)}
        indexer = used.get("indexer")
        if indexer is None or layer.topk >= seq_len // layer.ratio:
            continue
        assert issubclass(indexer.cls, Indexer)
        if not indexer.cls.selects(indexer.config):
            continue
        until = (layer.topk + 1) * layer.ratio - 1
        text = (
            f"indexer/{indexer.name}: index_topk={layer.topk} at ratio {layer.ratio} chooses nothing in the first "
            f"{until:,} tokens of a sequence, where queries see no more entries than that"
        )
        found.setdefault(text, []).append(layer.index)
    return [f"{text} ({listed(members)})" for text, members in found.items()]


_WIDE = 100
"""Columns of a terminal that all columns of the cost table fit in."""


def _model_picture(
    name: str, variant: Variant, seq_len: int, costs: CostTable, remarks: Sequence[str]
) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("component", overflow="fold")  # a name may be cut in two, a number never
    columns: dict[str, Callable[[str, Cost], str]] = {
        "n": lambda count, _: count,
        "parameters": lambda _, cost: f"{cost.params:,}",
        "active": lambda _, cost: f"{cost.active_params:,}",
        "forward\nFLOP/token": lambda _, cost: units.count(cost.forward_flops / seq_len),
        "train\nFLOP/token": lambda _, cost: units.count(cost.train_flops / seq_len),
        "KV bytes\nper token": lambda _, cost: f"{cost.kv_bytes / seq_len:,.1f}" if cost.kv_bytes else "",
        "share": lambda _, cost: f"{cost.train_flops / costs.total.train_flops:.1%}",
    }
    if Console().width < _WIDE:
        for column in ("n", "forward\nFLOP/token", "share"):
            del columns[column]
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)

    def add(label: str, count: str, cost: Cost, style: str = "") -> None:
        table.add_row(label, *(cell(count, cost) for cell in columns.values()), style=style)

    for label, count, cost in costs.backbone_rows:
        add(label, str(count), cost)
    table.add_section()
    add("backbone", "", costs.backbone, "bold")
    if variant.prediction_layers:
        label = f"prediction layers, mtp/{variant.config('mtp')[0]}"
        add(label, str(len(variant.prediction_layers)), costs.prediction)
        add("total with MTP", "", costs.total, "bold")
    dims = variant.dims
    head = Text.from_markup(
        f"[bold]{escape(name)}[/]  {variant.fingerprint}\n"
        f"{len(variant.layers)} layers of {dims.hidden_size}, "
        f"{dims.num_attention_heads} heads of {dims.head_dim}, "
        f"vocabulary {dims.vocab_size:,}; priced at sequences of {seq_len:,} tokens, decoding costs "
        f"{units.flops(costs.total.decode_flops)} per token after that context"
    )
    notes = [Text.from_markup(f"[yellow]note[/] {escape(text)}") for text in remarks]
    return Group(head, Text(), _layers(variant), table, *notes)


_COLOURS = ("cyan", "green", "magenta", "yellow", "blue", "red", "white")
_SPARE = "123456789abcdefghijklmnopqrstuvwxyz"
"""Letters of kinds of layers whose own are taken."""


def _layers(variant: Variant) -> RenderableType:
    """The schedule as a strip of one letter per layer, and what the letters mean."""
    kinds: dict[tuple[Any, ...], list[int]] = {}
    for layer in variant.layers:
        kinds.setdefault((layer.attention, layer.ratio, layer.overlap, layer.topk), []).append(layer.index)
    routers = {layer.index: layer.router for layer in variant.layers}
    letters: dict[int, tuple[str, str]] = {}
    legend = Text()
    taken: set[str] = set()
    for (attention, ratio, overlap, topk), members in kinds.items():
        letter = next((c for c in (*attention.upper(), *_SPARE) if c.isalnum() and c not in taken), "?")
        colour = _COLOURS[len(taken) % len(_COLOURS)]
        taken.add(letter)
        letters |= dict.fromkeys(members, (letter, colour))
        options = [f"ratio {ratio}"] if ratio else []
        options += ["overlapping blocks"] if overlap else []
        options += [f"top-{topk} entries per query"] if topk else []
        legend.append(f"  {letter} ", style=f"bold {colour}").append(
            f"{attention}{', ' if options else ''}{', '.join(options)}: {len(members)} layers\n"
        )
    strip = Text("schedule ").append(variant.schedule + "\n")
    hashed = [index for index, router in routers.items() if router == "hash"]
    in_a_row = max(1, (Console().width - 2) // 2)
    for start in range(0, len(letters), in_a_row):
        row = sorted(letters)[start : start + in_a_row]
        strip.append("  ")
        for index in row:
            strip.append(letters[index][0] + " ", style=f"bold {letters[index][1]}")
        strip.append("\n")
        if any(index in hashed for index in row):
            strip.append("  " + "".join("# " if index in hashed else "· " for index in row) + "\n")
    if hashed:
        legend.append(f"  # routed by hash: {len(hashed)} layers\n")
    return Group(strip, legend)


def _sweep(run: schema.Run) -> Shown:
    sweep = run.sweep
    data = {**dataclasses.asdict(sweep), "model": run.model.name, "budget": dataclasses.asdict(run.budget)}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("arm", "differs by"):
        table.add_column(column)
    for name, overrides in sweep.arms.items():
        changes = ", ".join(f"{key}={value}" for key, value in (overrides or {}).items()) or "nothing"
        table.add_row(name + (" (baseline)" if name == sweep.baseline else ""), escape(changes))
    for key, drawn_from in sweep.space.items():
        table.add_row(Text("searched", style="dim"), escape(f"{key} from {drawn_from}"))
    head = Text.from_markup(f"[bold]{escape(sweep.name)}[/]  {escape(sweep.question)}")
    facts = Text(
        f"model {run.model.name}; {sweep.search.points} learning rates and up to "
        f"{sweep.search.extensions} more per arm, {sweep.confirm.seeds} fresh seeds"
        f"{' at most' if sweep.confirm.looks else ''}; "
        f"equal {run.budget.match}, {run.budget.per_trial} per trial, "
        f"total {run.budget.total or 'as planned'}"
    )
    return Shown(data, Group(head, facts, table))
