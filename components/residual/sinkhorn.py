"""Sinkhorn-Knopp balancing of many small matrices at once, with an exact hand-written backward."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Balance(torch.autograd.Function):
    """Divide by column sums, row sums, column sums, ... in place.

    Only the last matrix and the divisors are kept: the backward multiplies its way back to each earlier
    matrix, so that memory grows with n per step and token, not n². Tokens come last so that every
    operation runs along memory.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, iterations: int, eps: float) -> Tensor:
        matrix = matrix.clone()
        divisors = []
        for step in range(2 * iterations - 1):
            divisor = matrix.sum(step % 2, keepdim=True).add_(eps)
            matrix.div_(divisor)
            divisors.append(divisor)
        ctx.save_for_backward(matrix, *divisors)
        return matrix

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore
        matrix, *divisors = ctx.saved_tensors
        # Gradients come with tokens first; one copy now saves a strided pass per step.
        matrix, grad = matrix.clone(), grads[0].clone(memory_format=torch.contiguous_format)
        product = torch.empty_like(matrix)
        for step in reversed(range(len(divisors))):
            # y = x / (sum x + eps), so dx = (dy - sum(dy * y)) / (sum x + eps).
            grad.sub_(torch.mul(grad, matrix, out=product).sum(step % 2, keepdim=True)).div_(divisors[step])
            matrix.mul_(divisors[step])
        return grad, None, None


def sinkhorn(logits: Float[Tensor, "n n m"], iterations: int, eps: float) -> Float[Tensor, "n n m"]:
    """Positive matrices whose columns sum to one and whose rows nearly do; axes are input, output, token.

    `C = softmax(logits, over outputs) + eps`, divided by its sums over inputs; then `iterations - 1` times
    divided by its sums over outputs and again over inputs. Every divisor has `eps` added.

    Source: DeepSeek-V4 `inference/model.py` and mHC, arXiv 2512.24880.
    """
    balance: Callable[..., Tensor] = _Balance.apply
    return balance(torch.softmax(logits, dim=1) + eps, iterations, eps)
