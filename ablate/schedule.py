"""Per-layer attention schedules: from text, tokens or official integers to layers, and back to short text.

    schedule = item {"," item}
    item     = unit ["*" [count]]
    unit     = token | ["interleave" | "ramp"] "(" schedule ")"
    token    = mechanism ["@" ratio] {":" option} | integer
    option   = "k" topk | "overlap" | "no_overlap"

Mechanisms are names of `attention` entries; `swa` is short for `sliding_window`. Integers are the official
`compress_ratios`: 0 sliding window, 4 CSA, any other HCA.

`*` without a count takes all layers that are left, once per schedule, so that a pattern fits any depth:

    constant     csa@4*
    alternating  (csa@4,hca@128)*
    first and last layers of their own      swa*2,(csa@4,hca@128)*,swa
    composition  interleave(dense*3,swa*)   3 dense layers spread evenly among windows
    ramp         ramp(swa,csa@4,hca@128)*   in depth thirds; `ramp(...)*12` has 12 layers
    explicit     swa,csa@4,csa@4,hca@128    or a list
"""

import difflib
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ablate import pattern
from ablate.errors import BadInputError
from ablate.pattern import Stretch
from components.spec import Layer

KEY = "model.compress_ratios"
SHORT = {"swa": "sliding_window"}
_LONG = {name: short for short, name in SHORT.items()}
_TOKEN = re.compile(r"(?P<name>[a-z_]\w*)(?:@(?P<ratio>\d+))?(?P<options>(?::[\w]+)*)", re.IGNORECASE)
MAX_LAYERS = 10_000

Defaults = Mapping[str, Mapping[str, Any]]
"""Attention name to the `Layer` fields its bare token stands for. A mechanism takes `@ratio`, `:k` or
`:overlap` only where `ratio`, `topk` or `overlap` is among them; a default ratio of 0 means that the token
must say it."""


def parse(
    value: Any, num_hidden_layers: int, defaults: Defaults, num_nextn_predict_layers: int = 0
) -> tuple[Layer, ...]:
    """Layers that a schedule describes.

    Args:
        value: text, or a list of texts and official integers. A list of integers may have
            `num_nextn_predict_layers` more entries, as official files do; they describe prediction layers.

    Raises:
        BadInputError: names the key, the value, and what was expected or the nearest token.
    """
    if isinstance(value, str):
        fields = _Parser(value, value, defaults).schedule(num_hidden_layers)
    elif isinstance(value, Sequence) and value:
        for item in value:
            if isinstance(item, bool) or not isinstance(item, int | str):
                raise BadInputError(f"{KEY}: {item!r} is neither a token nor an integer.")
        fields = _Parser(",".join(map(str, value)), _shown(value), defaults).schedule(num_hidden_layers)
        extra = len(fields) - num_hidden_layers
        if 0 < extra == num_nextn_predict_layers and all(isinstance(item, int) for item in value):
            if any(value[num_hidden_layers:]):
                raise BadInputError(
                    f"{KEY}={_shown(value)}: the last {extra} of {len(fields)} entries belong to prediction "
                    f"layers (model.num_nextn_predict_layers={extra}) and must be 0."
                )
            fields = fields[:num_hidden_layers]
    else:
        raise BadInputError(
            f"{KEY}={value!r} is not a schedule. Allowed: text such as swa*2,(csa@4,hca@128)*3, "
            "or a list of such tokens or of official integers."
        )
    if len(fields) != num_hidden_layers:
        raise BadInputError(
            f"{KEY}={_shown(value)} has {len(fields)} entries, expected {num_hidden_layers} "
            f"(model.num_hidden_layers={num_hidden_layers})."
        )
    return tuple(Layer(index=index, **layer) for index, layer in enumerate(fields))


def canonical(layers: Sequence[Layer], defaults: Defaults | None = None) -> str:
    """The shortest text that `parse` reads as these layers, under the same defaults.

    Without defaults, tokens spell out every option that differs from `Layer`'s own defaults.
    """
    return _shortest(tuple(token(layer, defaults) for layer in layers))


