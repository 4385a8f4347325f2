"""Attention as the teacher of an indexer: what it should learn, and how much of it a choice keeps."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from components import native
from components.indexer.dense import everything
from components.native import indexer as fused
from components.precision import at_least_float32
from components.slots import Aux


def divergence(
    scores: Float[Tensor, "b s t"], mass: Float[Tensor, "b s t"], candidates: Bool[Tensor, "b s t"]
) -> Float[Tensor, ""]:
    """`KL(p || softmax(scores))` over candidates, mean over the queries that have one.

    Args:
        mass: what attention gives to each candidate, summed over heads; p is its share of their total. So
            window and sink take part in the teacher's softmax, and no head is normalised by itself.
    """
    if native.takes(scores, mass):
        return fused.divergence(scores, mass, candidates)
    has = candidates.any(-1)
    # A query without candidates would make its softmax and every gradient nan; it takes no part in the mean.
    hidden = ~candidates & has.unsqueeze(-1)
    log_q = at_least_float32(scores).masked_fill(hidden, -torch.inf).log_softmax(-1).masked_fill(hidden, 0.0)
    kept = mass.masked_fill(~candidates, 0.0)
    p = kept / kept.sum(-1, keepdim=True).clamp_min(torch.finfo(kept.dtype).tiny)
    terms = (torch.xlogy(p, p) - p * log_q).sum(-1)
    return terms.sum() / has.sum().clamp_min(1)


CHOICE = {
    "indexer_mass_recall": "share of attention over all visible entries that goes to the chosen ones",
    "indexer_recall": "share of the best `topk` entries that are among the chosen",
    "indexer_skill": "the same between a random choice (0) and the best one (1)",
}


@torch.no_grad()
def choice_quality(
    mass: Float[Tensor, "b s t"], chosen: Bool[Tensor, "b s t"], visible: Int[Tensor, "*b s"], topk: int
) -> Aux:
    """How good a choice of `topk` entries is, mean over queries that see more; not a number without any.

    `indexer_mass_recall`: share of attention over all visible entries that goes to the chosen ones.
    `indexer_recall`: share of the `topk` entries with most of it that are among the chosen.
    `indexer_skill`: where that stands between a random choice (0) and the best one (1).

    Args:
        mass: what attention over all visible entries gives to each.
        visible: number of entries that each query may see.
    """
    given = mass.masked_fill(~everything(len(mass), mass.shape[2], visible), -1.0)
    best = torch.zeros_like(chosen).scatter_(-1, given.topk(topk, dim=-1).indices, True)
    total = given.clamp_min(0).sum(-1).clamp_min(torch.finfo(mass.dtype).tiny)
    share = mass.masked_fill(~chosen, 0.0).sum(-1) / total
    recall = (best & chosen).sum(-1).to(mass.dtype) / topk
    chance = topk / visible.clamp_min(topk + 1).to(mass.dtype)
    counted = (visible > topk).expand_as(share).to(mass.dtype)

    def mean(values: Float[Tensor, "b s"]) -> Float[Tensor, ""]:
        return (values * counted).sum() / counted.sum()

    return {
        "diag/indexer_mass_recall": mean(share),
        "diag/indexer_recall": mean(recall),
        "diag/indexer_skill": mean((recall - chance) / (1 - chance)),
    }
