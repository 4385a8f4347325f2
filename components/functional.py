"""Functions that several components compute alike."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from components import native
from components.native import pointwise
from components.precision import at_least_float32


def rms_norm(
    x: Float[Tensor, "... d"], weight: Float[Tensor, "d"] | None, eps: float
) -> Float[Tensor, "... d"]:
    """`weight * x / sqrt(mean(x^2) + eps)` over the last axis, in at least 32 bits; no weight means ones."""
    if native.takes(x):
        return pointwise.rms_norm(x, weight, eps)
    wide = at_least_float32(x)
    normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (normed if weight is None else normed * weight).to(x.dtype)


def cross_entropy(logits: Float[Tensor, "m v"], labels: Int[Tensor, "m"]) -> Float[Tensor, ""]:
    """Mean nats per label, in at least 32 bits; negative labels are left out."""
    if native.takes(logits):
        return pointwise.cross_entropy(logits, labels)
    return F.cross_entropy(at_least_float32(logits), labels)
