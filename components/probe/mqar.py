"""Multi-query associative recall."""

from dataclasses import dataclass

import numpy as np

from components.probing import Draws, Probe, Sequences, check_counts, check_room, check_tokens
from components.registry import register
from components.spec import searchable


@register("mqar", source="Arora et al. 2023 (Zoology), arXiv 2312.04927 §4 and its released generator")
class MQAR(Probe):
    """Pairs of key and value, then every key once again, to be followed by its value.

    `k1 v1 … kK vK`, then fillers (token 0) with the keys scattered among them, every one at an even distance
    g from the first place with p(g) ∝ g^(power-1). Keys are from the lower half of the vocabulary, values from
    the upper. One dense layer cannot do it, because a value does not know the key before it.

    Difference to the source: the pairs begin after 0 to `phases - 1` fillers, since blocks of a compressor would
    otherwise always cut pairs at the same place; and which key is asked where does not depend on where it stood.
    """

    vocab_size = 64

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of `probe/mqar`."""

        pairs: int = searchable(4, choices=(4, 8, 16, 64))
        """Keys with their values."""
        power: float = searchable(0.01, choices=(0.01, 1.0))
        """Exponent of the distances: 0.01 asks most keys soon, 1 all distances alike."""
        phases: int = searchable(16, choices=(1, 4, 16))
        """Places at which pairs may begin; 1 means always at the first token."""

        def __post_init__(self) -> None:
            check_counts(self, "pairs", "phases")
            if not self.power > 0:
                raise ValueError(f"power={self.power} must be above 0")

    @staticmethod
    def check(config: Config, vocab_size: int, seq_len: int) -> None:
        needed = 4 * config.pairs + config.phases - 1
        check_room(needed, seq_len, f"pairs={config.pairs}, as many queries and phases={config.phases}")
        check_tokens(2 * config.pairs + 2, vocab_size, f"pairs={config.pairs}")

    @staticmethod
    def make(config: Config, vocab_size: int, seq_len: int, draws: Draws) -> Sequences:
        pairs, half = config.pairs, vocab_size // 2
        keys = 1 + draws.chosen(pairs, half - 1)
        values = half + draws.chosen(pairs, vocab_size - half)
        begin = draws.below(config.phases)
        made = Sequences.blank(np.zeros((draws.count, seq_len), dtype=np.int64))
        stored = begin + 2 * np.arange(pairs)
        made.put(stored, keys)
        made.put(stored + 1, values)
        gaps = np.arange((seq_len - config.phases + 1 - 2 * pairs) // 2)
        # the largest of weights plus Gumbel noise are a draw by weight without replacement
        noise = -np.log(-np.log(draws.uniform(len(gaps))))
        nearest = np.argsort(-((config.power - 1) * np.log1p(gaps) + noise), axis=1, kind="stable")
        asked = begin + 2 * pairs + 2 * nearest[:, :pairs]
        order = draws.chosen(pairs, pairs)
        made.put(asked, np.take_along_axis(keys, order, axis=1))
        made.ask(asked, np.take_along_axis(stored + 1, order, axis=1))
        return made
