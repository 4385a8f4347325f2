"""Block-boundary recall."""

from dataclasses import dataclass

import numpy as np

from components.probing import Draws, Probe, Sequences, check_counts, check_room, check_tokens
from components.registry import register
from components.spec import searchable


@register("block_recall", source="methodology of this project: a stressor for compressed attention")
class BlockRecall(Probe):
    """One pair at a known distance and place within its block, to be recalled at the end.

    The last token has occurred once before, `distance` tokens back or up to a block more, with the answer
    behind it. All others are random tokens, so that the answer alone does not stand out. With `offset` -1 the
    key stands at all places of a block of `block` tokens alike; from 0 to `block - 1` always at that one, where
    `block - 1` puts its value into the next block.
    """

    vocab_size = 64

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of `probe/block_recall`."""

        block: int = searchable(4, choices=(4, 16, 128))
        """Tokens of a block: the ratio of the attention under test."""
        offset: int = -1
        """Place of the key in its block; -1 means any."""
        distance: int = searchable(32, choices=(16, 32, 64, 128))
        """Least distance from the key to its second occurrence: beyond the window under test."""

        def __post_init__(self) -> None:
            check_counts(self, "block")
            if self.distance < 2:
                raise ValueError(f"distance={self.distance} must be at least 2")
            if not -1 <= self.offset < self.block:
                raise ValueError(
                    f"offset={self.offset} is no place in block={self.block}. Allowed: -1 to {self.block - 1}"
                )

    @staticmethod
    def check(config: Config, vocab_size: int, seq_len: int) -> None:
        check_room(
            config.distance + config.block,
            seq_len,
            f"distance={config.distance} and block={config.block}",
        )
        check_tokens(3, vocab_size, "a key, its value and others")

    @staticmethod
    def make(config: Config, vocab_size: int, seq_len: int, draws: Draws) -> Sequences:
        key = draws.below(vocab_size)
        others = draws.below(vocab_size - 1, seq_len)
        made = Sequences.blank(others + (others >= key))
        last = seq_len - 1
        far = last - config.distance
        offset = config.offset if config.offset >= 0 else draws.below(config.block)
        place = far - (far - offset) % config.block + np.zeros((draws.count, 1), dtype=np.int64)
        made.put(place, key)
        made.put(np.full_like(place, last), key)
        made.ask(np.full_like(place, last), place + 1)
        return made
