"""What feed-forward layers without experts share: everything but the activation."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from components.ffn.activation import CLAMP, CLAMPED, Expert, clamp_rate, matrices
from components.slots import FFN, Aux
from components.spec import Cost, Site, searchable


class DenseFFN(FFN):
    """One feed-forward layer for all tokens. Entries of equal `intermediate_size` have equal parameters.

    Attributes:
        expert: its two matrices.
    """

    activation: ClassVar[str]
    diagnostics = CLAMP
    alarms = (CLAMPED,)

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of dense feed-forward layers."""

        intermediate_size: int = 0
        """Width f of a gated layer; layers without a gate are 3f/2 wide, which is as many parameters. 0 means
        as wide as what one token uses of a mixture of experts of the same sizes."""
        swiglu_limit: float = searchable(10.0, choices=(0.0, 10.0))
        """Clamp of the pre-activations, whatever the activation; 0 means none."""

        def __post_init__(self) -> None:
            if self.intermediate_size < 0:
                raise ValueError(f"intermediate_size={self.intermediate_size} must not be negative")
            if self.swiglu_limit < 0:
                raise ValueError(f"swiglu_limit={self.swiglu_limit} must not be negative; 0 means no limit")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__()
        dims = site.dims
        self.expert = Expert(
            self.activation,
            dims.hidden_size,
            _width(config, site),
            config.swiglu_limit,
            dims.initializer_range,
        )

    def forward(
        self, x: Float[Tensor, "b s d"], token_ids: Int[Tensor, "b s"]
    ) -> tuple[Float[Tensor, "b s d"], Aux]:
        if self.watched and self.expert.limit:
            with torch.no_grad():
                hidden = F.linear(x, self.expert.gate_up)
            return self.expert(x), {"diag/clamp_rate": clamp_rate(hidden, self.activation, self.expert.limit)}
        return self.expert(x), {}


def dense_cost(activation: str, config: DenseFFN.Config, site: Site, seq_len: int) -> Cost:
    """Cost of the layer with that activation."""
    params = matrices(activation, site.dims.hidden_size, _width(config, site))
    return Cost(
        params=params,
        active_params=params,
        flops=2 * params * seq_len,
        kernel_flops=2 * params * seq_len,
        decode_flops=2 * params,
    )


def _width(config: DenseFFN.Config, site: Site) -> int:
    dims = site.dims
    active = dims.num_experts_per_tok + dims.n_shared_experts
    return config.intermediate_size or dims.moe_intermediate_size * active
