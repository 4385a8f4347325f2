"""Root-mean-square normalisation."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from components.functional import rms_norm
from components.registry import register
from components.slots import Norm
from components.spec import Cost, NoOptions, Site


@register("rmsnorm", source="Zhang & Sennrich 2019, arXiv 1910.07467; DeepSeek-V4 uses it everywhere")
class RMSNorm(Norm):
    """Divide by the root mean square over the last axis, then scale each channel by a learned weight.

    Statistics are taken in at least 32 bits, with `dims.rms_norm_eps` inside the root.
    """

    Config = NoOptions

    def __init__(self, config: NoOptions, site: Site, size: int) -> None:
        super().__init__()
        self.eps = site.dims.rms_norm_eps
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return rms_norm(x, self.weight, self.eps)

    @staticmethod
    def cost(config: NoOptions, site: Site, seq_len: int) -> Cost:
        """Of the one instance that stands before each branch, `hidden_size` wide."""
        return Cost(params=site.dims.hidden_size, active_params=site.dims.hidden_size)
