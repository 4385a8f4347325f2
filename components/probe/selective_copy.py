"""Selective copying."""

from dataclasses import dataclass

import numpy as np

from components.probing import Draws, Probe, Sequences, check_counts, check_room, check_tokens
from components.registry import register
from components.spec import searchable


@register(
    "selective_copy",
    source="Poli et al. 2024 (MAD), arXiv 2403.17844 §3.1; Gu and Dao 2023, arXiv 2312.00752",
)
class SelectiveCopy(Probe):
    """A few tokens among blanks, then the same tokens in order, without the blanks.

    Token 0 is the blank, token 1 says to begin. From there on only blanks are shown, so that the model has to
    keep count itself.

    Difference to the source: places of tokens are drawn from the sequence's own random numbers, and reach up to
    the last one before the copy.
    """

    vocab_size = 16

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of `probe/selective_copy`."""

        tokens: int = searchable(16, choices=(4, 16, 32, 96))
        """Tokens to be copied."""

        def __post_init__(self) -> None:
            check_counts(self, "tokens")

    @staticmethod
    def check(config: Config, vocab_size: int, seq_len: int) -> None:
        check_room(2 * config.tokens, seq_len, f"tokens={config.tokens} and their copy")
        check_tokens(4, vocab_size, "blank, mark and two others")

    @staticmethod
    def make(config: Config, vocab_size: int, seq_len: int, draws: Draws) -> Sequences:
        begin = seq_len - config.tokens
        tokens = 2 + draws.below(vocab_size - 2, config.tokens)
        made = Sequences.blank(np.zeros((draws.count, seq_len), dtype=np.int64))
        stood = np.sort(draws.chosen(config.tokens, begin), axis=1)
        made.put(stood, tokens)
        made.put(np.full((draws.count, 1), begin), np.ones((draws.count, 1), dtype=np.int64))
        made.ask(np.broadcast_to(begin + np.arange(config.tokens), tokens.shape), stood)
        return made