def token(layer: Layer, defaults: Defaults | None = None) -> str:
    """One layer as a schedule token."""
    given = {} if defaults is None else defaults.get(layer.attention, {})
    text = _LONG.get(layer.attention, layer.attention)
    if layer.ratio != given.get("ratio", 0):
        text += f"@{layer.ratio}"
    if layer.overlap != given.get("overlap", False):
        text += ":overlap" if layer.overlap else ":no_overlap"
    if layer.topk != given.get("topk", 0):
        text += f":k{layer.topk}"
    return text


class _Parser:
    """Recursive descent over the grammar; `whole` is the value as the user wrote it, for messages."""

    def __init__(self, text: str, whole: str, defaults: Defaults) -> None:
        self.text = "".join(text.split()).removeprefix("[").removesuffix("]")
        self.whole = whole
        self.defaults = defaults
        self.at = 0

    def schedule(self, length: int) -> list[pattern.Fields]:
        """Layers of the whole text, of which something may fill up a model of `length` layers."""
        whole = self._items(pattern.concatenate)
        if self.at < len(self.text):
            raise self._error(f"unexpected '{self.text[self.at :]}'")
        if not whole.fills:
            return whole.layers(whole.fixed)
        if whole.fixed > length:
            raise self._error(
                f"{length} layers (model.num_hidden_layers={length}) leave too few to '*' without a count; "
                f"the whole needs at least {whole.fixed}"
            )
        return whole.layers(length)

    def _items(self, join: Callable[[list[Stretch], str], Stretch]) -> Stretch:
        start, parts = self.at, [self._item()]
        while self._take(","):
            parts.append(self._item())
        filling = [part.text for part in parts if part.fills]
        if len(filling) > 1:
            raise self._error(f"'{filling[0]}' and '{filling[1]}' cannot both take what is left")
        return join(parts, self.text[start : self.at])

    def _item(self) -> Stretch:
        start = self.at
        stretched = self._take("ramp(")
        if stretched:
            unit = self._group(pattern.concatenate)
            if unit.fills:
                raise self._error(f"a ramp gives its levels their counts; '{unit.text}' has one of its own")
        elif self._take("interleave("):
            unit = self._group(pattern.interleave)
        elif self._take("("):
            unit = self._group(pattern.concatenate)
        else:
            end = re.compile(r"[,()*]|$").search(self.text, self.at)
            assert end is not None
            word = self.text[self.at : end.start()]
            self.at = end.start()
            unit = pattern.one(word, self._layer(word))
        if not self._take("*"):
            return unit
        if unit.fills:
            raise self._error(f"'{unit.text}' takes what is left and cannot be repeated")
        times = self._count(unit, stretched)
        text = self.text[start : self.at]
        if stretched:
            return pattern.ramp(unit, text, times)
        return pattern.cycle(unit, text) if times is None else pattern.repeat(unit, text, times)

    def _group(self, join: Callable[[list[Stretch], str], Stretch]) -> Stretch:
        unit = self._items(join)
        if not self._take(")"):
            raise self._error("a '(' is never closed")
        return unit

    def _count(self, unit: Stretch, stretched: bool) -> int | None:
        """The number after a `*`, or None where there is none."""
        found = re.compile(r"\d*").match(self.text, self.at)
        assert found is not None
        self.at = found.end()
        if not found.group() and self.text[self.at : self.at + 1] in ("", ",", ")"):
            return None
        least, most = (unit.fixed, MAX_LAYERS) if stretched else (1, MAX_LAYERS // unit.fixed)
        if not found.group() or not least <= int(found.group()) <= most:
            what = "layers" if stretched else "repetitions"
            raise self._error(f"'*{found.group()}' is not a count of {what} from {least} to {MAX_LAYERS}")
        return int(found.group())

    def _layer(self, word: str) -> dict[str, Any]:
        if not word:
            raise self._error("an entry is empty")
        if word.isdecimal():
            ratio = int(word)
            word = "swa" if ratio == 0 else f"csa@{ratio}" if ratio == 4 else f"hca@{ratio}"
        match = _TOKEN.fullmatch(word)
        name = match["name"].lower() if match else re.split(r"[@:]", word)[0].lower()
        attention = SHORT.get(name, name)
        if attention not in self.defaults:
            raise self._error(f"'{word}' names no attention mechanism.{self._nearest(name)}")
        if match is None:
            raise self._error(f"'{word}' is not a token such as csa@4 or csa@4:k32")
        fields = {"attention": attention, **self.defaults[attention]}
        if match["ratio"] is not None:
            if "ratio" not in fields:
                raise self._error(f"'{word}': {name} does not compress and takes no ratio. Write {name}")
            fields["ratio"] = int(match["ratio"])
        if fields.get("ratio") == 0:
            example = f"{name}@{4 if name == 'csa' else 128}"
            raise self._error(f"'{word}' needs a ratio of at least 1, such as {example}")
        for option in filter(None, match["options"].split(":")):
            fields |= self._option(word, option.lower(), fields)
        return fields

    def _option(self, word: str, option: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        known: dict[str, dict[str, Any]] = {}
        if "overlap" in fields:
            known |= {"overlap": {"overlap": True}, "no_overlap": {"overlap": False}}
        if option in known:
            return known[option]
        if "topk" in fields and re.fullmatch(r"k[1-9]\d*", option):
            return {"topk": int(option[1:])}
        allowed = [*known, *(["k32"] if "topk" in fields else [])]
        near = difflib.get_close_matches(option, allowed, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        raise self._error(f"'{word}' has no option '{option}'.{hint} Allowed: {', '.join(allowed) or 'none'}")

    def _nearest(self, name: str) -> str:
        names = sorted(_LONG.get(attention, attention) for attention in self.defaults)
        swapped = [other for other in names if sorted(other) == sorted(name)]
        near = swapped or difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        return f"{hint} Allowed: {', '.join(names)}"

    def _take(self, text: str) -> bool:
        found = self.text.startswith(text, self.at)
        self.at += len(text) if found else 0
        return found

    def _error(self, problem: str) -> BadInputError:
        return BadInputError(f"{KEY}={self.whole}: {problem}.")


def _shown(value: Any) -> str:
    """A value as the user typed it, shortened."""
    text = value if isinstance(value, str) else "[" + ",".join(map(str, value)) + "]"
    return text if len(text) <= 120 else text[:117] + "..."


@dataclass(frozen=True)
class _Text:
    """A candidate text; the best is shortest, then has fewest items, then the longest first item."""

    items: tuple[str, ...]
    covered: tuple[int, ...]

    def rank(self) -> tuple[int, int, tuple[int, ...]]:
        return len(",".join(self.items)), len(self.items), tuple(-count for count in self.covered)


@functools.lru_cache(maxsize=4096)
def _shortest(tokens: tuple[str, ...]) -> str:
    """Run-length form with nested groups, best over all ways to cut the sequence into repeated blocks."""
    best = {len(tokens): _Text((), ())}
    for start in reversed(range(len(tokens))):
        candidates = []
        for size in range(1, len(tokens) - start + 1):
            block = tokens[start : start + size]
            repeats = 1
            while tokens[start + repeats * size : start + (repeats + 1) * size] == block:
                repeats += 1
            for times in range(2 if size > 1 else 1, repeats + 1):
                text = block[0] if size == 1 else f"({_shortest(block)})"
                item = text if times == 1 else f"{text}*{times}"
                rest = best[start + times * size]
                candidates.append(_Text((item, *rest.items), (times * size, *rest.covered)))
        best[start] = min(candidates, key=_Text.rank)
    return ",".join(best[0].items)
