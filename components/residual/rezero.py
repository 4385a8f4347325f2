"""A residual whose branches start switched off."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from components.registry import register
from components.residual.single import SingleStream
from components.spec import Cost, NoOptions, Site


@register("rezero", source="Bachlechner et al. 2020, arXiv 2003.04887, Eq. 4")
class ReZero(SingleStream):
    """One stream: `x + α F(norm(x))`, one learned α per branch, zero at first.

    At the start the whole stack is the identity and only α takes a gradient. The paper has no norm: that is
    `norm=none` beside this.

    Attributes:
        alpha: [1].
    """

    Config = NoOptions

    def __init__(self, config: NoOptions, site: Site) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1))

    @staticmethod
    def cost(config: NoOptions, site: Site, seq_len: int) -> Cost:
        return Cost(params=1, active_params=1)

    def write(
        self, state: Float[Tensor, "b s n d"], y: Float[Tensor, "b s d"], carry: Any
    ) -> Float[Tensor, "b s n d"]:
        return state + (self.alpha.to(y.dtype) * y).unsqueeze(2)
