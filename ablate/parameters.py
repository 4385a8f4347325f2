"""One searched value: what a sampler is told about it, and all its values where they can be counted."""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar


@dataclass(frozen=True)
class Parameter:
    """A categorical choice, or a range of numbers with both ends in it.

    Attributes:
        name: unique in the space; parts before dots name the branch that it belongs to.
        choices: scalars, for a categorical parameter; empty for a range.
    """

    name: str
    choices: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False

    @property
    def countable(self) -> bool:
        """Whether it has finitely many values."""
        return bool(self.choices) or self.integer

    def values(self) -> tuple[Any, ...]:
        """All values of a countable parameter."""
        return self.choices or tuple(range(int(self.low), int(self.high) + 1))

    def ends(self) -> tuple[Any, ...]:
        """Values whose validity stands for all: every choice, or the ends of the range."""
        if self.choices:
            return self.choices
        return (int(self.low), int(self.high)) if self.integer else (self.low, self.high)

    def random(self, rng: random.Random) -> Any:
        """A value drawn uniformly, in its logarithm where the range has one."""
        if self.choices:
            return rng.choice(self.choices)
        pad = 0.5 if self.integer else 0.0  # so that the ends are as likely as the others
        low, high = self.low - pad, self.high + pad
        drawn = math.exp(rng.uniform(math.log(low), math.log(high))) if self.log else rng.uniform(low, high)
        return int(min(self.high, max(self.low, round(drawn)))) if self.integer else drawn


T = TypeVar("T")


def every(draw: Callable[[Callable[[Parameter], Any]], T]) -> Iterator[T]:
    """What `draw` makes of every combination of values that it can be told, each once.

    Args:
        draw: asks for one parameter after the other; which ones may depend on the values it is told.
    """
    path: list[list[int]] = []  # index and number of values, by depth
    while True:
        depth = 0

        def suggest(parameter: Parameter) -> Any:
            nonlocal depth
            values = parameter.values()
            if depth == len(path):
                path.append([0, len(values)])
            depth += 1
            return values[path[depth - 1][0]]

        yield draw(suggest)
        while path and path[-1][0] + 1 == path[-1][1]:
            path.pop()
        if not path:
            return
        path[-1][0] += 1
