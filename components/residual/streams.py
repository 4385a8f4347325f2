"""Weighted reading from and writing to parallel residual streams."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from components import native
from components.native import streams as fused
from components.precision import full_precision
from components.spec import Cost


class _WeightedSum(torch.autograd.Function):
    """`Σ_j weights[m, j] state[m, j]`, elementwise: matrix kernels are several times slower at such sizes."""

    @staticmethod
    def forward(ctx: Any, state: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(state, weights)
        mixed = state[:, 0] * weights[:, :1]
        for j in range(1, state.shape[1]):
            mixed.addcmul_(state[:, j], weights[:, j : j + 1])
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore
        state, weights = ctx.saved_tensors
        grad = grads[0].unsqueeze(1)
        return grad * weights.unsqueeze(2), (state * grad).sum(2)


def read_streams(state: Float[Tensor, "b s n d"], weights: Float[Tensor, "m n"]) -> Float[Tensor, "b s d"]:
    """Weighted sum over streams, with weights per token (m = b * s)."""
    b, s, n, d = state.shape
    weighted_sum: Callable[..., Tensor] = _WeightedSum.apply
    return weighted_sum(state.reshape(-1, n, d), weights.to(state.dtype)).view(b, s, d)


def write_streams(
    state: Float[Tensor, "b s n d"], y: Float[Tensor, "b s d"], mixing: Float[Tensor, "m n p"]
) -> Float[Tensor, "b s n d"]:
    """New streams as combinations of the old ones and the branch's output.

    Args:
        mixing: per token, rows are new streams; columns are the n old streams, then the branch (p = n + 1).
    """
    y = y.to(state.dtype)
    if native.takes(state, y, mixing):
        return fused.write(state.flatten(0, 1), y.flatten(0, 1), mixing).view_as(state)
    sources = torch.cat([state, y.unsqueeze(2)], dim=2).flatten(0, 1)
    with full_precision(sources):
        return torch.bmm(mixing.to(state.dtype), sources).view_as(state)


def stream_cost(params: int, mapping: int, reading: int, seq_len: int) -> Cost:
    """Cost of a place where streams are read.

    Args:
        mapping: FLOPs per token of matrix products: the weights' mapping, and writing.
        reading: FLOPs per token of the weighted sum, which count but run outside matrix kernels.
    """
    return Cost(
        params=params,
        active_params=params,
        flops=seq_len * (mapping + reading),
        kernel_flops=seq_len * mapping,
        decode_flops=mapping + reading,
    )
