"""State tracking."""

import functools
import itertools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from components.probing import Draws, Probe, Sequences, check_tokens
from components.registry import register
from components.spec import searchable

GROUPS = ("parity", "affine5", "a5", "s5")


@register("state_tracking", source="Liu et al. 2022, arXiv 2210.10749; Merrill et al. 2024, arXiv 2404.08819")
class StateTracking(Probe):
    """The word problem of a group: after every token, the product of all up to it.

    Tokens are the group's elements. `parity` has two; `affine5` the 20 maps `x -> a x + b mod 5`; `a5` and `s5` are
    the 60 even and all 120 permutations of five things. The first two are solvable, the others are not, and no
    attention of constant depth should then reach far: one that does better than others points to a fault.
    """

    vocab_size = 2

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of `probe/state_tracking`."""

        group: str = searchable("parity", choices=GROUPS)
        """Whose elements are multiplied."""

        def __post_init__(self) -> None:
            if self.group not in GROUPS:
                raise ValueError(f"group={self.group} is not known. Allowed: {', '.join(GROUPS)}")

    @staticmethod
    def check(config: Config, vocab_size: int, seq_len: int) -> None:
        check_tokens(len(products(config.group)), vocab_size, f"group={config.group}")

    @staticmethod
    def make(config: Config, vocab_size: int, seq_len: int, draws: Draws) -> Sequences:
        table = products(config.group)
        made = Sequences.blank(draws.below(len(table), seq_len))
        state = made.inputs[:, 0]
        made.labels[:, 0] = state
        for place in range(1, seq_len):
            state = table[made.inputs[:, place], state]
            made.labels[:, place] = state
        return made


def elements(group: str) -> list[tuple[int, ...]]:
    """The group as permutations of points; element i is token i."""
    if group == "parity":
        return [(0, 1), (1, 0)]
    if group == "affine5":
        return [tuple((a * x + b) % 5 for x in range(5)) for a in range(1, 5) for b in range(5)]
    return [p for p in itertools.permutations(range(5)) if group == "s5" or _even(p)]


@functools.cache
def products(group: str) -> Int[np.ndarray, "g g"]:
    """Entry (a, b) is the element that applies b first, then a."""
    members = elements(group)
    number = {member: i for i, member in enumerate(members)}
    return np.array([[number[tuple(a[x] for x in b)] for b in members] for a in members])


def _even(permutation: tuple[int, ...]) -> bool:
    return sum(a > b for a, b in itertools.combinations(permutation, 2)) % 2 == 0
