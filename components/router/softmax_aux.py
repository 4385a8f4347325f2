"""Softmax routing that a loss keeps in balance."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from components.registry import register
from components.router.scores import Gate, balance_loss, expert_load, load_balance
from components.slots import Aux
from components.spec import Site, searchable


@register("softmax_aux", source="Switch, arXiv 2101.03961 §2.2; DeepSeek-V2, arXiv 2405.04434 §2.2.3")
class SoftmaxRouter(Gate):
    """Top-k of `softmax(x Wᵀ)` over experts; `loss/balance` evens out the load, and nothing else does.

    Weights are the softmax values times `routed_scaling_factor`. The loss is `α Σ_e f_e P_e` (`balance_loss`)
    over the tokens of the whole batch, or of each sequence.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of `router/softmax_aux`; two names are from DeepSeek-V2's `config.json`."""

        balance_loss_alpha: float = searchable(0.01, low=1e-4, high=0.1, log=True)
        """α of the balancing loss; 0 switches it off. Switch: 0.01, DeepSeek-V2: 0.003."""
        seq_aux: bool = searchable(False, choices=(False, True))
        """Whether each sequence is to be in balance by itself, rather than the batch."""
        norm_topk_prob: bool = searchable(False, choices=(False, True))
        """Whether weights are made to sum to `routed_scaling_factor`."""

        def __post_init__(self) -> None:
            if self.balance_loss_alpha < 0:
                raise ValueError(f"balance_loss_alpha={self.balance_loss_alpha} must not be negative")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(site)
        self.config = config

    def score(self, logits: Float[Tensor, "... e"]) -> Float[Tensor, "... e"]:
        """Logits to affinities."""
        return logits.softmax(-1)

    def forward(
        self, x: Float[Tensor, "b s d"], token_ids: Int[Tensor, "b s"]
    ) -> tuple[Float[Tensor, "m k"], Int[Tensor, "m k"], Aux]:
        scores = self.scores(x)
        with torch.no_grad():
            chosen = scores.topk(self.top_k, dim=-1, sorted=False).indices
            aux = load_balance(expert_load(chosen, scores.shape[-1]), self.watched)
        flat, picks = scores.flatten(0, 1), chosen.flatten(0, 1)
        if self.config.balance_loss_alpha:
            whole = (scores, chosen) if self.config.seq_aux else (flat.unsqueeze(0), picks.unsqueeze(0))
            aux["loss/balance"] = balance_loss(*whole, self.config.balance_loss_alpha)
        if self.config.norm_topk_prob:
            return self.weights(flat, picks), picks, aux
        return flat.gather(1, picks) * self.routed_scaling_factor, picks, aux

    @staticmethod
    def warnings(config: Config, site: Site, seq_len: int) -> list[str]:
        found = Gate.warnings(config, site, seq_len)
        if config.norm_topk_prob and site.dims.num_experts_per_tok == 1:
            found.append(
                "norm_topk_prob with one expert per token: its weight is constant, scores only balance"
            )
        return found
