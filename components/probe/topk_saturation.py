"""Saturation of a top-k choice."""

from dataclasses import dataclass

import numpy as np

from components.probing import Draws, Probe, Sequences, check_counts, check_room, check_tokens
from components.registry import register
from components.spec import searchable


@register(
    "topk_saturation", source="methodology of this project: a stressor for attention that selects k entries"
)
class TopkSaturation(Probe):
    """Many values behind one mark and as many behind another; asked is which of the two a value stood behind.

    `needles` pairs with mark 2 and as many with mark 3, each with a value of its own, in random order behind 0 to
    `phases - 1` fillers (token 0). Then `asked` of all values, each behind a token 1; the answer is its mark. To
    know all values of a mark takes `needles` entries, so an attention that chooses fewer of them should begin to
    fail there. A guess is right half of the time.
    """

    vocab_size = 132

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of `probe/topk_saturation`."""

        needles: int = searchable(8, choices=(2, 4, 8, 16, 32, 64))
        """Values behind one mark: from 1 to four times the entries that attention selects."""
        asked: int = 4
        """Values that are asked for."""
        phases: int = searchable(16, choices=(1, 4, 16))
        """Places at which pairs may begin; 1 means always at the first token."""

        def __post_init__(self) -> None:
            check_counts(self, "needles", "asked", "phases")
            if self.asked > 2 * self.needles:
                raise ValueError(f"asked={self.asked} is more than twice needles={self.needles}")

    @staticmethod
    def check(config: Config, vocab_size: int, seq_len: int) -> None:
        needed = 4 * config.needles + 2 * config.asked + config.phases - 1
        check_room(
            needed, seq_len, f"needles={config.needles}, asked={config.asked} and phases={config.phases}"
        )
        check_tokens(4 + 2 * config.needles, vocab_size, f"needles={config.needles}")

    @staticmethod
    def make(config: Config, vocab_size: int, seq_len: int, draws: Draws) -> Sequences:
        pairs = 2 * config.needles
        values = 4 + draws.chosen(pairs, vocab_size - 4)
        marks = 2 + draws.chosen(pairs, pairs) % 2
        stored = draws.below(config.phases) + 2 * np.arange(pairs)
        made = Sequences.blank(np.zeros((draws.count, seq_len), dtype=np.int64))
        made.put(stored, marks)
        made.put(stored + 1, values)
        which = draws.chosen(config.asked, pairs)
        asked = np.broadcast_to(seq_len + 1 - 2 * np.arange(config.asked, 0, -1), which.shape)
        made.put(asked - 1, np.ones_like(which))
        made.put(asked, np.take_along_axis(values, which, axis=1))
        made.ask(asked, np.take_along_axis(stored, which, axis=1))
        return made
