"""A residual whose branches are scaled down by the depth of the model."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from components.registry import register
from components.residual.single import SingleStream
from components.spec import Cost, Site, searchable


@register("depth_scaled", source="CompleteP, arXiv 2505.01618 (exponent 1); depth-µP, arXiv 2310.02244 (0.5)")
class DepthScaled(SingleStream):
    """One stream: `x + (L / L_base)^-exponent F(norm(x))`, with L = `num_hidden_layers`. No parameters.

    What the papers do to initial values, learning rates and epsilon as depth grows is not part of this: the
    scale is all that differs from `prenorm`.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of `residual/depth_scaled`."""

        exponent: float = searchable(1.0, low=0.25, high=1.0)
        """How fast branches shrink with depth; 1 is CompleteP, 0.5 depth-µP, 0 would be `prenorm`."""
        base_depth: int = searchable(2, low=1, high=8, log=True)
        """Number of layers L_base at which branches have their full size."""

        def __post_init__(self) -> None:
            if not self.exponent > 0:
                raise ValueError(f"exponent={self.exponent} must be greater than 0: with 0 it is prenorm")
            if self.base_depth < 1:
                raise ValueError(f"base_depth={self.base_depth} must be at least 1")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__()
        self.scale = (site.dims.num_hidden_layers / config.base_depth) ** -config.exponent

    @staticmethod
    def cost(config: Config, site: Site, seq_len: int) -> Cost:
        return Cost()

    @staticmethod
    def warnings(config: Config, site: Site, seq_len: int) -> list[str]:
        if site.dims.num_hidden_layers == config.base_depth:
            return [f"base_depth={config.base_depth} is the model's depth: the scale is 1, as with prenorm"]
        return []

    def write(
        self, state: Float[Tensor, "b s n d"], y: Float[Tensor, "b s d"], carry: Any
    ) -> Float[Tensor, "b s n d"]:
        return state + self.scale * y.unsqueeze(2)
