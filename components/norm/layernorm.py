"""Layer normalisation."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from components.precision import at_least_float32
from components.registry import register
from components.slots import Norm
from components.spec import Cost, NoOptions, Site


@register("layernorm", source="Ba et al. 2016, arXiv 1607.06450")
class LayerNorm(Norm):
    """`weight * (x - mean(x)) / sqrt(var(x) + eps) + bias` over the last axis: `rmsnorm`, centred, with bias.

    Statistics are taken in at least 32 bits, with `dims.rms_norm_eps` inside the root; the variance divides
    by d.

    Attributes:
        weight: [d], ones at first.
        bias: [d], zeros at first.
    """

    Config = NoOptions

    def __init__(self, config: NoOptions, site: Site, size: int) -> None:
        super().__init__()
        self.eps = site.dims.rms_norm_eps
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        wide = at_least_float32(x)
        weight, bias = self.weight.to(wide.dtype), self.bias.to(wide.dtype)
        return F.layer_norm(wide, self.weight.shape, weight, bias, self.eps).to(x.dtype)

    @staticmethod
    def cost(config: NoOptions, site: Site, seq_len: int) -> Cost:
        """Of the one instance that stands before each branch, `hidden_size` wide."""
        params = 2 * site.dims.hidden_size
        return Cost(params=params, active_params=params)
