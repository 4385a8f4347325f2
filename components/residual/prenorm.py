"""The plain residual stream."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from components.registry import register
from components.slots import Collapse, Residual
from components.spec import Cost, NoOptions, Site


class FirstStream(Collapse):
    """The only stream there is."""

    def forward(self, state: Float[Tensor, "b s n d"]) -> Float[Tensor, "b s d"]:
        return state[:, :, 0]


@register("prenorm", source="Xiong et al. 2020, arXiv 2002.04745")
class PreNorm(Residual):
    """One stream: `x + F(norm(x))`. No parameters; the norm belongs to the block."""

    Config = NoOptions

    def __init__(self, config: NoOptions, site: Site) -> None:
        super().__init__()

    @staticmethod
    def streams(config: NoOptions) -> int:
        return 1

    @staticmethod
    def collapse(config: NoOptions, site: Site) -> Collapse:
        return FirstStream()

    @staticmethod
    def collapse_cost(config: NoOptions, site: Site, seq_len: int) -> Cost:
        return Cost()

    @staticmethod
    def cost(config: NoOptions, site: Site, seq_len: int) -> Cost:
        return Cost()

    def read(self, state: Float[Tensor, "b s n d"]) -> tuple[Float[Tensor, "b s d"], Any]:
        return state[:, :, 0], None

    def write(
        self, state: Float[Tensor, "b s n d"], y: Float[Tensor, "b s d"], carry: Any
    ) -> Float[Tensor, "b s n d"]:
        return state + y.unsqueeze(2)
