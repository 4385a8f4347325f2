"""Attention as the teacher of an indexer: what it should learn, and how much of it a choice keeps."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from components import native
from components.native import indexer as fused
from components.precision import at_least_float32


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


def mass_recall(
    mass: Float[Tensor, "b s t"], chosen: Bool[Tensor, "b s t"], queries: Bool[Tensor, "#b s"]
) -> Float[Tensor, ""]:
    """Share of attention over all visible entries that goes to the chosen ones, mean over `queries`."""
    total = mass.sum(-1).clamp_min(torch.finfo(mass.dtype).tiny)
    share = mass.masked_fill(~chosen, 0.0).sum(-1) / total
    counted = queries.expand_as(share)
    return share.masked_fill(~counted, 0.0).sum() / counted.sum().clamp_min(1)
