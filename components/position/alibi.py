"""Attention with linear biases."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from components import registry
from components.registry import register
from components.slots import Attention, Position, ScoreBias
from components.spec import Cost, NoOptions, Site


@register("alibi", source="Press et al. 2021, arXiv 2108.12409")
class Alibi(Position):
    """Nothing in queries and keys; every score falls by the distance, at a rate that differs between heads.

    Head h of H (from 1) adds `-2^(-8h/H) (t - p)` to the score of a key at p for the query at t. The paper's
    rates, which its code replaces by others where H is no power of two. A compressed entry stands at its
    block's first token, where `rope` puts it too. An indexer's scores have no bias.
    """

    Config = NoOptions

    def __init__(self, config: NoOptions, site: Site) -> None:
        super().__init__()
        self.heads = site.dims.num_attention_heads

    def rotate(
        self, x: Float[Tensor, "b s ... c"], positions: Int[Tensor, "s"]
    ) -> Float[Tensor, "b s ... c"]:
        """`x` as it is."""
        return x

    def unrotate(self, x: Float[Tensor, "b s h c"], positions: Int[Tensor, "s"]) -> Float[Tensor, "b s h c"]:
        """`x` as it is."""
        return x

    @property
    def bias(self) -> ScoreBias:
        """Distance times the slope of each head."""
        return self._bias

    def _bias(self, behind: Int[Tensor, "n q k"], dtype: torch.dtype) -> Float[Tensor, "n q h k"]:
        heads = torch.arange(1, self.heads + 1, dtype=dtype, device=behind.device)
        slopes = torch.exp2(-8 * heads / self.heads)
        return behind.to(dtype).unsqueeze(2) * -slopes.unsqueeze(1)

    @staticmethod
    def cost(config: NoOptions, site: Site, seq_len: int) -> Cost:
        """Nothing that counts: the bias is elementwise."""
        return Cost()

    @staticmethod
    def check(config: NoOptions, site: Site, seq_len: int) -> None:
        able = [
            entry.name
            for entry in registry.entries("attention")
            if issubclass(entry.cls, Attention) and entry.cls.takes_bias
        ]
        if site.layer.attention not in able:
            raise ValueError(
                f"attention {site.layer.attention} adds no bias to its scores, and would know nothing of "
                f"positions. Allowed with alibi: {', '.join(able)}"
            )
