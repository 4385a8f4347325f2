"""Attention with the fused kernels between its matrix products; autograd around `attention.c`."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from components.native import kernels, pointer

Shape = tuple[int, int, int]
"""Blocks of queries: their number, size, and how many earlier ones each reads too."""


class _MaskedSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, seen: Tensor, sink: Tensor | None, heads: int) -> Tensor:
        share = _softmax(scores, seen, sink, heads, 1.0)
        ctx.heads, ctx.sinks = heads, None if sink is None else len(sink)
        ctx.mark_dirty(scores)
        ctx.save_for_backward(scores, share)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        weights, share = ctx.saved_tensors
        d_scores = grads[0].clone(memory_format=torch.contiguous_format)
        return d_scores, None, _softmax_gradient(d_scores, weights, share, ctx.sinks, ctx.heads, 1.0), None


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, values: Tensor | None, seen: Tensor, sink: Tensor | None
    ) -> Tensor:
        count, length, heads, width = queries.shape
        rows = queries.reshape(count, length * heads, width)
        weights = torch.bmm(rows, keys.transpose(1, 2))
        share = _softmax(weights, seen, sink, heads, width**-0.5)
        ctx.heads, ctx.sinks = heads, None if sink is None else len(sink)
        ctx.save_for_backward(rows, keys, values, weights, share)
        return torch.bmm(weights, keys if values is None else values).view(count, length, heads, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        rows, keys, values, weights, share = ctx.saved_tensors
        count, _, width = rows.shape
        d_out = grads[0].reshape(count, rows.shape[1], -1)
        d_scores = torch.bmm(d_out, (keys if values is None else values).transpose(1, 2))
        d_sink = _softmax_gradient(d_scores, weights, share, ctx.sinks, ctx.heads, width**-0.5)
        d_keys, d_values = torch.bmm(d_scores.transpose(1, 2), rows), None
        if values is None:
            d_keys.baddbmm_(weights.transpose(1, 2), d_out)
        else:
            d_values = torch.bmm(weights.transpose(1, 2), d_out)
        return torch.bmm(d_scores, keys).view(count, -1, ctx.heads, width), d_keys, d_values, None, d_sink


class _BlockKeys(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kv: Tensor, entries: Tensor | None, blocks: Shape) -> Tensor:
        kv, entries = kv.contiguous(), None if entries is None else entries.contiguous()
        batch, length, width = kv.shape
        count, size, back = blocks
        more = 0 if entries is None else entries.shape[1]
        keys = kv.new_empty(batch * count, (back + 1) * size + more, width)
        kernels().block_keys_forward(batch, length, *blocks, more, width, *map(pointer, (kv, entries, keys)))
        ctx.shape, ctx.more, ctx.blocks = kv.shape, more, blocks
        return keys

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        batch, length, width = ctx.shape
        d_keys = grads[0].contiguous()
        d_kv = d_keys.new_zeros(ctx.shape)
        d_entries = d_keys.new_zeros(batch, ctx.more, width) if ctx.more else None
        kernels().block_keys_backward(
            batch, length, *ctx.blocks, ctx.more, width, *map(pointer, (d_keys, d_kv, d_entries))
        )
        return d_kv, d_entries, None


def masked_softmax(
    scores: Float[Tensor, "g qh k"],
    seen: Bool[Tensor, "#g q k"],
    sink: Float[Tensor, "#g h"] | None,
    heads: int,
) -> Float[Tensor, "g qh k"]:
    """Softmax over the keys that are seen and the sink, without the sink's share; overwrites `scores`."""
    apply: Callable[..., Tensor] = _MaskedSoftmax.apply
    return apply(scores, seen, sink, heads)


def attend(
    queries: Float[Tensor, "n q h c"],
    keys: Float[Tensor, "n k c"],
    values: Float[Tensor, "n k e"] | None,
    seen: Bool[Tensor, "m q k"],
    sink: Float[Tensor, "#n h"] | None,
) -> Float[Tensor, "n q h e"]:
    """As `components.attention.core.attend`; without `values` keys are the values.

    Args:
        seen: masks of m groups, which the n groups take in turn.
    """
    apply: Callable[..., Tensor] = _Attend.apply
    return apply(queries, keys, values, seen, sink)


def block_keys(
    kv: Float[Tensor, "b s c"], entries: Float[Tensor, "b t c"] | None, blocks: Shape
) -> Float[Tensor, "n k c"]:
    """What each block of queries reads: tokens, zeros beyond the sequence, then entries."""
    apply: Callable[..., Tensor] = _BlockKeys.apply
    return apply(kv, entries, blocks)


def block_mask(
    length: int, blocks: Shape, window: int, seen: Bool[Tensor, "b s t"] | None
) -> Bool[Tensor, "n q k"]:
    """Which of these keys each query sees, for the b sequences of `seen`."""
    count, size, back = blocks
    batch, _, more = (1, length, 0) if seen is None else seen.shape
    mask = torch.empty(batch * count, size, (back + 1) * size + more, dtype=torch.bool)
    seen = None if seen is None else seen.contiguous()
    kernels().block_mask(batch, length, *blocks, more, window, *map(pointer, (seen, mask)))
    return mask


def _softmax(scores: Tensor, seen: Tensor, sink: Tensor | None, heads: int, scale: float) -> Tensor | None:
    """Overwrites scores by weights, and returns the sink's."""
    groups, rows, keys = scores.shape
    seen = seen.contiguous()
    sink = None if sink is None else sink.contiguous()
    share = None if sink is None else scores.new_empty(groups, rows)
    one_sink = int(sink is not None and len(sink) == 1)
    kernels().masked_softmax_forward(
        groups,
        rows // heads,
        heads,
        keys,
        len(seen),
        one_sink,
        scale,
        *map(pointer, (scores, seen, sink, share)),
    )
    return share


def _softmax_gradient(
    d_weights: Tensor, weights: Tensor, share: Tensor | None, sinks: int | None, heads: int, scale: float
) -> Tensor | None:
    """Overwrites the gradient of weights by that of scores, and returns the sink's."""
    groups, rows, keys = weights.shape
    d_sink = None if sinks is None else weights.new_zeros(sinks, heads)
    kernels().masked_softmax_backward(
        groups,
        rows // heads,
        heads,
        keys,
        int(sinks == 1),
        scale,
        *map(pointer, (weights, share, d_weights, d_sink)),
    )
    return d_sink
