"""Experts that choose their tokens. Not causal."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from components.registry import register
from components.router.scores import Gate
from components.slots import Aux
from components.spec import NoOptions, Site

UNROUTED = {"unrouted": "share of the tokens that no expert took"}


@register("expert_choice", source="Zhou et al. 2022, arXiv 2202.09368 §3.2; each sequence by itself")
class ExpertChoiceRouter(Gate):
    """Each expert takes the tokens of a sequence that score highest with it: in balance without loss or bias.

    **Not causal**: whether a token is taken depends on the scores of later ones. Losses of models that have
    this therefore compare with those of others only as an upper bound of what balance is worth, and such
    models cannot decode. The token that is taken may have any number of experts, or none.

    `scores = softmax(x Wᵀ)` over experts, weights are scores times `routed_scaling_factor`. A sequence of s
    tokens has s k places, `k = num_experts_per_tok`: each expert has `s k // E` of them, the first
    `s k mod E` one more, so that exactly as much is computed as if tokens chose. With packed documents the
    sequence is the whole row.
    """

    Config = NoOptions
    diagnostics = UNROUTED
    alarms = ()
    causal = False

    def __init__(self, config: NoOptions, site: Site) -> None:
        super().__init__(site)

    def score(self, logits: Float[Tensor, "... e"]) -> Float[Tensor, "... e"]:
        """Logits to affinities."""
        return logits.softmax(-1)

    def forward(
        self, x: Float[Tensor, "b s d"], token_ids: Int[Tensor, "b s"]
    ) -> tuple[Float[Tensor, "m e"], Int[Tensor, "m e"], Aux]:
        scores = self.scores(x)
        length, experts = scores.shape[1:]
        places, more = divmod(length * self.top_k, experts)
        numbers = torch.arange(experts, device=x.device)
        with torch.no_grad():
            best = scores.topk(min(places + 1, length), dim=1).indices
            rank = torch.arange(best.shape[1], device=x.device).unsqueeze(1)
            within = (rank < places + (numbers < more)).expand_as(best)
            taken = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, best, within).flatten(0, 1)
            aux = {"diag/unrouted": (~taken.any(-1)).float().mean()}
        weights = scores.flatten(0, 1) * self.routed_scaling_factor
        return weights.masked_fill(~taken, 0.0), torch.where(taken, numbers, experts), aux

    @staticmethod
    def warnings(config: NoOptions, site: Site, seq_len: int) -> list[str]:
        text = (
            "not causal: experts choose among all tokens of a sequence, so that a token's output depends on "
            "later ones; losses are too good, and the model cannot generate"
        )
        return [text, *Gate.warnings(config, site, seq_len)]
