"""Softmax attention over explicit scores, and the joint attention of DeepSeek-V4 in blocks of queries."""

import functools
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from components import native
from components.native import attention as fused
from components.native import indexer as indexing
from components.precision import at_least_float32
from components.slots import ScoreBias


def attend(
    queries: Float[Tensor, "n q h c"],
    keys: Float[Tensor, "n k c"],
    values: Float[Tensor, "n k c"],
    seen: Bool[Tensor, "#n q k"],
    sink: Float[Tensor, "#n h"] | None,
    bias: Float[Tensor, "#n q h k"] | None = None,
) -> Float[Tensor, "n q h c"]:
    """`softmax([q k^T / sqrt(c), sink]) v` with the sink's share dropped; all heads share keys and values.

    Args:
        seen: which keys each query may attend to; at least one.
        sink: a logit per head that takes part in the softmax and carries no value.
        bias: added to scores after their scaling.
    """
    if bias is None and native.takes(queries, keys, values):
        return fused.attend(queries, keys, None if values is keys else values, seen, sink)
    weights = joint_softmax(queries, keys, seen, sink, bias).to(values.dtype)
    return (weights.flatten(1, 2) @ values).view(*queries.shape[:3], -1)


def joint_softmax(
    queries: Float[Tensor, "n q h c"],
    keys: Float[Tensor, "n k c"],
    seen: Bool[Tensor, "#n q k"],
    sink: Float[Tensor, "#n h"] | None,
    bias: Float[Tensor, "#n q h k"] | None = None,
) -> Float[Tensor, "n q h k"]:
    """The weights of `attend`, in at least 32 bits; with a sink they sum to less than one."""
    count, length, heads, width = queries.shape
    rows = (queries * width**-0.5).reshape(count, length * heads, width)
    if native.takes(rows):
        scores = rows @ keys.transpose(1, 2)
        if bias is not None:
            scores += bias.flatten(1, 2)
        return fused.masked_softmax(scores, seen, sink, heads).view(count, length, heads, -1)
    hidden = torch.zeros(seen.shape, dtype=rows.dtype, device=rows.device).masked_fill_(~seen, -torch.inf)
    logits = at_least_float32(
        (rows @ keys.transpose(1, 2)).view(count, length, heads, -1).add_(hidden.unsqueeze(2))
    )
    if bias is not None:
        logits = logits + bias
    if sink is not None:
        column = sink.to(logits.dtype)[:, None, :, None].expand(count, length, -1, -1)
        logits = torch.cat((logits, column), dim=-1)
    return logits.softmax(dim=-1)[..., : keys.shape[1]]


