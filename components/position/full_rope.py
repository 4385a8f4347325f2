"""Rotary position encoding of all channels."""

from jaxtyping import Float, Int
from torch import Tensor

from components.position.rotary import Rotary, rates
from components.registry import register
from components.spec import Site


@register("full_rope", source="RoFormer, arXiv 2104.09864; ablation of DeepSeek-V4's partial rotation")
class FullRope(Rotary):
    """`rope` on all channels instead of the last `qk_rope_head_dim`: none is free of position.

    Rates run from 1 down to nearly 1 / base over whatever is rotated, so that keys of an indexer, which have
    `index_head_dim` channels, have rates of their own.
    """

    def __init__(self, config: Rotary.Config, site: Site) -> None:
        super().__init__(config, site)
        self.config, self.site = config, site

    def rates_of(self, width: int) -> list[float]:
        """Rates of all pairs."""
        return rates(self.config, self.site, width)

    def unrotate(self, x: Float[Tensor, "b s h c"], positions: Int[Tensor, "s"]) -> Float[Tensor, "b s h c"]:
        """Turn all channels of `x` back by the angles of `positions`."""
        return self._turn(x, positions, direction=-1)

    @staticmethod
    def check(config: Rotary.Config, site: Site, seq_len: int) -> None:
        for key in ("head_dim", "index_head_dim"):
            if getattr(site.dims, key) % 2:
                raise ValueError(f"{key}={getattr(site.dims, key)} must be even: channels rotate in pairs")

    @staticmethod
    def warnings(config: Rotary.Config, site: Site, seq_len: int) -> list[str]:
        if site.layer.attention == "mla":
            return ["mla rotates a part of its own and nothing else: the same as rope"]
        if site.dims.qk_rope_head_dim == site.dims.head_dim == site.dims.index_head_dim:
            return [f"qk_rope_head_dim={site.dims.head_dim} is all channels: the same as rope"]
        return []
