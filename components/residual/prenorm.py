"""The plain residual stream."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from components.registry import register
from components.residual.single import SingleStream
from components.spec import Cost, NoOptions, Site


@register("prenorm", source="Xiong et al. 2020, arXiv 2002.04745")
class PreNorm(SingleStream):
    """One stream: `x + F(norm(x))`. No parameters; the norm belongs to the block."""

    Config = NoOptions

    def __init__(self, config: NoOptions, site: Site) -> None:
        super().__init__()

    @staticmethod
    def cost(config: NoOptions, site: Site, seq_len: int) -> Cost:
        return Cost()

    def write(
        self, state: Float[Tensor, "b s n d"], y: Float[Tensor, "b s d"], carry: Any
    ) -> Float[Tensor, "b s n d"]:
        return state + y.unsqueeze(2)
