"""The values of a run under construction: one door through which every value passes, typed and checked.

YAML, the command line and arms all come through `Tree.set`, so that each mistake gets the same sentence: key,
value, what is allowed, nearest match, and where it stands.
"""

import copy
import dataclasses
import difflib
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ablate import designs, ranges, schema, stages
from ablate.errors import BadInputError
from ablate.locate import locate
from ablate.schema import PROBE
from ablate.typed import coerce, field_types
from components import registry

ARM_GROUPS = ("model", "optimizer", "attention", *schema.SLOT_GROUPS)
"""What an arm may change, beside its curriculum. Data, the rest of the trainer, budget and seeds are shared, or pairs
would not be pairs."""

_OPEN = ("sweep.arms", "sweep.factors", "sweep.space", "sweep.search.constraints")
"""Mappings whose keys are not fixed."""


def apply_arm(
    run: schema.Run, overrides: Mapping[str, Any] | None, arm: str = "", file: str = ""
) -> schema.Run:
    """`run` with an arm's overrides (`{"residual": "mhc", "model.compress_ratios": "csa@4*6"}`) applied.

    Args:
        arm: its name, and `file` where it stands, for messages.

    Raises:
        BadInputError: as `load`, or a key that arms must share.
    """
    if overrides is not None and not isinstance(overrides, Mapping):
        raise BadInputError(
            f"sweep.arms.{arm}={overrides!r} is not a mapping of overrides such as {{residual: prenorm}}."
        )
    place = ", ".join([*([f"arm '{arm}'"] if arm else []), *([file] if file else [])])
    tree = Tree({}, schema.to_dict(run), f" ({place})" if place else "")
    # a component's name before its options: the name replaces all options by its defaults
    for key, value in sorted((overrides or {}).items(), key=lambda item: item[0].count(".")):
        top = str(key).split(".")[0]
        if top in tree.values and top not in ARM_GROUPS and key != stages.KEY:
            raise BadInputError(
                f"{key}={value} cannot differ between arms{tree.where(key, value)}: "
                f"arms share {top}, so that their seeds stay paired. Allowed: "
                f"{', '.join((*ARM_GROUPS, stages.KEY))}."
            )
        tree.set(str(key), value)
    rate = tree.values["optimizer"]["lr"]
    if rate != run.optimizer.lr:
        raise BadInputError(
            f"optimizer.lr={rate} cannot differ between arms{tree.where('optimizer.lr', rate)}: "
            "it is tuned for every arm. Set sweep.search.points and sweep.search.factor to widen the grid."
        )
    return tree.build(require_sweep=False)


