"""DeepSeek-V4's multi-token prediction: on residual streams."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from components.functional import rms_norm
from components.mtp.options import AHEAD, LossWeight
from components.registry import register
from components.slots import MTP
from components.spec import Cost, Site


@register("v4", source="DeepSeek-V4 report §2.4 and inference/model.py, MTPBlock")
class StreamMTP(MTP):
    """The next token's embedding joins each residual stream: `rms(e) e_proj^T + rms(X_j) h_proj^T`.

    Streams come as the last layer left them, neither collapsed nor normed, and all of them go through the
    same `h_proj`.

    Attributes:
        enorm: [d].
        hnorm: [d].
        e_proj: [d, d].
        h_proj: [d, d].
    """

    Config = LossWeight
    diagnostics = AHEAD

    def __init__(self, config: LossWeight, site: Site) -> None:
        super().__init__()
        d, std = site.dims.hidden_size, site.dims.initializer_range
        self.eps = site.dims.rms_norm_eps
        self.enorm = nn.Parameter(torch.ones(d))
        self.hnorm = nn.Parameter(torch.ones(d))
        self.e_proj = nn.Parameter(torch.empty(d, d).normal_(0.0, std))
        self.h_proj = nn.Parameter(torch.empty(d, d).normal_(0.0, std))

    def forward(
        self,
        state: Float[Tensor, "b s n d"],
        hidden: Float[Tensor, "b s d"],
        embedded: Float[Tensor, "b s d"],
    ) -> Float[Tensor, "b s n d"]:
        """The block's input; `hidden` plays no part."""
        token = F.linear(rms_norm(embedded, self.enorm, self.eps), self.e_proj)
        return token.unsqueeze(2) + F.linear(rms_norm(state, self.hnorm, self.eps), self.h_proj)

    @staticmethod
    def cost(config: LossWeight, site: Site, seq_len: int, streams: int = 1) -> Cost:
        """`2 d d (1 + n)` per token: each of n streams is projected."""
        d = site.dims.hidden_size
        params = 2 * d * d + 2 * d
        flops = 2 * d * d * (1 + streams) * seq_len
        return Cost(params=params, active_params=params, flops=flops, kernel_flops=flops)
