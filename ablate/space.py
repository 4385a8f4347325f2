"""The space of an open search: which keys of the configuration are drawn, and from what. Methodology §B1.

Define-by-run: a parameter is asked for only where it has an effect, so options belong to the component that was
chosen. Nothing here knows a sampler.
"""

import itertools
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ablate import schedule_space, schema
from ablate.errors import BadInputError
from ablate.parameters import Parameter, every
from ablate.schedule import SHORT
from ablate.schedule_space import Schedules
from ablate.tree import apply_arm
from ablate.typed import field_types
from ablate.variant import Variant
from components import registry
from components.spec import search_space

DECLARED = "declared"
"""In place of a range: what the component's `Config` declares, or for the options of a slot: all it declares."""

ALL = "all"
"""In place of choices of a slot: every entry of the registry."""

RATE = "optimizer.lr"

_SLOTS = (*schema.SLOT_GROUPS, "optimizer")

_ALLOWED = (
    "a list of choices; {low: L, high: H} with log: true where steps are factors; 'declared' for an option of a "
    "component; {choices: [...], options: declared} for a slot; {tokens: [...]} for model.compress_ratios"
)


@dataclass(frozen=True)
class Draw:
    """A point of the space.

    Attributes:
        params: values by parameter, of those that were asked for.
        overrides: what they set, for an arm. lr: learning rate, where it is searched.
    """

    params: dict[str, Any]
    overrides: dict[str, Any]
    lr: float | None = None


@dataclass(frozen=True)
class Space:
    """What is searched.

    Attributes:
        slots: slot to its choice. options: (slot, entry) to the options drawn where that entry is in use.
        keys: other keys of the configuration. chosen: entries of slots that are not searched.
    """

    slots: dict[str, Parameter]
    options: dict[tuple[str, str], tuple[Parameter, ...]]
    keys: tuple[Parameter, ...]
    schedules: Schedules | None
    chosen: dict[str, str] = field(default_factory=dict)

    @property
    def searches_optimizer(self) -> bool:
        """Whether proposals may differ in their optimizer, whose own products are then charged."""
        return "optimizer" in self.slots or any(slot == "optimizer" for slot, _ in self.options)

    def draw(self, suggest: Callable[[Parameter], Any]) -> Draw:
        """A point, by asking for one parameter after the other."""
        params: dict[str, Any] = {}

        def ask(parameter: Parameter) -> Any:
            params[parameter.name] = suggest(parameter)
            return params[parameter.name]

        overrides: dict[str, Any] = {}
        for slot, parameter in self.slots.items():
            overrides[slot] = ask(parameter)
        for (slot, entry), parameters in self.options.items():
            if slot != "attention" and overrides.get(slot, self.chosen[slot]) == entry:
                for parameter in parameters:
                    overrides[f"{slot}.args.{parameter.name.rpartition('.')[2]}"] = ask(parameter)
        for parameter in self.keys:
            overrides[parameter.name] = ask(parameter)
        text = overrides.get(schedule_space.KEY, self.chosen[schedule_space.KEY])
        if self.schedules is not None:
            text = overrides[schedule_space.KEY] = self.schedules.draw(ask)
        for (slot, entry), parameters in self.options.items():
            if slot == "attention" and _mentions(text, entry):
                overrides |= {parameter.name: ask(parameter) for parameter in parameters}
        return Draw(params, overrides, overrides.pop(RATE, None))

    def again(self, params: Mapping[str, Any]) -> tuple[Draw, dict[str, Parameter]]:
        """The point of stored values, and the parameters that they are values of.

        Raises:
            KeyError: a parameter of that point is not among the values.
        """
        asked: dict[str, Parameter] = {}

        def suggest(parameter: Parameter) -> Any:
            asked[parameter.name] = parameter
            return params[parameter.name]

        return self.draw(suggest), asked

    def names(self) -> set[str]:
        """Names of the parameters that points have: those of some hundred random ones."""
        rng = random.Random(0)
        drawn = (self.draw(lambda parameter: parameter.random(rng)) for _ in range(200))
        return set().union(*(draw.params for draw in drawn))

    def size(self, most: int = 100_000) -> int | None:
        """Number of points, duplicates among them; None where they cannot be counted, or are more."""
        try:
            points = sum(1 for _ in itertools.islice(every(self._counted), most + 1))
        except _NotCountable:
            return None
        return points if points <= most else None

    def _counted(self, suggest: Callable[[Parameter], Any]) -> Draw:
        def ask(parameter: Parameter) -> Any:
            if not parameter.countable:
                raise _NotCountable(parameter.name)
            return suggest(parameter)

        return self.draw(ask)

    def ranges(self) -> list[Parameter]:
        """Parameters that have no finite number of values."""
        options = (parameter for parameters in self.options.values() for parameter in parameters)
        return [parameter for parameter in (*self.keys, *options) if not parameter.countable]


