"""Dynamic tanh: squashing instead of normalising."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from components.precision import at_least_float32
from components.registry import register
from components.slots import Norm
from components.spec import Cost, Site, searchable


@register("dyt", source="Zhu et al. 2025, arXiv 2503.10622")
class DynamicTanh(Norm):
    """`weight * tanh(α x) + bias`, elementwise, with one learned α for all channels. No statistics.

    Attributes:
        alpha: [1], `alpha_init` at first.
        weight: [d], ones at first.
        bias: [d], zeros at first.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of `norm/dyt`."""

        alpha_init: float = searchable(0.5, low=0.1, high=2.0, log=True)
        """Start of α. The paper's default is 0.5; it found larger models to want less."""

        def __post_init__(self) -> None:
            if not self.alpha_init > 0:
                raise ValueError(f"alpha_init={self.alpha_init} must be greater than 0")

    def __init__(self, config: Config, site: Site, size: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((1,), config.alpha_init))
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        wide = at_least_float32(x)
        return (self.weight * torch.tanh(self.alpha * wide) + self.bias).to(x.dtype)

    @staticmethod
    def cost(config: Config, site: Site, seq_len: int) -> Cost:
        """Of the one instance that stands before each branch, `hidden_size` wide."""
        params = 2 * site.dims.hidden_size + 1
        return Cost(params=params, active_params=params)
