"""Rotary position encoding without the inverse rotation of attention's output."""

from jaxtyping import Float, Int
from torch import Tensor

from components.position.rotary import Rotary
from components.registry import register
from components.spec import Site


@register("rope_no_inverse", source="ablation of DeepSeek-V4's inverse output rotation")
class RopeNoInverse(Rotary):
    """Like `rope`, but outputs keep the absolute angles of the values that were mixed into them."""

    def unrotate(self, x: Float[Tensor, "b s h c"], positions: Int[Tensor, "s"]) -> Float[Tensor, "b s h c"]:
        """`x` as it is."""
        return x

    @staticmethod
    def warnings(config: Rotary.Config, site: Site, seq_len: int) -> list[str]:
        name = site.layer.attention
        if name in ("dense", "mla", "moba", "nsa"):
            return [f"{name} attention rotates no values, so nothing is turned back anyway: the same as rope"]
        return Rotary.warnings(config, site, seq_len)
