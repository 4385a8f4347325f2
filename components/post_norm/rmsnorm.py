"""Branches write what they compute at a size of its own."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from components.functional import rms_norm
from components.registry import register
from components.slots import PostNorm
from components.spec import Cost, NoOptions, Site


@register("rmsnorm", source="Peri-LN, arXiv 2502.02732; sandwich norm of CogView, arXiv 2105.13290 §2.4")
class PostRMSNorm(PostNorm):
    """`weight * y / rms(y)` before the residual takes y: with a norm before branches too, sandwich norm.

    Branches then add as much as their weights say, however large what they computed. With `norm=none` it is
    the only norm, after the branch and before the sum.

    Attributes:
        weight: [d], ones at first.
    """

    Config = NoOptions

    def __init__(self, config: NoOptions, site: Site) -> None:
        super().__init__()
        self.eps = site.dims.rms_norm_eps
        self.weight = nn.Parameter(torch.ones(site.dims.hidden_size))

    def forward(self, y: Float[Tensor, "b s d"]) -> Float[Tensor, "b s d"]:
        return rms_norm(y, self.weight, self.eps)

    @staticmethod
    def cost(config: NoOptions, site: Site, seq_len: int) -> Cost:
        """Of the one instance that stands after each branch."""
        return Cost(params=site.dims.hidden_size, active_params=site.dims.hidden_size)
