"""Mixture of experts with shared experts."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from components import native
from components.ffn.activation import (
    CLAMP,
    CLAMPED,
    GATED,
    PLAIN,
    Expert,
    activated,
    clamp_rate,
    columns,
    matrices,
    rows,
)
from components.native import experts as fused
from components.registry import register
from components.slots import FFN, Aux, Router
from components.spec import Cost, Site, searchable


@register("moe", source="DeepSeekMoE, arXiv 2401.06066; DeepSeek-V4 inference/model.py")
class MixtureOfExperts(FFN):
    """`Σ_e w_e Expert_e(x) + Shared(x)`, the router's k experts per token and the shared ones for all.

    Attributes:
        gate_up: [E, 2f, d], per expert the rows of w1 (gate) first, then those of w3 (up); without a gate
            [E, 3f/2, d].
        down: [E, d, f]; without a gate [E, d, 3f/2].
        shared: the shared experts, fused into one of `n_shared_experts * f`; its output is not scaled.
    """

    uses = ("router",)
    diagnostics = CLAMP
    alarms = (CLAMPED,)

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of `ffn/moe`."""

        swiglu_limit: float = searchable(10.0, choices=(0.0, 10.0))
        """Clamp of the pre-activations of routed and shared experts; 0 means none."""
        activation: str = searchable("swiglu", choices=(*GATED, *PLAIN))
        """Of routed and shared experts. Those without a gate are half as wide again: equally large."""

        def __post_init__(self) -> None:
            if self.swiglu_limit < 0:
                raise ValueError(f"swiglu_limit={self.swiglu_limit} must not be negative; 0 means no limit")
            if self.activation not in (*GATED, *PLAIN):
                allowed = ", ".join((*GATED, *PLAIN))
                raise ValueError(f"activation={self.activation!r} is not one of {allowed}")

    def __init__(self, config: Config, site: Site, router: Router) -> None:
        super().__init__()
        dims = site.dims
        experts, d, f = dims.n_routed_experts, dims.hidden_size, dims.moe_intermediate_size
        kind, std = config.activation, dims.initializer_range
        self.kind, self.limit = kind, config.swiglu_limit
        self.router = router
        self.gate_up = nn.Parameter(torch.empty(experts, rows(kind, f), d).normal_(0.0, std))
        self.down = nn.Parameter(torch.empty(experts, d, columns(kind, f)).normal_(0.0, std))
        self.row_blocks = {"gate_up": rows(kind, f) // columns(kind, f)}
        shared = dims.n_shared_experts
        self.shared = Expert(kind, d, shared * f, self.limit, std) if shared else None

    def forward(
        self, x: Float[Tensor, "b s d"], token_ids: Int[Tensor, "b s"]
    ) -> tuple[Float[Tensor, "b s d"], Aux]:
        flat = x.flatten(0, 1)
        weights, chosen, aux = self.router(x, token_ids)
        y = self._routed(flat, weights.to(x.dtype), chosen)
        if self.watched and self.limit:
            with torch.no_grad():
                hidden, _ = self._pre_activations(flat, chosen)
            aux["diag/clamp_rate"] = clamp_rate(hidden, self.kind, self.limit)
        if self.shared is not None:
            y = y + self.shared(flat)
        return y.view_as(x), aux

    def _routed(
        self, x: Float[Tensor, "m d"], weights: Float[Tensor, "m k"], chosen: Int[Tensor, "m k"]
    ) -> Float[Tensor, "m d"]:
        """Sort (token, expert) pairs by expert, so that each expert is one matrix product over a slice.

        Weights are taken apart by `unbind` once: indexing them per expert would make the backward fill a
        gradient of the size of all experts for each of them.
        """
        if self.kind == "swiglu" and native.takes(x, weights, self.gate_up, self.down):
            return fused.mixture(x, weights, chosen, self.gate_up, self.down, self.limit)
        hidden, (order, token, sizes) = self._pre_activations(x, chosen)
        hidden = activated(hidden, self.kind, self.limit) * weights.flatten()[order].unsqueeze(1)
        outputs = torch.cat([h @ w.T for h, w in zip(hidden.split(sizes), self.down.unbind(0), strict=True)])
        return outputs.new_zeros(x.shape).index_add(0, token, outputs)  # in mixed precision, that of products

    def _pre_activations(
        self, x: Float[Tensor, "m d"], chosen: Int[Tensor, "m k"]
    ) -> tuple[Float[Tensor, "p h"], tuple[Int[Tensor, "p"], Int[Tensor, "p"], list[int]]]:
        """Of all (token, expert) pairs, by expert; with their places in `chosen`, tokens, and pairs per expert."""
        experts = chosen.flatten()
        sizes = torch.bincount(experts, minlength=len(self.gate_up))[: len(self.gate_up)].tolist()
        order = experts.argsort(stable=True)[: sum(sizes)]
        token = order // chosen.shape[1]
        inputs = x.index_select(0, token).split(sizes)
        hidden = torch.cat([u @ w.T for u, w in zip(inputs, self.gate_up.unbind(0), strict=True)])
        return hidden, (order, token, sizes)

    @staticmethod
    def cost(config: Config, site: Site, seq_len: int) -> Cost:
        dims = site.dims
        d, f, shared = dims.hidden_size, dims.moe_intermediate_size, dims.n_shared_experts
        routed = matrices(config.activation, d, f)
        common = matrices(config.activation, d, shared * f)
        active = dims.num_experts_per_tok * routed + common
        return Cost(
            params=dims.n_routed_experts * routed + common,
            active_params=active,
            flops=2 * active * seq_len,
            kernel_flops=2 * active * seq_len,
            decode_flops=2 * active,
        )
