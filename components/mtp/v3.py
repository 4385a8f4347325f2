"""DeepSeek-V3's multi-token prediction: on the collapsed hidden state."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from components.functional import rms_norm
from components.mtp.options import AHEAD, LossWeight
from components.registry import register
from components.slots import MTP
from components.spec import Cost, Site


@register("v3", source="DeepSeek-V3, arXiv 2412.19437 §2.2; shared head of its released weights")
class ConcatMTP(MTP):
    """One projection of the next token's embedding beside the hidden state: `[rms(e), rms(h)] eh_proj^T`.

    h is collapsed and not yet normed. Where the residual has streams, all of them start from the result.

    Attributes:
        enorm: [d].
        hnorm: [d].
        eh_proj: [d, 2d], columns for the embedding first.
    """

    Config = LossWeight
    diagnostics = AHEAD

    def __init__(self, config: LossWeight, site: Site) -> None:
        super().__init__()
        d, std = site.dims.hidden_size, site.dims.initializer_range
        self.eps = site.dims.rms_norm_eps
        self.enorm = nn.Parameter(torch.ones(d))
        self.hnorm = nn.Parameter(torch.ones(d))
        self.eh_proj = nn.Parameter(torch.empty(d, 2 * d).normal_(0.0, std))

    def forward(
        self,
        state: Float[Tensor, "b s n d"],
        hidden: Float[Tensor, "b s d"],
        embedded: Float[Tensor, "b s d"],
    ) -> Float[Tensor, "b s n d"]:
        """The block's input: n equal streams."""
        pair = rms_norm(embedded, self.enorm, self.eps), rms_norm(hidden, self.hnorm, self.eps)
        return F.linear(torch.cat(pair, dim=-1), self.eh_proj).unsqueeze(2).expand_as(state)

    @staticmethod
    def cost(config: LossWeight, site: Site, seq_len: int, streams: int = 1) -> Cost:
        """`4 d d` per token."""
        d = site.dims.hidden_size
        params = 2 * d * d + 2 * d
        flops = 4 * d * d * seq_len
        return Cost(params=params, active_params=params, flops=flops, kernel_flops=flops)
