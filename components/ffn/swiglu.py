"""The dense SwiGLU feed-forward layer, clamped as in DeepSeek-V4."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from components import native
from components.native import pointwise
from components.registry import register
from components.slots import FFN, Aux
from components.spec import Cost, Site, searchable


def clamped_swiglu(gate_up: Float[Tensor, "... two_f"], limit: float) -> Float[Tensor, "... f"]:
    """`SiLU(min(gate, limit)) * clip(up, -limit, limit)`; the gate half comes first. 0 means no limit.

    The gate is only bounded above and before the SiLU: a very negative gate stays closed.
    """
    if native.takes(gate_up):
        return pointwise.swiglu(gate_up, limit)
    gate, up = gate_up.chunk(2, dim=-1)
    if limit:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return F.silu(gate) * up


class Expert(nn.Module):
    """One clamped SwiGLU.

    Attributes:
        gate_up: [2f, d], the rows of w1 (gate) first, then those of w3 (up).
        down: [d, f], w2.
    """

    def __init__(self, hidden: int, width: int, limit: float, std: float) -> None:
        super().__init__()
        self.gate_up = nn.Parameter(torch.empty(2 * width, hidden).normal_(0.0, std))
        self.down = nn.Parameter(torch.empty(hidden, width).normal_(0.0, std))
        self.limit = limit
        self.row_blocks = {"gate_up": 2}

    def forward(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        return F.linear(clamped_swiglu(F.linear(x, self.gate_up), self.limit), self.down)


@register("swiglu", source="Shazeer 2020, arXiv 2002.05202; clamp of DeepSeek-V4 report §4.2")
class SwiGLU(FFN):
    """One SwiGLU for all tokens."""

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of `ffn/swiglu`."""

        intermediate_size: int = 0
        """Width f; 0 means as wide as what one token uses of a mixture of experts of the same sizes."""
        swiglu_limit: float = searchable(10.0, choices=(0.0, 10.0))
        """Clamp of the pre-activations; 0 means none."""

        def __post_init__(self) -> None:
            if self.intermediate_size < 0:
                raise ValueError(f"intermediate_size={self.intermediate_size} must not be negative")
            if self.swiglu_limit < 0:
                raise ValueError(f"swiglu_limit={self.swiglu_limit} must not be negative; 0 means no limit")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__()
        dims = site.dims
        self.expert = Expert(
            dims.hidden_size, width(config, site), config.swiglu_limit, dims.initializer_range
        )

    def forward(
        self, x: Float[Tensor, "b s d"], token_ids: Int[Tensor, "b s"]
    ) -> tuple[Float[Tensor, "b s d"], Aux]:
        return self.expert(x), {}

    @staticmethod
    def cost(config: Config, site: Site, seq_len: int) -> Cost:
        params = 3 * site.dims.hidden_size * width(config, site)
        return Cost(
            params=params,
            active_params=params,
            flops=2 * params * seq_len,
            kernel_flops=2 * params * seq_len,
            decode_flops=2 * params,
        )


def width(config: SwiGLU.Config, site: Site) -> int:
    """Intermediate size of the dense layer."""
    dims = site.dims
    return config.intermediate_size or dims.moe_intermediate_size * (
        dims.num_experts_per_tok + dims.n_shared_experts
    )
