"""What a half-typed override may become. Reads files and imports no component: Tab answers at once."""

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import entry_points
from importlib.resources import files
from pathlib import Path
from typing import Any

from ablate import ranges, schema

_SLOTS = (*schema.SLOT_GROUPS, "optimizer")

_REGISTERED = re.compile(r'^@register\(\s*"(\w+)"', re.MULTILINE)


def complete(incomplete: str) -> list[str]:
    """Continuations: groups, their options, dotted keys, values of keys that have few.

    A group that fits alone is continued by its options, since shells put a space behind what is unique.
    """
    key, equals, _ = incomplete.partition("=")
    if not equals:
        found = _fitting(incomplete, _keys(key))
        if len(found) != 1:
            return found
        key = found[0].rstrip("=")
        return sorted(f"{key}={value}" for value in _values(key)) or found
    return _fitting(incomplete, (f"{key}={value}" for value in _values(key)))


def complete_word(incomplete: str, environment: Mapping[str, str]) -> list[str]:
    """As `complete`, for the word that a shell asks about: bash takes `key=value` for three of them."""
    words = environment.get("COMP_WORDS", "").split("\n")
    at = int(environment.get("COMP_CWORD", 0))
    if words[at : at + 1] == ["="]:
        at += 1
    if at < 2 or words[at - 1] != "=":
        return complete(incomplete)
    prefix = f"{words[at - 2]}="
    return [text.removeprefix(prefix) for text in complete(prefix + incomplete)]


def _fitting(incomplete: str, found: Iterable[str]) -> list[str]:
    return sorted({text for text in found if text.startswith(incomplete)})


def _groups() -> list[str]:
    return [field.name for field in dataclasses.fields(schema.Run) if dataclasses.is_dataclass(field.type)]


def _keys(typed: str) -> Iterator[str]:
    """Groups; below a group its dotted keys, below a slot the options of its components."""
    if "." not in typed:
        yield from (f"{group}=" for group in _groups())
    elif (slot := typed.partition(".")[0]) in _SLOTS:
        from components import registry

        for entry in registry.entries(slot):
            yield from (f"{slot}.args.{field.name}=" for field in dataclasses.fields(entry.cls.Config))
        if slot not in schema.SLOT_GROUPS:
            yield from (f"{key}=" for key in _leaves(schema.to_dict(schema.Run())))
    elif slot == "attention":
        from components import registry

        for entry in registry.entries(slot):
            yield from (
                f"{slot}.{entry.name}.{field.name}=" for field in dataclasses.fields(entry.cls.Config)
            )
    else:
        yield from (f"{key}=" for key in _leaves(schema.to_dict(schema.Run())))


def _leaves(values: Mapping[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        yield from (f"{key}.{leaf}" for leaf in _leaves(value)) if isinstance(value, dict) else [key]


def _values(key: str) -> Iterable[str]:
    if key in ranges.CHOICES:
        return ranges.CHOICES[key]
    if key not in _groups():
        return []
    shipped = [path.stem for path in Path(str(files("sweeps") / key)).glob("*.yaml")]
    probes = [f"{schema.PROBE}{name}" for name in _components("probe")] if key == "data" else []
    return [*shipped, *probes, *(_components(key) if key in _SLOTS else [])]


def _components(slot: str) -> Iterable[str]:
    """Names in a slot's folder, as its decorators spell them; from the registry where others have entries."""
    if entry_points(group="ablate.components"):
        from components import registry

        return [entry.name for entry in registry.entries(slot)]
    folder = Path(str(files("components") / slot))
    return [name for path in folder.glob("*.py") for name in _REGISTERED.findall(path.read_text("utf-8"))]
