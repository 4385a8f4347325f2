"""A mixture of SwiGLU experts as one operation, around `experts.c`: matrix products without tensors between them."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from components.native import kernels, pointer
from components.native.pointwise import swiglu_gradients, swiglu_values


class _Mixture(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Tensor, chosen: Tensor, gate_up: Tensor, down: Tensor, limit: float
    ) -> Tensor:
        x = x.contiguous()
        order, sizes = sort(chosen, len(gate_up))
        own = weights.flatten()[order]
        inputs = _gather(x, order, chosen.shape[1])
        hidden = _product(inputs, sizes, gate_up.transpose(1, 2))
        h = swiglu_values(hidden, limit, own)
        y = _scatter(_product(h, sizes, down.transpose(1, 2)), order, chosen.shape[1], x)
        ctx.limit, ctx.sizes, ctx.shape = limit, sizes, weights.shape
        ctx.save_for_backward(x, own, order, inputs, hidden, h, gate_up, down)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, own, order, inputs, hidden, h, gate_up, down = ctx.saved_tensors
        each, sizes = ctx.shape[1], ctx.sizes
        d_outputs = _gather(grads[0].contiguous(), order, each)
        d_h = _product(d_outputs, sizes, down)
        d_down = _outer(d_outputs, h, sizes, down)
        d_hidden, d_own = swiglu_gradients(hidden, ctx.limit, d_h, own)
        d_gate_up = _outer(d_hidden, inputs, sizes, gate_up)
        d_x = _scatter(_product(d_hidden, sizes, gate_up), order, each, x)
        assert d_own is not None
        d_weights = own.new_zeros(ctx.shape)
        d_weights.view(-1).index_copy_(0, order, d_own)
        return d_x, d_weights, None, d_gate_up, d_down, None


def mixture(
    x: Float[Tensor, "m d"],
    weights: Float[Tensor, "m k"],
    chosen: Int[Tensor, "m k"],
    gate_up: Float[Tensor, "e two_f d"],
    down: Float[Tensor, "e d f"],
    limit: float,
) -> Float[Tensor, "m d"]:
    """Sum of each token's experts by its weights; see `ffn/moe`."""
    apply: Callable[..., Tensor] = _Mixture.apply
    return apply(x, weights, chosen, gate_up, down, limit)


def sort(chosen: Int[Tensor, "m k"], experts: int) -> tuple[Int[Tensor, "p"], list[int]]:
    """Token-expert pairs by expert, in their own order within each, and how many every expert has."""
    chosen = chosen.contiguous()
    sizes, order = chosen.new_empty(experts), chosen.new_empty(chosen.numel())
    kernels().experts_sort(chosen.numel(), experts, *map(pointer, (chosen, sizes, order)))
    counts: list[int] = sizes.tolist()
    return order[: sum(counts)], counts


def _gather(x: Tensor, order: Tensor, each: int) -> Tensor:
    rows = x.new_empty(len(order), x.shape[1])
    kernels().rows_gather(len(order), x.shape[1], each, *map(pointer, (order, x, rows)))
    return rows


def _scatter(rows: Tensor, order: Tensor, each: int, like: Tensor) -> Tensor:
    y = torch.zeros_like(like)
    kernels().rows_add(len(order), rows.shape[1], each, *map(pointer, (order, rows, y)))
    return y


def _product(rows: Tensor, sizes: list[int], matrices: Tensor) -> Tensor:
    """Each expert's rows times its matrix."""
    out = rows.new_empty(len(rows), matrices.shape[2])
    for a, b, to in zip(rows.split(sizes), matrices.unbind(0), out.split(sizes), strict=True):
        torch.mm(a, b, out=to)
    return out


def _outer(left: Tensor, right: Tensor, sizes: list[int], like: Tensor) -> Tensor:
    """For each expert the sum over its rows of their outer products."""
    out = torch.empty_like(like)
    for a, b, to in zip(left.split(sizes), right.split(sizes), out.unbind(0), strict=True):
        torch.mm(a.T, b, out=to)
    return out
