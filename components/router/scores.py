"""What routers share: gate scores, weights of the chosen experts, their load, and losses that even it out."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from components.precision import at_least_float32, full_precision
from components.slots import Aux, Router
from components.spec import Cost, Site


class Gate(Router):
    """Scores every expert by a linear map of the token, `score(x Wᵀ)`; DeepSeek-V4's score unless overridden.

    Attributes:
        weight: [n_routed_experts, d].
    """

    def __init__(self, site: Site) -> None:
        super().__init__()
        dims = site.dims
        self.top_k = dims.num_experts_per_tok
        self.routed_scaling_factor = dims.routed_scaling_factor
        self.weight = nn.Parameter(
            torch.empty(dims.n_routed_experts, dims.hidden_size).normal_(0.0, dims.initializer_range)
        )

    def scores(self, x: Float[Tensor, "... d"]) -> Float[Tensor, "... e"]:
        """Affinities in at least 32 bits."""
        x = at_least_float32(x)
        with full_precision(x):
            return self.score(F.linear(x, self.weight.to(x.dtype)))

    def score(self, logits: Float[Tensor, "... e"]) -> Float[Tensor, "... e"]:
        """Logits to affinities: `sqrt(softplus(·))`."""
        return F.softplus(logits).sqrt()

    def weights(self, scores: Float[Tensor, "m e"], chosen: Int[Tensor, "m k"]) -> Float[Tensor, "m k"]:
        """Scores of the chosen experts, summing to `routed_scaling_factor`."""
        picked = scores.gather(1, chosen)
        return picked * (self.routed_scaling_factor / (picked.sum(-1, keepdim=True) + 1e-20))

    @staticmethod
    def cost(config: Any, site: Site, seq_len: int) -> Cost:
        params = site.dims.n_routed_experts * site.dims.hidden_size
        return Cost(
            params=params,
            active_params=params,
            flops=2 * params * seq_len,
            kernel_flops=2 * params * seq_len,
            decode_flops=2 * params,
        )

    @staticmethod
    def check(config: Any, site: Site, seq_len: int) -> None:
        dims = site.dims
        if not 1 <= dims.num_experts_per_tok <= dims.n_routed_experts:
            raise ValueError(
                f"num_experts_per_tok={dims.num_experts_per_tok} must be between 1 and "
                f"n_routed_experts={dims.n_routed_experts}"
            )

    @staticmethod
    def warnings(config: Any, site: Site, seq_len: int) -> list[str]:
        dims = site.dims
        if dims.num_experts_per_tok == dims.n_routed_experts:
            return [f"every token uses all {dims.n_routed_experts} experts: the router chooses nothing"]
        return []


def expert_load(chosen: Int[Tensor, "m k"], experts: int) -> Int[Tensor, "e"]:
    """Tokens that chose each expert."""
    return torch.bincount(chosen.flatten(), minlength=experts)


def max_violation(load: Int[Tensor, "e"]) -> Aux:
    """MaxVio: excess of the busiest expert over the mean load, relative to it (0 is perfect balance)."""
    load = load.float()
    return {"diag/max_vio": load.max() / load.mean() - 1}


def balance_loss(
    shares: Float[Tensor, "g t e"], chosen: Int[Tensor, "g t k"], alpha: float
) -> Float[Tensor, ""]:
    """`α Σ_e f_e P_e`, the mean over groups of t tokens; α for a group in perfect balance.

    `f_e = E / (k t) * tokens that chose e`, without gradient; `P_e` is the mean of `shares`, the scores of a
    token divided by their sum.

    Source: Switch, arXiv 2101.03961 Eq. 4-6 (k = 1); DeepSeek-V2, arXiv 2405.04434 Eq. 23-25; V3, arXiv
    2412.19437 Eq. 17-20 (a group is a sequence).
    """
    groups, tokens, experts = shares.shape
    places = chosen.flatten(1)
    counts = shares.new_zeros(groups, experts).scatter_add_(1, places, shares.new_ones(places.shape))
    frequency = counts * (experts / (chosen.shape[2] * tokens))
    return alpha * (frequency * shares.mean(1)).sum(-1).mean()
