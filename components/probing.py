"""The contract of capability probes: tasks whose sequences are made, so that what is asked has one right answer.

A probe is a pure function from random numbers to sequences. It draws them from `Draws`, which are a function of seed
and index alone, so that any batch of any stream can be made anywhere, in any order.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int, UInt64

from components.slots import Registered
from components.spec import LEFT_OUT


@dataclass(frozen=True, slots=True)
class Sequences:
    """What a model is shown, and what it should say.

    Attributes:
        inputs: token ids.
        labels: at every position that is asked the token that follows; elsewhere `LEFT_OUT`.
        distances: how many tokens back the answer stands there; 0 where none is asked that stands anywhere.
    """

    inputs: Int[np.ndarray, "n s"]
    labels: Int[np.ndarray, "n s"]
    distances: Int[np.ndarray, "n s"]

    @classmethod
    def blank(cls, inputs: Int[np.ndarray, "n s"]) -> "Sequences":
        """Sequences of which nothing is asked yet."""
        return cls(inputs, np.full_like(inputs, LEFT_OUT), np.zeros_like(inputs))

    def put(self, places: Int[np.ndarray, "n k"], tokens: Int[np.ndarray, "n k"]) -> None:
        """Write `tokens` at `places`."""
        np.put_along_axis(self.inputs, places, tokens, axis=1)

    def ask(self, places: Int[np.ndarray, "n k"], stood: Int[np.ndarray, "n k"]) -> None:
        """Ask at `places` for the tokens that have `stood` at those before."""
        np.put_along_axis(self.labels, places, np.take_along_axis(self.inputs, stood, axis=1), axis=1)
        np.put_along_axis(self.distances, places, places - stood, axis=1)

    def recite(self, begin: int, stood: Int[np.ndarray, "n k"]) -> None:
        """From place `begin` on ask for what has `stood`, in order: token 0 asks first, then every answer the next."""
        asked = np.broadcast_to(begin + np.arange(stood.shape[1]), stood.shape)
        tokens = np.take_along_axis(self.inputs, stood, axis=1)
        self.put(asked, np.concatenate([np.zeros_like(tokens[:, :1]), tokens[:, :-1]], axis=1))
        self.ask(asked, stood)


class Draws:
    """Random numbers for sequences `first` to `first + count` of the stream of `seed`.

    What is asked for first, second, … comes from random streams of their own, each addressed by the index of the
    sequence. They are raw Philox words, because NumPy keeps these the same from version to version.
    """

    def __init__(self, seed: int, first: int, count: int) -> None:
        self.seed, self.first, self.count = seed, first, count
        self._asked = 0

    def _words(self, size: int) -> UInt64[np.ndarray, "n k"]:
        blocks = -(-size // 4)  # Philox makes four words at a time
        key = np.array([self.seed, self._asked], dtype=np.uint64)
        self._asked += 1
        source = np.random.Philox(key=key, counter=self.first * blocks)
        return source.random_raw(self.count * blocks * 4).reshape(self.count, -1)[:, :size]

    def below(self, bound: int, size: int = 1) -> Int[np.ndarray, "n k"]:
        """Integers from 0 to `bound - 1`, independent of each other."""
        return (self._words(size) % np.uint64(bound)).astype(np.int64)

    def uniform(self, size: int) -> Float[np.ndarray, "n k"]:
        """Numbers between 0 and 1, neither included."""
        return ((self._words(size) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53

    def chosen(self, size: int, among: int) -> Int[np.ndarray, "n k"]:
        """`size` different integers below `among`, in random order."""
        return np.argsort(self._words(among), axis=1, kind="stable")[:, :size]


class Probe(Registered):
    """A task for a language model, chosen as `data=probe/NAME`; its difficulty is its options'.

    Fields of `Config` have the ranges of difficulty that are worth a grid.
    """

    slot = "probe"
    vocab_size: ClassVar[int]
    """`data.vocab_size` where nothing else is asked for."""

    @staticmethod
    @abstractmethod
    def check(config: Any, vocab_size: int, seq_len: int) -> None:
        """Raise `ValueError` (key, value, what is allowed) where the task does not fit."""

    @staticmethod
    @abstractmethod
    def make(config: Any, vocab_size: int, seq_len: int, draws: Draws) -> Sequences:
        """The sequences that `draws` are for, ids below `vocab_size`; each asks something."""


def check_room(needed: int, seq_len: int, why: str) -> None:
    """Raise `ValueError` where sequences are too short for what has to be in them."""
    if seq_len < needed:
        raise ValueError(f"trainer.seq_len={seq_len} has no room for {why}. Allowed: at least {needed}")


def check_tokens(needed: int, vocab_size: int, why: str) -> None:
    """Raise `ValueError` where there are too few tokens."""
    if vocab_size < needed:
        raise ValueError(f"data.vocab_size={vocab_size} is too small for {why}. Allowed: at least {needed}")


def check_counts(config: Any, *names: str) -> None:
    """Raise `ValueError` where one of these options is below 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"{name}={getattr(config, name)} must be at least 1")
