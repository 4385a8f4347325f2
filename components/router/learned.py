"""The learned router of DeepSeek-V4, balanced without an auxiliary loss."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from components.registry import register
from components.router.scores import Gate, expert_load, max_violation
from components.slots import Aux
from components.spec import Site, searchable


@register("learned", source="DeepSeek-V4 inference/model.py; loss-free balancing, arXiv 2408.15664")
class LearnedRouter(Gate):
    """Top-k of gate scores plus a balancing bias; weights come from the scores alone.

    The bias only selects. `after_step` moves it by `bias_update_speed` towards experts that had less than
    their share of the tokens since the last call; only training forwards count.

    Attributes:
        e_score_correction_bias: [n_routed_experts] buffer, saved with the model.
        load: [n_routed_experts] tokens since the last `after_step`.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of `router/learned`."""

        bias_update_speed: float = searchable(0.001, low=1e-4, high=1e-2, log=True)
        """γ of `b += γ sign(mean load - load)`; 0 switches balancing off."""

        def __post_init__(self) -> None:
            if self.bias_update_speed < 0:
                raise ValueError(f"bias_update_speed={self.bias_update_speed} must not be negative")

    e_score_correction_bias: Tensor
    load: Tensor

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(site)
        self.speed = config.bias_update_speed
        experts = site.dims.n_routed_experts
        self.register_buffer("e_score_correction_bias", torch.zeros(experts))
        self.register_buffer("load", torch.zeros(experts, dtype=torch.int64), persistent=False)

    def forward(
        self, x: Float[Tensor, "m d"], token_ids: Int[Tensor, "m"]
    ) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"], Aux]:
        scores = self.scores(x)
        with torch.no_grad():
            chosen = (scores + self.e_score_correction_bias).topk(self.top_k, dim=-1, sorted=False).indices
            load = expert_load(chosen, scores.shape[1])
            if self.training:
                self.load += load
        return self.weights(scores, chosen), chosen, max_violation(load)

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the bias by one step against the load of all processes, and start counting again."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.load)
        load = self.load.to(self.e_score_correction_bias.dtype)
        self.e_score_correction_bias += self.speed * torch.sign(load.mean() - load)
        self.load.zero_()
