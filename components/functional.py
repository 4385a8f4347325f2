"""Functions that several components compute alike."""

import torch
from jaxtyping import Float
from torch import Tensor

from components.precision import at_least_float32


def rms_norm(
    x: Float[Tensor, "... d"], weight: Float[Tensor, "d"] | None, eps: float
) -> Float[Tensor, "... d"]:
    """`weight * x / sqrt(mean(x^2) + eps)` over the last axis, in at least 32 bits; no weight means ones."""
    wide = at_least_float32(x)
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (normed if weight is None else normed * weight).to(x.dtype)