class _NotCountable(Exception):
    pass


def _mentions(text: str, attention: str) -> bool:
    """Whether a layer of a schedule has that attention."""
    short = {name: short for short, name in SHORT.items()}.get(attention, attention)
    return re.search(rf"(?<!\w){re.escape(short)}(?!\w)", text) is not None


def read(run: schema.Run) -> Space:
    """The space that `sweep.space` describes, every choice and end of a range tried on the configuration.

    Raises:
        BadInputError: names the key, the value and what is allowed.
    """
    given = run.sweep.space
    if not given:
        raise BadInputError(
            "sweep.space is empty, and sweep.design=search needs one. Allowed: keys of the configuration with "
            f"{_ALLOWED}."
        )
    registry.load(run.plugins)
    slots: dict[str, Parameter] = {}
    options: dict[tuple[str, str], tuple[Parameter, ...]] = {}
    keys: list[Parameter] = []
    schedules = None
    for key, spec in given.items():
        top, *rest = key.split(".")
        if key == schedule_space.KEY and isinstance(spec, Mapping) and "choices" not in spec:
            layers = "model.num_hidden_layers" in given
            schedules = Schedules.read(spec, run.model.num_hidden_layers, layers)
        elif top in _SLOTS and not rest:
            slots[top], found = _slot(top, spec)
            for entry, parameters in found.items():
                options[top, entry] = (*options.get((top, entry), ()), *parameters)
        elif (top in _SLOTS and key != RATE and len(rest) == 2) or top == "attention":
            slot, entry, parameter = _option(key, rest, spec)
            kept = [p for p in options.get((slot, entry), ()) if p.name != parameter.name]
            options[slot, entry] = (*kept, parameter)  # a range of its own in place of the declared one
        else:
            keys.append(_key(key, spec))
    chosen = {slot: getattr(run, slot).name for slot in _SLOTS}
    chosen[schedule_space.KEY] = Variant.from_run(run, vocab_size=1).schedule
    space = Space(slots, options, tuple(keys), schedules, chosen)
    _try(run, space)
    return space


def _slot(slot: str, spec: Any) -> tuple[Parameter, dict[str, tuple[Parameter, ...]]]:
    """The choice of a slot, and the options to be drawn with each entry."""
    place = f"sweep.space.{slot}"
    mapping = spec if isinstance(spec, Mapping) else {"choices": spec}
    for key in mapping:
        if key not in ("choices", "options"):
            raise BadInputError(f"{place}: {registry.unknown('key', str(key), ('choices', 'options'))}")
    names = mapping.get("choices")
    if names == ALL:
        names = [entry.name for entry in registry.entries(slot)]
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        raise BadInputError(f"{place}={spec} names no entries. Allowed: a list of entries, or choices: all.")
    try:
        entries = [registry.get(slot, str(name)) for name in names]
    except registry.UnknownNameError as error:
        raise BadInputError(f"{place}: {error}") from error
    wanted = mapping.get("options")
    if wanted not in (None, DECLARED):
        raise BadInputError(
            f"{place}.options={wanted} is not supported. Allowed: {DECLARED}; for a range of your own give "
            f"sweep.space.{slot}.ENTRY.OPTION."
        )
    found = {}
    for entry in entries if wanted else ():
        found[entry.name] = tuple(
            _parameter(f"{slot}.{entry.name}.{option}", DECLARED, entry.cls.Config, option)
            for option in search_space(entry.cls.Config)
        )
    return Parameter(slot, choices=tuple(entry.name for entry in entries)), found


def _option(key: str, rest: Sequence[str], spec: Any) -> tuple[str, str, Parameter]:
    """`SLOT.ENTRY.OPTION`: drawn where that entry is in use."""
    slot = key.split(".")[0]
    if len(rest) != 2:
        raise BadInputError(f"sweep.space.{key} is no option. Allowed: SLOT.ENTRY.OPTION.")
    try:
        entry = registry.get(slot, rest[0])
    except registry.UnknownNameError as error:
        raise BadInputError(f"sweep.space.{key}: {error}") from error
    known = field_types(entry.cls.Config)
    if rest[1] not in known:
        error = registry.unknown(f"option of {slot}/{entry.name}", rest[1], known)
        raise BadInputError(f"sweep.space.{key}: {error}")
    return slot, entry.name, _parameter(key, spec, entry.cls.Config, rest[1])


