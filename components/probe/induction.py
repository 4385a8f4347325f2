"""The induction head task."""

from dataclasses import dataclass

import numpy as np

from components.probing import Draws, Probe, Sequences, check_room, check_tokens
from components.registry import register
from components.spec import searchable


@register(
    "induction", source="Fu et al. 2022 (H3), arXiv 2212.14052 §3; Gu and Dao 2023, arXiv 2312.00752 §4.1.2"
)
class Induction(Probe):
    """Random tokens with a special one among them, whose follower is asked when it comes again at the end.

    Token 0 is the special one. It stands once among the first tokens, at least `distance` before the last.
    """

    vocab_size = 16

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of `probe/induction`."""

        distance: int = searchable(2, choices=(2, 32, 128))
        """Least distance between the two; 2 is as near as the answer between them allows."""

        def __post_init__(self) -> None:
            if self.distance < 2:
                raise ValueError(f"distance={self.distance} must be at least 2")

    @staticmethod
    def check(config: Config, vocab_size: int, seq_len: int) -> None:
        check_room(config.distance + 1, seq_len, f"distance={config.distance}")
        check_tokens(3, vocab_size, "the special token and two others")

    @staticmethod
    def make(config: Config, vocab_size: int, seq_len: int, draws: Draws) -> Sequences:
        made = Sequences.blank(1 + draws.below(vocab_size - 1, seq_len))
        place = draws.below(seq_len - config.distance)
        last = np.full_like(place, seq_len - 1)
        made.put(place, np.zeros_like(place))
        made.put(last, np.zeros_like(place))
        made.ask(last, place + 1)
        return made
