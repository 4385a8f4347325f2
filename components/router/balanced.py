"""Top-k routing that a bias keeps in balance."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from components.router.scores import Gate, balance_loss, expert_load, load_balance
from components.slots import Aux
from components.spec import Site, searchable


class BalancedRouter(Gate):
    """Top-k of gate scores plus a balancing bias; weights come from the scores alone.

    The bias only selects. `after_step` moves it by `bias_update_speed` towards experts that had less than
    their share of the tokens since the last call; only training forwards count, and none while the gate is
    frozen. Against imbalance within single sequences there is `loss/balance`, a small loss per sequence. With
    packed documents the sequence is the whole row.

    Attributes:
        e_score_correction_bias: [n_routed_experts] buffer, saved with the model.
        load: [n_routed_experts] tokens since the last `after_step`.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of routers that are balanced by a bias."""

        bias_update_speed: float = searchable(0.001, low=1e-4, high=1e-2, log=True)
        """γ of `b += γ sign(mean load - load)`; 0 switches this balancing off."""
        balance_loss_alpha: float = searchable(1e-4, low=1e-5, high=1e-2, log=True)
        """α of the loss per sequence `α Σ_e f_e P_e`; 0 switches it off."""

        def __post_init__(self) -> None:
            for key in ("bias_update_speed", "balance_loss_alpha"):
                if getattr(self, key) < 0:
                    raise ValueError(f"{key}={getattr(self, key)} must not be negative")

    e_score_correction_bias: Tensor
    load: Tensor

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(site)
        self.config = config
        experts = site.dims.n_routed_experts
        self.register_buffer("e_score_correction_bias", torch.zeros(experts))
        self.register_buffer("load", torch.zeros(experts, dtype=torch.int64), persistent=False)

    def forward(
        self, x: Float[Tensor, "b s d"], token_ids: Int[Tensor, "b s"]
    ) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"], Aux]:
        scores = self.scores(x)
        with torch.no_grad():
            chosen = (scores + self.e_score_correction_bias).topk(self.top_k, dim=-1, sorted=False).indices
            load = expert_load(chosen, scores.shape[-1])
            if self.training and self.weight.requires_grad:
                self.load += load
        aux = load_balance(load, self.watched)
        if self.config.balance_loss_alpha:
            shares = scores / scores.sum(-1, keepdim=True)
            aux["loss/balance"] = balance_loss(shares, chosen, self.config.balance_loss_alpha)
        chosen = chosen.flatten(0, 1)
        return self.weights(scores.flatten(0, 1), chosen), chosen, aux

    @torch.no_grad()
    def after_step(self) -> None:
        """Move the bias by one step against the load of all processes, and start counting again."""
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(self.load)
        load = self.load.to(self.e_score_correction_bias.dtype)
        self.e_score_correction_bias += self.config.bias_update_speed * torch.sign(load.mean() - load)
        self.load.zero_()
