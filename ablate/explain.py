"""One entry of the registry explained: what it computes, where it is from, what it costs, what can be set."""

import ast
import dataclasses
import inspect
import textwrap
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ablate import pricing, units
from ablate.pricing import Price
from ablate.schema import Run
from components.registry import Entry
from components.slots import Registered
from components.spec import Range, search_space


def component(entry: Entry, run: Run, seq_len: int) -> tuple[dict[str, Any], RenderableType]:
    """The same facts for programs and for people; costs are those in the model of `run`."""
    ranges = search_space(entry.cls.Config)
    documented = option_texts(entry.cls.Config)
    price = pricing.price(entry, run, seq_len)
    data = {
        "slot": entry.slot,
        "name": entry.name,
        "summary": entry.summary,
        "description": inspect.cleandoc(entry.cls.__doc__ or ""),
        "source": entry.source,
        "uses": list(entry.cls.uses),
        "options": {
            f.name: {
                "type": getattr(f.type, "__name__", str(f.type)),
                "default": None if f.default is dataclasses.MISSING else f.default,
                "range": dataclasses.asdict(ranges[f.name]) if f.name in ranges else None,
                "meaning": documented.get(f.name, ""),
            }
            for f in dataclasses.fields(entry.cls.Config)
        },
        "cost": facts(price, run, seq_len),
        "diagnostics": dict(entry.cls.diagnostics),
        "alarms": [dataclasses.asdict(alarm) for alarm in entry.cls.alarms],
    }
    parts: list[RenderableType] = [
        Text.assemble((f"{entry.slot}/{entry.name}", "bold"), "  ", (entry.source, "dim")),
        Text(),
        Text(data["description"]),
        Text(),
        _options(data["options"], ranges) if data["options"] else Text("no options"),
    ]
    if entry.slot == "probe":
        parts.append(Text(f"chosen by data={entry.slot}/{entry.name}; difficulty by data.args.OPTION"))
    else:
        parts.append(Text(f"cost: {_sentence(price, run, seq_len)}"))
    if entry.cls.uses:
        parts.append(Text(f"uses the slots: {', '.join(entry.cls.uses)}, which are priced by themselves"))
    if entry.cls.diagnostics:
        parts += [Text(), _diagnostics(entry.cls)]
    return data, Group(*parts)


def _diagnostics(cls: type[Registered]) -> Table:
    """What is measured while the component is watched, and when that means that it is broken."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("diagnostic", "says", "alarm"):
        table.add_column(column, no_wrap=column == "diagnostic")
    for name, says in cls.diagnostics.items():
        alarms = [f"{alarm.bounds}: {alarm.why}" for alarm in cls.alarms if alarm.metric == name]
        table.add_row(*map(Text, (name, says, "; ".join(alarms))))
    return table


def facts(price: Price | None, run: Run, seq_len: int) -> dict[str, Any] | None:
    """A price and where it holds."""
    if price is None:
        return None
    return {"model": run.model.name, "seq_len": seq_len, **dataclasses.asdict(price)}


def option_texts(config: type) -> dict[str, str]:
    """What stands below each field of a component's `Config`, by field; Python itself forgets it."""
    found: dict[str, str] = {}
    for cls in reversed(config.__mro__[:-1]):
        try:
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        except (OSError, TypeError):  # made without a source file
            continue
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            match field, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(said))):
                    found[name] = " ".join(said.split())
    return found


def _options(options: dict[str, dict[str, Any]], ranges: dict[str, Range]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("option", "type", "default", "search range", "meaning"):
        table.add_column(column, no_wrap=column in ("option", "type"))
    for name, option in options.items():
        cells = (name, option["type"], str(option["default"]), _range(ranges.get(name)), option["meaning"])
        table.add_row(*map(Text, cells))
    return table


def _range(bounds: Range | None) -> str:
    if bounds is None:
        return ""
    if bounds.choices:
        return ", ".join(map(str, bounds.choices))
    return f"{bounds.low} … {bounds.high}{' (log)' if bounds.log else ''}"


def _sentence(price: Price | None, run: Run, seq_len: int) -> str:
    model = f"model={run.model.name}"
    if price is None:
        return f"{model} has no place for it"
    if price.instances == 0:
        return (
            f"{units.flops(price.train_flops_per_token)} of its own per token in {model}, at "
            f"{run.trainer.batch_size} x {run.trainer.seq_len:,} tokens per step"
        )
    active = f" ({price.active_params:,} active)" if price.active_params != price.params else ""
    return (
        f"{price.params:,} parameters{active} and {units.flops(price.train_flops_per_token)} of training per token, "
        f"as all {price.instances} of its kind in {model} at sequences of {seq_len:,} tokens"
    )