def _key(key: str, spec: Any) -> Parameter:
    """Any other key of the model or the optimizer."""
    groups = {"model": schema.Model, "optimizer": schema.Optimizer}
    top, _, name = key.partition(".")
    known = [f"{group}.{field}" for group, cls in groups.items() for field in field_types(cls)]
    if top not in groups or name not in field_types(groups[top]) or name in ("name", "args"):
        raise BadInputError(f"sweep.space.{key}: {registry.unknown('key to search', key, known)}")
    return _parameter(key, spec, groups[top], name)


def _parameter(name: str, spec: Any, cls: type, option: str) -> Parameter:
    """A parameter from choices, a range, or what a component declares."""
    place, kind = f"sweep.space.{name}", field_types(cls)[option]
    if spec == DECLARED:
        declared = search_space(cls).get(option)
        if declared is None:
            names = ", ".join(search_space(cls)) or "none"
            raise BadInputError(
                f"{place}: no range is declared for it. Declared: {names}. Allowed: {_ALLOWED}."
            )
        if declared.choices:
            return Parameter(name, choices=tuple(declared.choices))
        spec = {"low": declared.low, "high": declared.high, "log": declared.log}
    if isinstance(spec, Mapping) and "choices" in spec and len(spec) == 1:
        spec = spec["choices"]
    if isinstance(spec, Sequence) and not isinstance(spec, str):
        if not spec or len(set(map(str, spec))) < len(spec):
            raise BadInputError(f"{place}={spec} has no choices, or one of them twice. Allowed: {_ALLOWED}.")
        if any(isinstance(value, list | dict) for value in spec):
            raise BadInputError(f"{place}={spec}: a choice is a number, text, true, false or null.")
        return Parameter(name, choices=tuple(spec))
    if not isinstance(spec, Mapping) or not {"low", "high"} <= set(spec) <= {"low", "high", "log"}:
        raise BadInputError(f"{place}={spec} is no range. Allowed: {_ALLOWED}.")
    low, high, log = spec["low"], spec["high"], bool(spec.get("log", False))
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (low, high))
    if kind not in (int, float) or not numbers or not low < high or (log and low <= 0):
        raise BadInputError(
            f"{place}={dict(spec)} is no range of numbers, low below high and with log above 0. Allowed: {_ALLOWED}."
        )
    if kind is int and not (float(low).is_integer() and float(high).is_integer()):
        raise BadInputError(f"{place}={dict(spec)}: {option} is an integer. Allowed: integers low and high.")
    return Parameter(name, low=low, high=high, log=log, integer=kind is int)


def _try(run: schema.Run, space: Space) -> None:
    """Let every value through the door that arms come through, one at a time."""
    for slot, parameter in space.slots.items():
        for value in parameter.choices:
            apply_arm(run, {slot: value}, file=f"sweep.space.{slot}")
    for (slot, entry), parameters in space.options.items():
        for parameter in parameters:
            option = parameter.name.rpartition(".")[2]
            at = parameter.name if slot == "attention" else f"{slot}.args.{option}"
            base = {} if slot == "attention" else {slot: entry}
            for value in parameter.ends():
                apply_arm(run, base | {at: value}, file=f"sweep.space.{parameter.name}")
    for parameter in space.keys:
        for value in parameter.ends():
            if parameter.name == RATE:
                if not value > 0:
                    raise BadInputError(f"sweep.space.{RATE}={value} is out of range. Allowed: above 0.")
            else:
                apply_arm(run, {parameter.name: value}, file=f"sweep.space.{parameter.name}")
    if space.schedules is not None:
        for token in space.schedules.tokens:
            try:
                Variant.from_run(apply_arm(run, {schedule_space.KEY: f"{token}*"}), vocab_size=1)
            except BadInputError as error:
                raise BadInputError(f"sweep.space.{schedule_space.KEY}.tokens: {error}") from error


def describe(run: schema.Run) -> str:
    """The space in one sentence."""
    found = read(run)
    count = found.size()
    points = (
        "without end"
        if found.ranges()
        else "more than 100,000 points"
        if count is None
        else f"{count:,} points"
    )
    return f"{', '.join(run.sweep.space)}; {len(found.names())} parameters, {points}"
