"""Norm, rotation, gate and loss by the fused kernels; autograd around `pointwise.c`."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from components.native import kernels, pointer

_NO_LIMIT = 3.0e38


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        x = x.contiguous()
        width = x.shape[-1]
        rows = x.numel() // width
        y, inverse = torch.empty_like(x), x.new_empty(rows)
        kernels().rms_norm_forward(rows, width, eps, *map(pointer, (x, weight, y, inverse)))
        ctx.save_for_backward(x, weight, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        x, weight, inverse = ctx.saved_tensors
        d_y = grads[0].contiguous()  # with a name, so that it lives for as long as the kernel reads it
        d_x, d_weight = torch.empty_like(x), None if weight is None else torch.zeros_like(weight)
        kernels().rms_norm_backward(
            len(inverse), x.shape[-1], *map(pointer, (x, weight, inverse, d_y, d_x, d_weight))
        )
        return d_x, d_weight, None


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, turns: Tensor, direction: float) -> Tensor:
        ctx.direction = direction
        ctx.save_for_backward(turns)
        return _turned(x, turns, direction)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        return _turned(grads[0], ctx.saved_tensors[0], -ctx.direction), None, None


def _turned(x: Tensor, turns: Tensor, direction: float) -> Tensor:
    x = x.contiguous()
    y = torch.empty_like(x)
    outer, length, width = x.shape[0], x.shape[1], x.shape[-1]
    inner = x.numel() // (outer * length * width) if x.numel() else 0
    kernels().rotate(
        outer,
        length,
        inner,
        width,
        turns.shape[1],
        direction,
        *map(pointer, (x, turns, y)),
    )
    return y


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, limit: float) -> Tensor:
        gate_up = gate_up.contiguous()
        ctx.limit = limit
        ctx.save_for_backward(gate_up)
        return swiglu_values(gate_up, limit)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        (gate_up,) = ctx.saved_tensors
        return swiglu_gradients(gate_up, ctx.limit, grads[0].contiguous())[0], None


def swiglu_values(gate_up: Tensor, limit: float, weights: Tensor | None = None) -> Tensor:
    """`swiglu` times a weight per row; without gradient, for contiguous tensors."""
    width = gate_up.shape[-1] // 2
    h = gate_up.new_empty(*gate_up.shape[:-1], width)
    rows = gate_up.numel() // (2 * width)
    kernels().swiglu_forward(rows, width, limit or _NO_LIMIT, *map(pointer, (gate_up, weights, h)))
    return h


def swiglu_gradients(
    gate_up: Tensor, limit: float, d_h: Tensor, weights: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Gradients of `gate_up` and of the weights from that of `swiglu_values`."""
    width = gate_up.shape[-1] // 2
    rows = gate_up.numel() // (2 * width)
    d_gate_up, d_weights = torch.empty_like(gate_up), None if weights is None else torch.empty_like(weights)
    kernels().swiglu_backward(
        rows, width, limit or _NO_LIMIT, *map(pointer, (gate_up, weights, d_h, d_gate_up, d_weights))
    )
    return d_gate_up, d_weights


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        logits, labels = logits.contiguous(), labels.contiguous()
        rows, width = logits.shape
        losses, totals = logits.new_empty(rows), logits.new_empty(rows)
        kernels().cross_entropy_forward(rows, width, *map(pointer, (logits, labels, losses, totals)))
        counted = int((labels >= 0).sum())
        ctx.counted = counted
        ctx.save_for_backward(logits, labels, totals)
        return losses.sum() / counted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        logits, labels, totals = ctx.saved_tensors
        d_logits = torch.empty_like(logits)
        kernels().cross_entropy_backward(
            *logits.shape,
            float(grads[0]) / ctx.counted,
            *map(pointer, (logits, labels, totals, d_logits)),
        )
        return d_logits, None


def rms_norm(
    x: Float[Tensor, "... d"], weight: Float[Tensor, "d"] | None, eps: float
) -> Float[Tensor, "... d"]:
    """As `components.functional.rms_norm`."""
    apply: Callable[..., Tensor] = _RMSNorm.apply
    return apply(x, weight, eps)


def rotate(
    x: Float[Tensor, "b s ... c"], turns: Float[Tensor, "s pairs 2"], direction: int
) -> Float[Tensor, "b s ... c"]:
    """Turn the last `2 * pairs` channels, in interleaved pairs, by `turns` (cosine, sine)."""
    apply: Callable[..., Tensor] = _Rotate.apply
    return apply(x, turns, float(direction))


def swiglu(gate_up: Float[Tensor, "... two_f"], limit: float) -> Float[Tensor, "... f"]:
    """As `components.ffn.activation.clamped_swiglu`; 0 means no limit."""
    apply: Callable[..., Tensor] = _SwiGLU.apply
    return apply(gate_up, limit)


def cross_entropy(logits: Float[Tensor, "m v"], labels: Int[Tensor, "m"]) -> Float[Tensor, ""]:
    """Mean loss over labels that are not negative."""
    apply: Callable[..., Tensor] = _CrossEntropy.apply
    return apply(logits, labels)
