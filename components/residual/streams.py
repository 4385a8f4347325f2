"""Weighted reading from and writing to parallel residual streams: one small matrix product per token each."""

import torch
from jaxtyping import Float
from torch import Tensor


def read_streams(state: Float[Tensor, "b s n d"], weights: Float[Tensor, "m n"]) -> Float[Tensor, "b s d"]:
    """Weighted sum over streams, with weights per token (m = b * s)."""
    b, s, n, d = state.shape
    mixed = torch.bmm(weights.to(state.dtype).view(-1, 1, n), state.reshape(-1, n, d))
    return mixed.view(b, s, d)


def write_streams(
    state: Float[Tensor, "b s n d"], y: Float[Tensor, "b s d"], mixing: Float[Tensor, "m n p"]
) -> Float[Tensor, "b s n d"]:
    """New streams as combinations of the old ones and the branch's output.

    Args:
        mixing: per token, rows are new streams; columns are the n old streams, then the branch (p = n + 1).
    """
    sources = torch.cat([state, y.unsqueeze(2)], dim=2).flatten(0, 1)
    return torch.bmm(mixing.to(state.dtype), sources).view_as(state)
