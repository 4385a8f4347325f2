"""What routers share: gate scores, weights of the chosen experts, their load, and losses that even it out."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from components.precision import at_least_float32, full_precision
from components.slots import Aux, Router
from components.spec import Alarm, Cost, Site

_DEAD = 0.1
_TOKENS_PER_EXPERT = 100
"""On average, below which an expert without tokens may be one by chance."""

DEAD_EXPERTS = Alarm(
    metric="dead_experts",
    above=0.0,
    why="experts that hardly any token chooses: their parameters do nothing, and no gradient changes that",
    source="methodology §E: less than 0.1/E of at least 100 E/k tokens",
)
IMBALANCE = Alarm(
    metric="max_vio",
    above=1.0,
    why="one expert gets more than twice its share of the tokens: the router is collapsing onto few",
    source="methodology §E",
)


BALANCE = {
    "max_vio": "excess of the busiest expert over the mean load, relative to it; 0 is perfect balance",
    "load_entropy": "entropy of the load over that of an even one; 0 where one expert gets everything",
    "dead_experts": "experts with less than a tenth of the mean load, where tokens are enough to tell",
}


class Gate(Router):
    """Scores every expert by a linear map of the token, `score(x Wᵀ)`; DeepSeek-V4's score unless overridden.

    Attributes:
        weight: [n_routed_experts, d].
    """

    diagnostics = BALANCE
    alarms = (IMBALANCE, DEAD_EXPERTS)

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


def load_balance(load: Int[Tensor, "e"], watched: bool) -> Aux:
    """`max_vio`: excess of the busiest expert over the mean load, relative to it (0 is perfect balance).

    Watched, also `load_entropy`, which is 1 in perfect balance and 0 with one expert alone, and where tokens
    are enough to tell, `dead_experts`: how many got less than a tenth of the mean.
    """
    share = load.float() / load.sum()
    experts = len(load)
    aux: Aux = {"diag/max_vio": share.max() * experts - 1}
    if watched:
        aux["diag/load_entropy"] = torch.special.entr(share).sum() / math.log(max(experts, 2))
        if int(load.sum()) >= _TOKENS_PER_EXPERT * experts:
            aux["diag/dead_experts"] = (share * experts < _DEAD).sum().float()
    return aux


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