SHORTEST = 16
"""Queries per block below which more, smaller products take longer than the pairs that they save."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """How queries of a sequence are grouped so that a block reads only the keys that its windows reach.

    Attributes:
        count: number of blocks.
        size: queries per block; the last block may run past the end of the sequence.
        back: earlier blocks whose keys a block reads beside its own.
    """

    count: int
    size: int
    back: int

    @property
    def keys(self) -> int:
        """Keys that one block reads."""
        return (self.back + 1) * self.size

    @property
    def pairs(self) -> int:
        """Query-key pairs computed in one sequence, hidden ones included."""
        return self.count * self.size * self.keys

    @classmethod
    def whole(cls, seq_len: int) -> "Blocks":
        """One block: every query against every key."""
        return cls(1, seq_len, 0)

    @classmethod
    def best(cls, seq_len: int, window: int) -> "Blocks":
        """The fewest pairs among one block and blocks as long as the window or half of it."""
        sizes = (max(window, SHORTEST), max(-(-window // 2), SHORTEST))
        banded = (cls(-(-seq_len // size), size, -(-window // size)) for size in sizes)
        return min(cls.whole(seq_len), *banded, key=lambda blocks: blocks.pairs)


def joint_attention(
    queries: Float[Tensor, "b s h c"],
    kv: Float[Tensor, "b s c"],
    window: int,
    sink: Float[Tensor, "h"] | None,
    entries: Float[Tensor, "b t c"] | None = None,
    seen: Bool[Tensor, "#b s t"] | None = None,
    blocks: Blocks | None = None,
    bias: ScoreBias | None = None,
    ratio: int = 0,
) -> Float[Tensor, "b s h c"]:
    """One softmax over a sliding window of `kv` and the compressed `entries` together; keys are the values.

    Args:
        window: tokens that a query sees, itself included.
        seen: which entries each query may attend to.
        blocks: how to group queries; every grouping gives the same result.
        bias: what to add to scores.
        ratio: tokens per entry, which for `bias` stands at its first token.
    """
    batch, length, heads, width = queries.shape
    blocks = blocks or Blocks.best(length, window)
    if bias is None and native.takes(queries, kv):
        return _joint_attention(queries, kv, window, sink, entries, seen, blocks)
    rows, keys, mask = _grouped(queries, kv, window, entries, seen, blocks)
    added = _added(bias, blocks, batch, keys, ratio)
    out = attend(rows, keys, keys, mask, None if sink is None else sink.unsqueeze(0), added)
    return out.view(batch, -1, heads, width)[:, :length]


def _joint_attention(
    queries: Float[Tensor, "b s h c"],
    kv: Float[Tensor, "b s c"],
    window: int,
    sink: Float[Tensor, "h"] | None,
    entries: Float[Tensor, "b t c"] | None,
    seen: Bool[Tensor, "#b s t"] | None,
    blocks: Blocks,
) -> Float[Tensor, "b s h c"]:
    """The same by the fused kernels."""
    batch, length, heads, width = queries.shape
    rows, keys, mask = _blocked(queries, kv, window, entries, seen, blocks)
    out = fused.attend(rows, keys, None, mask, None if sink is None else sink.unsqueeze(0))
    return out.view(batch, -1, heads, width)[:, :length]


def _blocked(
    queries: Float[Tensor, "b s h c"],
    kv: Float[Tensor, "b s c"],
    window: int,
    entries: Float[Tensor, "b t c"] | None,
    seen: Bool[Tensor, "#b s t"] | None,
    blocks: Blocks,
) -> tuple[Float[Tensor, "n q h c"], Float[Tensor, "n k c"], Bool[Tensor, "m q k"]]:
    """`_grouped` by the fused kernels, where sequences that see the same share their masks."""
    batch, length, heads, width = queries.shape
    shape = (blocks.count, blocks.size, blocks.back)
    extra = blocks.count * blocks.size - length
    rows = F.pad(queries, (0, 0, 0, 0, 0, extra)) if extra else queries
    if entries is None or seen is None or not entries.shape[1]:
        entries = seen = None
    keys = fused.block_keys(kv, entries, shape)
    mask = fused.block_mask(length, shape, window, seen)
    return rows.reshape(batch * blocks.count, blocks.size, heads, width), keys, mask


@torch.no_grad()
def entry_mass(
    queries: Float[Tensor, "b s h c"],
    kv: Float[Tensor, "b s c"],
    window: int,
    sink: Float[Tensor, "h"] | None,
    entries: Float[Tensor, "b t c"],
    seen: Bool[Tensor, "#b s t"],
    bias: ScoreBias | None = None,
    ratio: int = 0,
) -> Float[Tensor, "b s t"]:
    """What each entry gets of the softmax of `joint_attention`, summed over heads; carries no gradient."""
    batch, length = queries.shape[:2]
    blocks = Blocks.best(length, window)
    if bias is None and native.takes(queries, kv):
        mass = _entry_mass(queries, kv, window, sink, entries, seen, blocks)
        return mass.view(batch, -1, entries.shape[1])[:, :length]
    weights = _weights(queries, kv, window, sink, entries, seen, blocks, bias, ratio)
    return weights[..., blocks.keys :].sum(2).view(batch, -1, entries.shape[1])[:, :length]


@torch.no_grad()
def branch_mass(
    queries: Float[Tensor, "b s h c"],
    kv: Float[Tensor, "b s c"],
    window: int,
    sink: Float[Tensor, "h"] | None,
    entries: Float[Tensor, "b t c"] | None = None,
    seen: Bool[Tensor, "#b s t"] | None = None,
    bias: ScoreBias | None = None,
    ratio: int = 0,
) -> Float[Tensor, "b s branch"]:
    """Shares of window, entries and sink in the softmax of `joint_attention`, mean over heads; they sum to 1.

    One sequence at a time, because all weights are needed at once.
    """
    length = queries.shape[1]
    blocks = Blocks.best(length, window)
    found = []
    for i in range(len(queries)):
        own = slice(i, i + 1)
        mine = None if entries is None else entries[own]
        mask = seen if seen is None or len(seen) == 1 else seen[own]
        weights = _weights(queries[own], kv[own], window, sink, mine, mask, blocks, bias, ratio).mean(2)
        within, beyond = weights[..., : blocks.keys].sum(-1), weights[..., blocks.keys :].sum(-1)
        found.append(torch.stack((within, beyond, 1 - within - beyond), dim=-1).flatten(0, 1)[:length])
    return torch.stack(found)


def _weights(
    queries: Float[Tensor, "b s h c"],
    kv: Float[Tensor, "b s c"],
    window: int,
    sink: Float[Tensor, "h"] | None,
    entries: Float[Tensor, "b t c"] | None,
    seen: Bool[Tensor, "#b s t"] | None,
    blocks: Blocks,
    bias: ScoreBias | None,
    ratio: int,
) -> Float[Tensor, "n q h k"]:
    """The softmax of `joint_attention` itself, by blocks of queries; its keys are the window's, then the entries."""
    rows, keys, mask = _grouped(queries, kv, window, entries, seen, blocks)
    added = _added(bias, blocks, len(queries), keys, ratio)
    return joint_softmax(rows, keys, mask, None if sink is None else sink.unsqueeze(0), added)