class Tree:
    """Nested values of a `Run` under construction; `set` is the one door for every value."""

    def __init__(self, sources: dict[str, Path], values: dict[str, Any] | None = None, place: str = ""):
        self.sources = sources
        self.values = copy.deepcopy(values) if values else schema.to_dict(schema.Run())
        self.place = place

    def merge(self, prefix: str, values: Mapping[str, Any]) -> None:
        """`set` every entry of a mapping below `prefix` (empty, or ending in a dot)."""
        for key, value in values.items():
            self.set(f"{prefix}{key}", value)

    def remove(self, key: str) -> None:
        """Take an arm or a factor (`sweep.arms.NAME`, `sweep.factors.NAME`) out of the sweep."""
        _, group, name = key.split(".", 2)
        known = self.values["sweep"][group]
        if name not in known:
            raise BadInputError(f"~{key}: {registry.unknown(group.removesuffix('s'), name, known)}")
        del known[name]

    def design(self) -> None:
        """Put the arms that the sweep's design generates beside those that are named.

        Raises:
            BadInputError: factors that make no design, or an arm that is named and generated otherwise.
        """
        sweep = self.values["sweep"]
        for key in ("factors", "space"):
            designs_with = ranges.CHOICES["sweep.design"][1:-1] if key == "factors" else ("search",)
            if sweep[key] and sweep["design"] not in designs_with:
                raise BadInputError(
                    f"sweep.{key} ({', '.join(sweep[key])}) has no effect with sweep.design={sweep['design']}. "
                    f"Allowed: {', '.join(designs_with)}."
                )
        if sweep["design"] == "search" and sweep["baseline"] == "???":
            sweep["arms"].setdefault(designs.AS_CONFIGURED, {})
            sweep["baseline"] = designs.AS_CONFIGURED
        if sweep["design"] in ("arms", "search"):
            return
        made, baseline = designs.arms(sweep["design"], sweep["factors"], sweep["resolution"])
        for name in made.keys() & sweep["arms"].keys():
            if plain(made[name]) != sweep["arms"][name]:
                raise BadInputError(
                    f"sweep.arms.{name}={sweep['arms'][name]}: sweep.design={sweep['design']} makes an arm of "
                    f"that name, {made[name]}. Give it another name."
                )
        sweep["arms"] = plain(made) | sweep["arms"]
        if sweep["baseline"] == "???":
            sweep["baseline"] = baseline

    def set(self, key: str, value: Any) -> None:
        """Put a checked value at a dotted key.

        Raises:
            BadInputError: the key does not exist, or the value has the wrong type or is out of range.
        """
        parts = key.split(".")
        if parts[0] in schema.SLOT_GROUPS or (
            parts[0] == "optimizer" and (len(parts) == 1 or parts[1] in ("name", "args"))
        ):
            return self._set_slot(parts[0], parts[1:], value)
        if parts[0] == "attention":
            return self._set_attention(parts[1:], value)
        if parts[0] == "data" and (len(parts) == 1 or parts[1] in ("source", "args")):
            return self._set_source(parts[1:], value)
        cls: Any = schema.Run
        node = self.values
        for depth, part in enumerate(parts):
            types = field_types(cls)
            if part not in types:
                raise self._unknown(key, value)
            kind, last = types[part], depth == len(parts) - 1
            if isinstance(kind, type) and dataclasses.is_dataclass(kind):
                if last:
                    if not isinstance(value, Mapping):
                        raise BadInputError(
                            f"{key}={value}{self.where(key, value)} is a group of keys, not a value. "
                            f"Allowed below it: {', '.join(field_types(kind))}."
                        )
                    return self.merge(f"{key}.", value)
                cls, node = kind, node[part]
            elif last:
                node[part] = self._value(key, value, kind)
            elif kind == dict[str, Any]:  # open by design: arms and factors of a sweep
                node[part][".".join(parts[depth + 1 :])] = plain(value)
                return None
            else:
                raise self._unknown(key, value)
        return None

    def _set_slot(self, slot: str, rest: list[str], value: Any) -> None:
        key = ".".join([slot, *rest])
        if not rest and isinstance(value, Mapping):
            for inner in sorted(value, key=lambda k: k != "name"):
                self.set(f"{slot}.{inner}", value[inner])
        elif not rest or rest == ["name"]:
            entry = self._entry(slot, str(value), key)
            kept = self.values[slot]
            if kept["name"] != entry.name or rest != ["name"]:
                kept |= {"name": entry.name, "args": _defaults(entry.cls.Config)}
        elif rest == ["args"] and isinstance(value, Mapping):
            self.merge(f"{slot}.args.", value)
        elif len(rest) == 2 and rest[0] == "args":
            entry = self._entry(slot, self.values[slot]["name"], key)
            self._set_option(entry, self.values[slot]["args"], key, value)
        else:
            raise self._unknown(key, value)

    def _set_attention(self, rest: list[str], value: Any) -> None:
        """Options by entry, because a schedule may have many; an entry's name is no value of its own."""
        key = ".".join(["attention", *rest])
        if len(rest) < 2 and isinstance(value, Mapping):
            self.merge(f"{key}.", value)
        elif len(rest) == 2:
            entry = self._entry("attention", rest[0], key)
            self._set_option(entry, self.values["attention"].setdefault(entry.name, {}), key, value)
        else:
            raise BadInputError(
                f"{key}={value}{self.where(key, value)} is no option. model.compress_ratios says which "
                "attention a layer has. Allowed: attention.ENTRY.OPTION, as in attention.mla.kv_lora_rank=64."
            )

    def _set_source(self, rest: list[str], value: Any) -> None:
        """Where data come from: the name of a probe brings the defaults of its options, text has none."""
        key, data = ".".join(["data", *rest]), self.values["data"]
        if len(rest) < 2 and rest != ["source"]:
            if not isinstance(value, Mapping):
                raise BadInputError(f"{key}={value}{self.where(key, value)} is a group of keys, not a value.")
            for inner in sorted(value, key=lambda k: k != "source"):
                self.set(f"{key}.{inner}", value[inner])
        elif rest == ["source"]:
            source = self._value(key, value, str)
            if source != data["source"]:
                probe = self._probe(source, key)
                data |= {"source": source, "args": _defaults(probe.cls.Config) if probe else {}}
        else:
            probe = self._probe(data["source"], key)
            if probe is None or len(rest) > 2:
                raise BadInputError(
                    f"{key}={value}{self.where(key, value)} has no effect with data.source={data['source']}. "
                    f"Allowed: options of a probe, with data.source={PROBE}NAME."
                )
            self._set_option(probe, data["args"], key, value)

    def _probe(self, source: str, key: str) -> registry.Entry | None:
        """The probe that a source names; None of text."""
        if not source.startswith(PROBE):
            return None
        try:
            return registry.get("probe", source.removeprefix(PROBE))
        except registry.UnknownNameError as error:
            raise BadInputError(f"{key}={source}{self.where(key, source)}: {error}") from error

    def _set_option(self, entry: registry.Entry, options: dict[str, Any], key: str, value: Any) -> None:
        types, (place, _, name) = field_types(entry.cls.Config), key.rpartition(".")
        if name not in types:
            names = [f"{place}.{known}" for known in types]
            raise BadInputError(
                f"{key}={value}{self.where(key, value)}: "
                f"{registry.unknown(f'option of {entry.slot}/{entry.name}', key, names)}"
            )
        options[name] = self._value(key, value, types[name])
        self._check_config(entry, options, key, value)

    def _entry(self, slot: str, name: str, key: str) -> registry.Entry:
        try:
            return registry.get(slot, name)
        except registry.UnknownNameError as error:
            raise BadInputError(f"{slot}={name}{self.where(key, name)}: {error}") from error

    def _check_config(self, entry: registry.Entry, options: Mapping[str, Any], key: str, value: Any) -> None:
        """Let the component's own `__post_init__` judge, with all options that are set so far."""
        try:
            entry.config({k: v for k, v in options.items() if v != "???"})
        except ValueError as error:
            raise BadInputError(f"{key}={value}{self.where(key, value)}: {error}") from error
        except TypeError:
            pass  # a required option is still missing; `build` names it

    def _value(self, key: str, value: Any, kind: Any) -> Any:
        if value == "???":
            return value
        try:
            typed = plain(coerce(value, kind))
        except ValueError as error:
            raise BadInputError(
                f"{key}={value}{self.where(key, value)} has the wrong type. Allowed: {error}."
            ) from None
        ranges.check(key, typed, lambda: self.where(key, value))
        return stages.typed(typed, lambda: self.where(key, value)) if key == stages.KEY else typed

    def _unknown(self, key: str, value: Any) -> BadInputError:
        return BadInputError(
            f"unknown key {key}={value}{self.where(key, value)}. {allowed_keys(key, self.values)}"
        )

    def where(self, key: str, value: Any) -> str:
        """` (file:line)` of a value that comes from YAML, or the arm that it belongs to."""
        if self.place or not self.sources:
            return self.place
        found = locate(key.split("."), value, self.sources)
        return f" ({found})" if found else ""

    def _check_looks(self, sweep: Mapping[str, Any]) -> None:
        looks, bound = sweep["confirm"]["looks"], ranges.BOUNDS["sweep.confirm.replicates"]
        if any(b <= a for a, b in itertools.pairwise(looks)) or not all(map(bound.holds, looks)):
            raise BadInputError(
                f"sweep.confirm.looks={looks} is not a row of looks{self.place}. "
                f"Allowed: ascending numbers of seeds, each {bound}, such as [3, 5, 8]; or [] for one look."
            )
        if looks and sweep["design"] in designs.CROSSED:
            raise BadInputError(
                f"sweep.confirm.looks={looks} stops arms early, but effects of sweep.design={sweep['design']} "
                f"take all arms on all seeds{self.place}. Allowed: [], with sweep.confirm.replicates."
            )

    def build(self, require_sweep: bool) -> schema.Run:
        """The typed run, once nothing mandatory is missing."""
        for key, value in leaves(self.values):
            if value == "???" and (require_sweep or not key.startswith("sweep.")):
                raise BadInputError(f"{key} has no value{self.place}. Give {key}=VALUE.")
        for key, bound in ranges.BOUNDS.items():
            value = _get(self.values, key)
            if not isinstance(value, str) and not bound.holds(value):
                raise BadInputError(f"{key}={value} is out of range{self.place}. Allowed: {bound}.")
        sweep = self.values["sweep"]
        self._check_looks(sweep)
        if require_sweep:
            if len(sweep["arms"]) < 2 and sweep["design"] != "search":
                raise BadInputError(
                    f"sweep.arms has {len(sweep['arms'])} arm; a comparison needs at least 2."
                )
            if sweep["baseline"] not in sweep["arms"]:
                error = registry.unknown("arm", sweep["baseline"], sweep["arms"])
                raise BadInputError(f"sweep.baseline={sweep['baseline']}: {error}")
        run = schema.from_dict(copy.deepcopy(self.values))
        stages.check(run.trainer, self.place)
        return run


