"""What decoding keeps of the tokens before."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


class CannotDecodeError(ValueError):
    """A component that has no way to go on from a cache."""


@dataclass(frozen=True, slots=True)
class Cache:
    """What one component knows of the `length` tokens that it has seen. Never changed, only replaced.

    Every tensor has the batch first.

    Attributes:
        kept: what later queries read, by name; `Cost.kv_bytes` counts it and nothing else.
        pending: projections of tokens whose block is not complete, and with overlap of the block before.
            It does not grow with the sequence, no query reads it, and `Cost.kv_bytes` leaves it out.
        parts: caches of the parts that a component uses.
    """

    length: int
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    pending: Mapping[str, Tensor] = field(default_factory=dict)
    parts: Mapping[str, "Cache"] = field(default_factory=dict)

    @property
    def kv_bytes(self) -> int:
        """Bytes kept for one sequence, at two bytes per element."""
        own = sum(2 * tensor[0].numel() for tensor in self.kept.values())
        return own + sum(part.kv_bytes for part in self.parts.values())


def length(cache: Cache | None) -> int:
    """Tokens before; no cache is the beginning of a sequence."""
    return 0 if cache is None else cache.length


def part(cache: Cache | None, name: str) -> Cache | None:
    """The cache of a part."""
    return None if cache is None else cache.parts[name]


def appended(cache: Cache | None, name: str, new: Tensor) -> Tensor:
    """What is kept under `name`, and `new` after it along the sequence."""
    return new if cache is None else torch.cat((cache.kept[name], new), dim=1)
