"""What learned and hash routers share: gate scores, weights of the chosen experts, and their load."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from components.precision import at_least_float32, full_precision
from components.slots import Aux, Router
from components.spec import Cost, Site


class Gate(Router):
    """Scores every expert with `sqrt(softplus(x Wᵀ))` and weights the chosen ones by them.

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

    def scores(self, x: Float[Tensor, "m d"]) -> Float[Tensor, "m e"]:
        """Affinities in at least 32 bits."""
        x = at_least_float32(x)
        with full_precision(x):
            return F.softplus(F.linear(x, self.weight.to(x.dtype))).sqrt()

    def weights(self, scores: Float[Tensor, "m e"], chosen: Int[Tensor, "m k"]) -> Float[Tensor, "m k"]:
        """Scores of the chosen experts, summing to `routed_scaling_factor`."""
        picked = scores.gather(1, chosen)
        return picked * (self.routed_scaling_factor / (picked.sum(-1, keepdim=True) + 1e-20))

    @staticmethod
    def cost(config: object, site: Site, seq_len: int) -> Cost:
        params = site.dims.n_routed_experts * site.dims.hidden_size
        return Cost(
            params=params,
            active_params=params,
            flops=2 * params * seq_len,
            kernel_flops=2 * params * seq_len,
            decode_flops=2 * params,
        )

    @staticmethod
    def check(config: object, site: Site, seq_len: int) -> None:
        dims = site.dims
        if not 1 <= dims.num_experts_per_tok <= dims.n_routed_experts:
            raise ValueError(
                f"num_experts_per_tok={dims.num_experts_per_tok} must be between 1 and "
                f"n_routed_experts={dims.n_routed_experts}"
            )

    @staticmethod
    def warnings(config: object, site: Site, seq_len: int) -> list[str]:
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
