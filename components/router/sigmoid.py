"""The learned router of DeepSeek-V3."""

import torch
from jaxtyping import Float
from torch import Tensor

from components.registry import register
from components.router.balanced import BalancedRouter


@register("sigmoid", source="DeepSeek-V3, arXiv 2412.19437 §2.1.2, without its limit on groups of experts")
class SigmoidRouter(BalancedRouter):
    """`learned` with V3's scores: top-k of `sigmoid(x Wᵀ)` plus a balancing bias, normalised weights."""

    def score(self, logits: Float[Tensor, "... e"]) -> Float[Tensor, "... e"]:
        """Logits to affinities."""
        return torch.sigmoid(logits)
