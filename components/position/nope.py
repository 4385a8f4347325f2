"""No position encoding."""

from jaxtyping import Float, Int
from torch import Tensor

from components.registry import register
from components.slots import Position
from components.spec import Cost, NoOptions, Site


@register("nope", source="Kazemnejad et al. 2023, arXiv 2305.19466")
class Nope(Position):
    """No position encoding: order shows only through what the causal mask and the window hide."""

    Config = NoOptions

    def __init__(self, config: NoOptions, site: Site) -> None:
        super().__init__()

    def rotate(
        self, x: Float[Tensor, "b s ... c"], positions: Int[Tensor, "s"]
    ) -> Float[Tensor, "b s ... c"]:
        """`x` as it is."""
        return x

    def unrotate(self, x: Float[Tensor, "b s h c"], positions: Int[Tensor, "s"]) -> Float[Tensor, "b s h c"]:
        """`x` as it is."""
        return x

    @staticmethod
    def cost(config: NoOptions, site: Site, seq_len: int) -> Cost:
        """Nothing."""
        return Cost()