def _entry_mass(
    queries: Float[Tensor, "b s h c"],
    kv: Float[Tensor, "b s c"],
    window: int,
    sink: Float[Tensor, "h"] | None,
    entries: Float[Tensor, "b t c"],
    seen: Bool[Tensor, "#b s t"],
    blocks: Blocks,
) -> Float[Tensor, "n q t"]:
    """The same by the fused kernels, in blocks."""
    heads, width = queries.shape[2:]
    rows, keys, mask = _blocked(queries, kv, window, entries, seen, blocks)
    scores = torch.bmm(rows.flatten(1, 2), keys.transpose(1, 2))
    sinks = None if sink is None else sink.unsqueeze(0)
    return indexing.entry_mass(scores, mask, sinks, heads, width**-0.5, blocks.keys)


def _grouped(
    queries: Float[Tensor, "b s h c"],
    kv: Float[Tensor, "b s c"],
    window: int,
    entries: Float[Tensor, "b t c"] | None,
    seen: Bool[Tensor, "#b s t"] | None,
    blocks: Blocks,
) -> tuple[Float[Tensor, "n q h c"], Float[Tensor, "n k c"], Bool[Tensor, "n q k"]]:
    """Blocks of queries, the keys that each reads (tokens, then entries), and which of them a query sees."""
    extra = blocks.count * blocks.size - queries.shape[1]

    def grouped(x: Tensor, fill: float = 0.0) -> Tensor:
        """[b, s, ...] to [b, n, q, ...], the last block filled up."""
        if extra:
            x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, extra), value=fill)
        return x.unflatten(1, (blocks.count, blocks.size))

    own = F.pad(grouped(kv), (0, 0, 0, 0, blocks.back, 0))
    keys = [own[:, i : i + blocks.count] for i in range(blocks.back + 1)]
    masks = [in_window(blocks, window, kv.device).unsqueeze(0)]
    if entries is not None and seen is not None and entries.shape[1]:
        keys.append(entries.unsqueeze(1).expand(-1, blocks.count, -1, -1))
        masks = [masks[0].expand(seen.shape[0], -1, -1, -1), grouped(seen)]
    mask = torch.cat(masks, dim=-1).expand(len(queries), -1, -1, -1)
    return grouped(queries).flatten(0, 1), torch.cat(keys, dim=2).flatten(0, 1), mask.flatten(0, 1)


def _places(
    blocks: Blocks, device: torch.device
) -> tuple[Int[Tensor, "n size one"], Int[Tensor, "n one keys"]]:
    """Positions of the queries of each block and of the tokens that it reads; negative before the first."""
    size = blocks.size
    starts = torch.arange(blocks.count, device=device).view(-1, 1, 1) * size
    query = starts + torch.arange(size, device=device).view(1, -1, 1)
    key = starts - blocks.back * size + torch.arange(blocks.keys, device=device).view(1, 1, -1)
    return query, key


def _added(
    bias: ScoreBias | None, blocks: Blocks, batch: int, keys: Float[Tensor, "n k c"], ratio: int
) -> Float[Tensor, "n q h k"] | None:
    """What `bias` adds to scores of `keys`: the tokens that blocks read, then entries."""
    if bias is None:
        return None
    query, key = _places(blocks, keys.device)
    entry = torch.arange(keys.shape[1] - blocks.keys, device=keys.device) * ratio
    behind = query - torch.cat((key, entry.expand(blocks.count, 1, -1)), dim=-1)
    return bias(behind, at_least_float32(keys).dtype).repeat(batch, 1, 1, 1)


@functools.lru_cache(maxsize=64)
def in_window(blocks: Blocks, window: int, device: torch.device) -> Bool[Tensor, "n q k"]:
    """Which of the keys that a block reads are in each query's window. Remembered; not to be written to."""
    query, key = _places(blocks, device)
    return (key >= 0) & (key <= query) & (key > query - window)
