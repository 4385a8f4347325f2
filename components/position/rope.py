"""Rotary position encoding of DeepSeek-V4."""

from jaxtyping import Float, Int
from torch import Tensor

from components.position.rotary import Rotary
from components.registry import register


@register("rope", source="RoFormer, arXiv 2104.09864; DeepSeek-V4 inference/model.py; YaRN, arXiv 2309.00071")
class Rope(Rotary):
    """Partial interleaved rotation of queries and keys; where keys are values too, outputs are turned back.

    Turning the output back by the query's angle makes the values' angles relative, like those of the keys.
    """

    def unrotate(self, x: Float[Tensor, "b s h c"], positions: Int[Tensor, "s"]) -> Float[Tensor, "b s h c"]:
        """Turn the last channels of `x` back by the angles of `positions`."""
        return self._turn(x, positions, direction=-1)
