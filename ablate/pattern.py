"""Stretches of layers that know how many they are, or take as many as the model has left."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Fields = dict[str, Any]
"""Fields of one `Layer`."""


@dataclass(frozen=True)
class Stretch:
    """A part of a schedule.

    Attributes:
        fixed: layers that it has, or has at least if it fills.
        fills: whether it takes as many as are left.
        layers: its layers, told how many there are to be.
    """

    text: str
    fixed: int
    fills: bool
    layers: Callable[[int], list[Fields]]


def one(text: str, fields: Fields) -> Stretch:
    """A single layer."""
    return Stretch(text, 1, False, lambda _: [fields])


def repeat(unit: Stretch, text: str, times: int) -> Stretch:
    """A unit that many times."""
    return Stretch(text, unit.fixed * times, False, lambda _: unit.layers(unit.fixed) * times)


def cycle(unit: Stretch, text: str) -> Stretch:
    """A unit over and over, cut off where no layer is left."""

    def layers(count: int) -> list[Fields]:
        block = unit.layers(unit.fixed)
        return (block * -(-count // len(block)))[:count]

    return Stretch(text, 1, True, layers)


def ramp(unit: Stretch, text: str, count: int | None) -> Stretch:
    """Each layer of a unit as often as the one before it, in runs; what does not divide goes to the first ones.

    Args:
        count: layers altogether; None for as many as are left.
    """

    def layers(count: int) -> list[Fields]:
        block = unit.layers(unit.fixed)
        share, more = divmod(count, len(block))
        return [fields for i, fields in enumerate(block) for _ in range(share + (i < more))]

    return Stretch(text, count or unit.fixed, count is None, layers)


def concatenate(parts: Sequence[Stretch], text: str) -> Stretch:
    """Parts one after the other, of which at most one fills."""
    return _joined(parts, text, lambda lists: [fields for layers in lists for fields in layers])


def interleave(parts: Sequence[Stretch], text: str) -> Stretch:
    """Parts spread evenly among each other, each in its own order; at most one fills.

    Every layer comes from the part that is furthest behind its share, of equal ones from the first.
    """
    return _joined(parts, text, _spread)


def _joined(
    parts: Sequence[Stretch], text: str, join: Callable[[list[list[Fields]]], list[Fields]]
) -> Stretch:
    fixed = sum(part.fixed for part in parts)

    def layers(count: int) -> list[Fields]:
        sizes = [count - fixed + part.fixed if part.fills else part.fixed for part in parts]
        return join([part.layers(size) for part, size in zip(parts, sizes, strict=True)])

    return Stretch(text, fixed, any(part.fills for part in parts), layers)


def _spread(lists: list[list[Fields]]) -> list[Fields]:
    total = sum(map(len, lists))
    taken = [0] * len(lists)
    order: list[Fields] = []
    for place in range(1, total + 1):
        behind = [place * len(part) - total * done for part, done in zip(lists, taken, strict=True)]
        chosen = behind.index(max(behind))
        order.append(lists[chosen][taken[chosen]])
        taken[chosen] += 1
    return order
