"""Branches write what they compute."""

from jaxtyping import Float
from torch import Tensor

from components.registry import register
from components.slots import PostNorm
from components.spec import Cost, NoOptions, Site


@register("none", source="pre-norm, arXiv 2002.04745; DeepSeek-V4")
class NoPostNorm(PostNorm):
    """Nothing after branches: with a norm before them, pre-norm."""

    Config = NoOptions

    def __init__(self, config: NoOptions, site: Site) -> None:
        super().__init__()

    def forward(self, y: Float[Tensor, "b s d"]) -> Float[Tensor, "b s d"]:
        return y

    @staticmethod
    def cost(config: NoOptions, site: Site, seq_len: int) -> Cost:
        return Cost()
