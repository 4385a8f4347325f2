"""A passkey in a haystack."""

from dataclasses import dataclass

import numpy as np

from components.probing import Draws, Probe, Sequences, check_counts, check_room, check_tokens
from components.registry import register
from components.spec import searchable


@register("passkey", source="Mohtashami and Jaggi 2023, arXiv 2305.16300 §4.2, with generated fillers")
class Passkey(Probe):
    """A short key somewhere in a long sequence of fillers, to be said at the end.

    Token 0 announces the key, and asks for it again. Keys are from the upper half of the vocabulary, fillers from
    the lower, so that nothing else looks like a key. With `depth` -1 it stands anywhere; from 0 to 1 always at that
    share of the way.
    """

    vocab_size = 64

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of `probe/passkey`."""

        digits: int = searchable(5, choices=(1, 5, 10))
        """Tokens of the key."""
        depth: float = searchable(-1.0, choices=(0.0, 0.25, 0.5, 0.75, 1.0))
        """Where the key stands, as a share of the way to the question; -1 means anywhere."""

        def __post_init__(self) -> None:
            check_counts(self, "digits")
            if self.depth != -1 and not 0 <= self.depth <= 1:
                raise ValueError(f"depth={self.depth} must be from 0 to 1, or -1 for anywhere")

    @staticmethod
    def check(config: Config, vocab_size: int, seq_len: int) -> None:
        check_room(2 * config.digits + 1, seq_len, f"digits={config.digits} and the question")
        check_tokens(4, vocab_size, "the mark, two keys and a filler")

    @staticmethod
    def make(config: Config, vocab_size: int, seq_len: int, draws: Draws) -> Sequences:
        digits, half = config.digits, vocab_size // 2
        made = Sequences.blank(1 + draws.below(half - 1, seq_len))
        key = half + draws.below(vocab_size - half, digits)
        again = seq_len - digits
        room = again - digits - 1
        anywhere = draws.below(room + 1)
        mark = anywhere if config.depth == -1 else np.full_like(anywhere, round(config.depth * room))
        stood = mark + 1 + np.arange(digits)
        made.put(mark, np.zeros_like(mark))
        made.put(stood, key)
        made.recite(again, stood)
        return made
