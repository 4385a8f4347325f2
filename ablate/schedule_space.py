"""The space of schedules: families of the pattern grammar, each with parameters of its own. Methodology §B1.

What is drawn is text of the grammar. Different draws may be the same layers: the model's fingerprint tells.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ablate.errors import BadInputError
from ablate.parameters import Parameter
from components import registry

KEY = "model.compress_ratios"

FAMILIES = ("constant", "alternating", "ramp", "first_k", "composition", "explicit")

PLACEMENTS = ("interleave", "front", "back")
"""Of a composition: spread evenly, or in blocks in the order of the tokens, or in the opposite order."""

MOST_WORDS = 40
"""Units of `alternating` at most; more are no help to a sampler."""

MOST_EXPLICIT = 12
"""Layers up to which every layer may be drawn by itself."""

_MOST_TOKENS = 6

Suggest = Callable[[Parameter], Any]


@dataclass(frozen=True)
class Schedules:
    """Schedules of `layers` layers out of `tokens`.

    Attributes:
        families: those to draw from, out of `FAMILIES`.
    """

    tokens: tuple[str, ...]
    families: tuple[str, ...]
    layers: int

    @classmethod
    def read(cls, spec: Mapping[str, Any], layers: int, layers_searched: bool) -> "Schedules":
        """Schedules from `{tokens: [...], families: [...]}` of a space; all families where none are named.

        Raises:
            BadInputError: names the key, the value and what is allowed.
        """
        place = f"sweep.space.{KEY}"
        for key in spec:
            if key not in ("tokens", "families"):
                raise BadInputError(f"{place}: {registry.unknown('key', str(key), ('tokens', 'families'))}")
        tokens = tuple(map(str, spec.get("tokens") or ()))
        if not 2 <= len(tokens) <= _MOST_TOKENS or len(set(tokens)) < len(tokens):
            raise BadInputError(
                f"{place}.tokens={list(tokens)} is no set of layers to choose from. Allowed: 2 to "
                f"{_MOST_TOKENS} different tokens, such as [swa, csa@4, hca@16]."
            )
        fits = [name for name in FAMILIES if name != "explicit" or layers <= MOST_EXPLICIT]
        if layers_searched:  # ranges of these depend on the number of layers, and must not move
            fits = [name for name in fits if name in ("constant", "alternating", "ramp")]
        families = tuple(spec.get("families") or fits)
        for name in families:
            if name not in FAMILIES:
                raise BadInputError(f"{place}.families: {registry.unknown('family', str(name), FAMILIES)}")
            if name not in fits:
                why = "model.num_hidden_layers is searched too" if layers_searched else f"{layers} layers"
                raise BadInputError(
                    f"{place}.families={name} is not possible with {why}. Allowed: {', '.join(fits)}."
                )
        return cls(tokens, families, layers)

    def draw(self, suggest: Suggest) -> str:
        """Text of one schedule, its family's parameters asked for one after the other."""
        family = suggest(Parameter("schedule.family", choices=self.families))
        return getattr(self, f"_{family}")(suggest)

    def _constant(self, suggest: Suggest) -> str:
        return f"{suggest(_choice('constant.token', self.tokens))}*"

    def _alternating(self, suggest: Suggest) -> str:
        return f"({suggest(_choice('alternating.unit', self.words()))})*"

    def _ramp(self, suggest: Suggest) -> str:
        most = min(3, len(self.tokens), self.layers)
        orders = [
            ",".join(order)
            for count in range(2, most + 1)
            for order in itertools.permutations(self.tokens, count)
        ]
        return f"ramp({suggest(_choice('ramp.levels', orders))})*"

    def _first_k(self, suggest: Suggest) -> str:
        first = suggest(_choice("first_k.first", self.tokens))
        k = suggest(Parameter("schedule.first_k.k", low=1, high=self.layers - 1, integer=True))
        return f"{first}*{k},{suggest(_choice('first_k.then', self.tokens))}*"

    def _composition(self, suggest: Suggest) -> str:
        """Weights rather than counts: their ranges do not depend on each other."""
        weights = [
            suggest(Parameter(f"schedule.composition.{token}", low=0, high=3, integer=True))
            for token in self.tokens
        ]
        placement = suggest(_choice("composition.placement", PLACEMENTS))
        counts = _apportioned(weights, self.layers)
        parts = [f"{token}*{count}" for token, count in zip(self.tokens, counts, strict=True) if count]
        if placement == "interleave":
            return f"interleave({','.join(parts)})"
        return ",".join(parts if placement == "front" else reversed(parts))

    def _explicit(self, suggest: Suggest) -> str:
        return ",".join(suggest(_choice(f"explicit.layer_{i}", self.tokens)) for i in range(self.layers))

    def words(self) -> list[str]:
        """Units of two or three layers that are no repetition of a shorter one; rotations are different units.

        Those of three are left out where there would be too many.
        """
        pairs = [list(word) for word in itertools.permutations(self.tokens, 2)]
        triples = [list(word) for word in itertools.product(self.tokens, repeat=3) if len(set(word)) > 1]
        found = pairs + (triples if len(pairs) + len(triples) <= MOST_WORDS else [])
        return [",".join(word) for word in found]


def _choice(name: str, choices: Sequence[str]) -> Parameter:
    return Parameter(f"schedule.{name}", choices=tuple(choices))


def _apportioned(weights: Sequence[int], total: int) -> list[int]:
    """Whole shares of `total` by the largest remainders; equal weights where all are zero."""
    weights = list(weights) if any(weights) else [1] * len(weights)
    counts = [total * weight // sum(weights) for weight in weights]
    rests = [total * weight % sum(weights) for weight in weights]
    for i in sorted(range(len(weights)), key=lambda i: -rests[i])[: total - sum(counts)]:
        counts[i] += 1
    return counts
