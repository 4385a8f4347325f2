"""Indexers and gated pooling by the fused kernels; autograd around `indexer.c`."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from components.native import kernels, pointer


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, products: Tensor, weights: Tensor) -> Tensor:
        products, weights = products.contiguous(), weights.contiguous()
        rows, heads, entries = products.shape
        scores = products.new_empty(rows, entries)
        kernels().index_scores_forward(rows, heads, entries, *map(pointer, (products, weights, scores)))
        ctx.save_for_backward(products, weights)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore
        products, weights = ctx.saved_tensors
        d_products, d_weights = torch.empty_like(products), torch.empty_like(weights)
        tensors = (products, weights, grads[0].contiguous(), d_products, d_weights)
        kernels().index_scores_backward(*products.shape, *map(pointer, tensors))
        return d_products, d_weights


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, mass: Tensor, candidates: Tensor) -> Tensor:
        scores, mass, candidates = scores.contiguous(), mass.contiguous(), candidates.contiguous()
        entries = scores.shape[-1]
        terms, d_scores = scores.new_empty(scores.shape[:-1]), torch.empty_like(scores)
        tensors = (scores, mass, candidates, terms, d_scores)
        counted = max(kernels().divergence(terms.numel(), entries, *map(pointer, tensors)), 1)
        ctx.counted = counted
        ctx.save_for_backward(d_scores)
        return terms.sum() / counted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        return ctx.saved_tensors[0] * (grads[0] / ctx.counted), None, None


class _GatedPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, gates: Tensor, ape: Tensor, overlap: bool) -> Tensor:
        values, gates, ape = values.contiguous(), gates.contiguous(), ape.contiguous()
        batch, count, ratio, width = values.shape
        shape = (batch, count, ratio, width // (1 + overlap), int(overlap))
        entries = values.new_empty(batch, count, shape[3])
        kernels().gated_pool_forward(*shape, *map(pointer, (values, gates, ape, entries)))
        ctx.shape = shape
        ctx.save_for_backward(values, gates, ape)
        return entries

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        values, gates, ape = ctx.saved_tensors
        given = [torch.zeros_like(t) for t in (values, gates, ape)]
        tensors = (values, gates, ape, grads[0].contiguous(), *given)
        kernels().gated_pool_backward(*ctx.shape, *map(pointer, tensors))
        return *given, None


def index_scores(products: Float[Tensor, "m h t"], weights: Float[Tensor, "m h"]) -> Float[Tensor, "m t"]:
    """`sum_h weights_h relu(products_h)`."""
    apply: Callable[..., Tensor] = _Scores.apply
    return apply(products, weights)


def divergence(
    scores: Float[Tensor, "b s t"], mass: Float[Tensor, "b s t"], candidates: Bool[Tensor, "b s t"]
) -> Float[Tensor, ""]:
    """As `components.indexer.teaching.divergence`."""
    apply: Callable[..., Tensor] = _Divergence.apply
    return apply(scores, mass, candidates)


def highest(scores: Float[Tensor, "... t"], count: int) -> Bool[Tensor, "... t"]:
    """As `components.indexer.lightning.highest`."""
    scores = scores.contiguous()
    mask = torch.empty(scores.shape, dtype=torch.bool)
    rows, entries = scores.numel() // scores.shape[-1], scores.shape[-1]
    if kernels().highest(rows, entries, count, *map(pointer, (scores, mask))) != 0:
        raise MemoryError("no memory to sort scores in")
    return mask


def entry_mass(
    scores: Float[Tensor, "n qh k"],
    seen: Bool[Tensor, "m q k"],
    sink: Float[Tensor, "#n h"] | None,
    heads: int,
    scale: float,
    tokens: int,
) -> Float[Tensor, "n q t"]:
    """What keys after the first `tokens` get of the softmax of all heads; overwrites `scores`."""
    groups, rows, keys = scores.shape
    mass = scores.new_empty(groups, rows // heads, keys - tokens)
    one_sink = int(sink is not None and len(sink) == 1)
    shape = (groups, rows // heads, heads, keys, tokens, len(seen), one_sink)
    kernels().entry_mass(*shape, scale, *map(pointer, (scores, seen, sink, mass)))
    return mass


def gated_pool(
    values: Float[Tensor, "b t m oc"],
    gates: Float[Tensor, "b t m oc"],
    ape: Float[Tensor, "m oc"],
    overlap: bool,
) -> Float[Tensor, "b t c"]:
    """As `components.compressor.gated.Gated.pool`."""
    apply: Callable[..., Tensor] = _GatedPool.apply
    return apply(values, gates, ape, overlap)