def _defaults(config: type) -> dict[str, Any]:
    values = {}
    for f in dataclasses.fields(config):
        if f.default is not dataclasses.MISSING:
            values[f.name] = plain(f.default)
        elif f.default_factory is not dataclasses.MISSING:
            values[f.name] = plain(f.default_factory())
        else:
            values[f.name] = "???"
    return values


def plain(value: Any) -> Any:
    """JSON-able form: tuples as lists, mappings with text keys."""
    if isinstance(value, Mapping):
        return {str(plain(k)): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Dotted keys and values of a nested mapping; what is open below (`_OPEN`) counts as one value."""
    for key, value in values.items():
        if isinstance(value, Mapping) and f"{prefix}{key}" not in _OPEN:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def keys(values: Mapping[str, Any]) -> list[str]:
    """Dotted keys of a nested mapping."""
    return [key for key, _ in leaves(values)]


def _get(values: Mapping[str, Any], key: str) -> Any:
    node: Any = values
    for part in key.split("."):
        node = node[part]
    return node


def allowed_keys(key: str, values: Mapping[str, Any] | None = None) -> str:
    """Nearest existing key, and what may stand at that place."""
    values = values or schema.to_dict(schema.Run())
    known = [*keys(values), *values]
    parent, _, leaf = key.rpartition(".")
    below = [name for name in known if name.rpartition(".")[0] == parent]
    siblings = {name.rpartition(".")[2]: name for name in below}
    near = [siblings[name] for name in difflib.get_close_matches(leaf, siblings, n=1)]
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"Did you mean '{near[0]}'? " if near else ""
    names = sorted({name.rpartition(".")[2] for name in below} or set(values))
    return f"{hint}Allowed{f' below {parent}' if below and parent else ''}: {', '.join(names)}."
