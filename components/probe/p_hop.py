"""Induction in several hops."""

from dataclasses import dataclass

import numpy as np

from components.probing import Draws, Probe, Sequences, check_counts, check_room, check_tokens
from components.registry import register
from components.spec import LEFT_OUT, searchable


@register("p_hop", source="Sanford et al. 2024, arXiv 2402.09268 §4")
class PHop(Probe):
    """From a token to what followed its last occurrence, and so on, `hops` times.

    `find(i)` is the place behind the last earlier occurrence of token i, and the answer at i the token at
    `find(find(… i))`. Every place is asked whose hops all find something. Depth should help: log2(hops) + 2 layers
    of full attention can do it.
    """

    vocab_size = 4

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of `probe/p_hop`."""

        hops: int = searchable(2, choices=(1, 2, 3, 4, 5, 6))
        """How often the token that is found is looked for again."""

        def __post_init__(self) -> None:
            check_counts(self, "hops")

    @staticmethod
    def check(config: Config, vocab_size: int, seq_len: int) -> None:
        check_tokens(2, vocab_size, "tokens that differ")
        check_room(8 * vocab_size * config.hops, seq_len, f"hops={config.hops} among {vocab_size} tokens")

    @staticmethod
    def make(config: Config, vocab_size: int, seq_len: int, draws: Draws) -> Sequences:
        made = Sequences.blank(draws.below(vocab_size, seq_len))
        rows = np.arange(draws.count)
        found = np.full((draws.count, seq_len + 1), -1)  # at place -1, the last column, nothing is found
        behind = np.full((draws.count, vocab_size), -1)
        for place in range(seq_len):
            tokens = made.inputs[:, place]
            found[:, place] = behind[rows, tokens]
            behind[rows, tokens] = place + 1
        at = np.broadcast_to(np.arange(seq_len), made.inputs.shape)
        for _ in range(config.hops):
            at = np.take_along_axis(found, at, axis=1)
        answers = np.take_along_axis(made.inputs, at, axis=1)
        made.labels[:] = np.where(at < 0, LEFT_OUT, answers)
        return made
