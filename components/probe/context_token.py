"""Tokens whose meaning depends on their context."""

from dataclasses import dataclass

import numpy as np

from components.probing import Draws, Probe, Sequences, check_counts, check_room, check_tokens
from components.registry import register
from components.spec import searchable

_DEFINITION = 2**64 - 2
"""Seed of what tokens mean, which is the same for all sequences."""


@register("context_token", source="methodology of this project: a stressor for hash routing")
class ContextToken(Probe):
    """The first token is a mode; then every token x asks for π_mode(x), a permutation that is the mode's own.

    The first `modes` tokens are the modes, all others are permuted. Permutations are the same in all sequences and
    have to be learned by heart. A router that goes by the token alone gives one expert all meanings of it, so
    the gap to a learned one should grow with the number of modes; with one mode hashing should do as well.
    """

    vocab_size = 64

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of `probe/context_token`."""

        modes: int = searchable(2, choices=(1, 2, 4, 8))
        """Meanings of every token."""

        def __post_init__(self) -> None:
            check_counts(self, "modes")

    @staticmethod
    def check(config: Config, vocab_size: int, seq_len: int) -> None:
        check_room(2, seq_len, "a mode and a token")
        check_tokens(config.modes + 2, vocab_size, f"modes={config.modes} and two others")

    @staticmethod
    def make(config: Config, vocab_size: int, seq_len: int, draws: Draws) -> Sequences:
        words = vocab_size - config.modes
        meanings = Draws(_DEFINITION, 0, config.modes).chosen(words, words)
        modes, tokens = draws.below(config.modes), draws.below(words, seq_len - 1)
        made = Sequences.blank(np.concatenate([modes, config.modes + tokens], axis=1))
        made.labels[:, 1:] = config.modes + meanings[modes, tokens]
        return made
