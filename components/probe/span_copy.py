"""Verbatim span copy."""

from dataclasses import dataclass

import numpy as np

from components.probing import Draws, Probe, Sequences, check_counts, check_room, check_tokens
from components.registry import register
from components.spec import searchable


@register("span_copy", source="methodology of this project: a stressor for compressed attention")
class SpanCopy(Probe):
    """A marked span, and far behind it the mark again: the same tokens in the same order.

    Token 0 is the mark. The span of `span` tokens begins right behind the first one, at any place that leaves
    `distance` between the two marks, and is what the model has to say at the end, told each token after it was
    asked. Tokens elsewhere are random.
    """

    vocab_size = 64

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of `probe/span_copy`."""

        span: int = searchable(8, choices=(1, 2, 4, 8, 16, 32))
        """Tokens to be copied."""
        distance: int = searchable(32, choices=(16, 32, 64, 128))
        """Least distance between the marks: beyond the window under test."""

        def __post_init__(self) -> None:
            check_counts(self, "span")
            if self.distance <= self.span:
                raise ValueError(f"distance={self.distance} must be above span={self.span}")

    @staticmethod
    def check(config: Config, vocab_size: int, seq_len: int) -> None:
        needed = config.distance + config.span
        check_room(needed, seq_len, f"distance={config.distance} and span={config.span}")
        check_tokens(3, vocab_size, "the mark and two others")

    @staticmethod
    def make(config: Config, vocab_size: int, seq_len: int, draws: Draws) -> Sequences:
        made = Sequences.blank(1 + draws.below(vocab_size - 1, seq_len))
        again = seq_len - config.span
        mark = draws.below(again - config.distance + 1)
        stood = mark + 1 + np.arange(config.span)
        made.put(mark, np.zeros_like(mark))
        made.recite(again, stood)
        return made
