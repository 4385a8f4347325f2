"""No normalisation."""

from jaxtyping import Float
from torch import Tensor

from components.registry import register
from components.slots import Norm
from components.spec import Cost, NoOptions, Site


@register("none", source="ablation of the norm; with residual=rezero the networks of arXiv 2003.04887")
class NoNorm(Norm):
    """Nothing before branches and head. Norms inside attention and compressors stay."""

    Config = NoOptions

    def __init__(self, config: NoOptions, site: Site, size: int) -> None:
        super().__init__()

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return x

    @staticmethod
    def cost(config: NoOptions, site: Site, seq_len: int) -> Cost:
        return Cost()
