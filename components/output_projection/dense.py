"""One matrix from all heads to the hidden size."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from components.registry import register
from components.slots import OutputProjection
from components.spec import Cost, NoOptions, Site


@register("dense", source="Vaswani et al. 2017, arXiv 1706.03762")
class Dense(OutputProjection):
    """One full matrix: `y = concat(heads) W^T`.

    Attributes:
        weight: [d, h*c].
    """

    Config = NoOptions

    def __init__(self, config: NoOptions, site: Site) -> None:
        super().__init__()
        dims = site.dims
        shape = (dims.hidden_size, dims.num_attention_heads * dims.head_dim)
        self.weight = nn.Parameter(torch.empty(shape).normal_(0.0, dims.initializer_range))

    def forward(self, heads: Float[Tensor, "b s h c"]) -> Float[Tensor, "b s d"]:
        return F.linear(heads.flatten(-2), self.weight)

    @staticmethod
    def cost(config: NoOptions, site: Site, seq_len: int) -> Cost:
        """`2 d h c` per token."""
        dims = site.dims
        params = dims.hidden_size * dims.num_attention_heads * dims.head_dim
        return Cost(
            params=params,
            active_params=params,
            flops=2 * params * seq_len,
            kernel_flops=2 * params * seq_len,
            decode_flops=2 * params,
        )
