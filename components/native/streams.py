"""Reading and writing of residual streams by the fused kernels; autograd around `streams.c`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from components.native import kernels, pointer

MAX_STREAMS = 8
"""As in `streams.c`."""


@dataclass(frozen=True, slots=True)
class Balance:
    """Constants of mHC's maps."""

    iterations: int
    hc_eps: float
    norm_eps: float


class _Read(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, state: Tensor, fn: Tensor, base: Tensor, scale: Tensor, balance: Balance
    ) -> tuple[Tensor, Tensor]:
        state = state.contiguous()
        tokens, n, d = state.shape
        raw = state.view(tokens, n * d) @ fn.T
        read = state.new_empty(tokens, d)
        mixing = state.new_empty(tokens, n, n + 1)
        inverse_rms = state.new_empty(tokens)
        kernels().streams_read_forward(
            n,
            tokens,
            d,
            balance.iterations,
            balance.hc_eps,
            balance.norm_eps,
            *map(pointer, (state, raw, base, scale, read, mixing, inverse_rms)),
        )
        ctx.balance = balance
        ctx.save_for_backward(state, fn, raw, base, scale, inverse_rms)
        return read, mixing

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore
        state, fn, raw, base, scale, inverse_rms = ctx.saved_tensors
        tokens, n, d = state.shape
        d_read, d_mixing = (grad.contiguous() for grad in grads)
        d_state, d_raw = torch.empty_like(state), torch.empty_like(raw)
        d_base, d_scale = torch.zeros_like(base), torch.zeros_like(scale)
        done = kernels().streams_read_backward(
            n,
            tokens,
            d,
            ctx.balance.iterations,
            ctx.balance.hc_eps,
            *map(pointer, (state, raw, base, scale, inverse_rms, d_read, d_mixing)),
            *map(pointer, (d_state, d_raw, d_base, d_scale)),
        )
        if done != 0:
            raise MemoryError("no memory for the balancing's divisors")
        flat = state.view(tokens, n * d)
        d_state.view(tokens, n * d).addmm_(d_raw, fn)
        return d_state, d_raw.T @ flat, d_base, d_scale, None


class _Write(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, state: Tensor, y: Tensor, mixing: Tensor) -> Tensor:
        state, y, mixing = state.contiguous(), y.contiguous(), mixing.contiguous()
        tokens, n, d = state.shape
        written = torch.empty_like(state)
        kernels().streams_write_forward(n, tokens, d, *map(pointer, (state, y, mixing, written)))
        ctx.save_for_backward(state, y, mixing)
        return written

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:  # pyright: ignore
        state, y, mixing = ctx.saved_tensors
        tokens, n, d = state.shape
        grad = grads[0].contiguous()
        d_state, d_y, d_mixing = torch.empty_like(state), torch.empty_like(y), torch.empty_like(mixing)
        kernels().streams_write_backward(
            n, tokens, d, *map(pointer, (state, y, mixing, grad, d_state, d_y, d_mixing))
        )
        return d_state, d_y, d_mixing


def read(
    state: Float[Tensor, "m n d"],
    fn: Float[Tensor, "o nd"],
    base: Float[Tensor, "o"],
    scale: Float[Tensor, "3"],
    balance: Balance,
) -> tuple[Float[Tensor, "m d"], Float[Tensor, "m n p"]]:
    """What a branch reads, and the mixing that `write` takes; see `residual/mhc`."""
    apply: Callable[..., tuple[Tensor, Tensor]] = _Read.apply
    return apply(state, fn, base, scale, balance)


def write(
    state: Float[Tensor, "m n d"], y: Float[Tensor, "m d"], mixing: Float[Tensor, "m n p"]
) -> Float[Tensor, "m n d"]:
    """New streams; row k of `mixing` holds the weights of the old streams, then of the branch."""
    apply: Callable[..., Tensor] = _Write.apply
    return apply(state, y, mixing)
