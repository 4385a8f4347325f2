"""Compressed runs of native sparse attention: tokens to entries, attention to them, shares of blocks."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from components.precision import at_least_float32


class RunMlp(nn.Module):
    """One vector of every run of tokens: `out GELU(in vec(tokens + position))`, alike for all heads.

    Attributes:
        position: [run, c], zeros at first.
        inner: [c, run*c].
        outer: [c, c].
    """

    def __init__(self, run: int, stride: int, width: int, std: float) -> None:
        super().__init__()
        self.run, self.stride = run, stride
        self.position = nn.Parameter(torch.zeros(run, width))
        self.row_blocks = {"position": 0}
        self.inner = nn.Parameter(torch.empty(width, run * width).normal_(0.0, std))
        self.outer = nn.Parameter(torch.empty(width, width).normal_(0.0, std))

    def forward(self, tokens: Float[Tensor, "b s g c"]) -> Float[Tensor, "b t g c"]:
        """Entries of all complete runs; tokens after the last one are left out."""
        pieces, parts = tokens.shape[1] // self.stride, self.run // self.stride
        count = max(0, pieces - parts + 1)
        pieces = tokens[:, : pieces * self.stride].unflatten(1, (pieces, self.stride)).transpose(2, 3)
        runs = torch.cat([pieces[:, i : i + count] for i in range(parts)], dim=3) + self.position
        return F.linear(F.gelu(F.linear(runs.flatten(3), self.inner)), self.outer)

    @staticmethod
    def params(run: int, width: int) -> int:
        """Number of parameters."""
        return run * width + width**2 * (run + 1)

    @staticmethod
    def flops(run: int, width: int) -> int:
        """FLOPs of one entry of one head."""
        return 2 * width**2 * (run + 1)


def attend_runs(
    queries: Float[Tensor, "n q h c"],
    keys: Float[Tensor, "n t c"],
    values: Float[Tensor, "n t c"],
    ended: Int[Tensor, "q"],
) -> tuple[Float[Tensor, "n q h c"], Float[Tensor, "n q t"]]:
    """Attention to the first `ended` entries, zero without any; and what each entry got of all heads."""
    count, length, heads, width = queries.shape
    rows = (queries * width**-0.5).reshape(count, length * heads, width)
    logits = at_least_float32((rows @ keys.transpose(1, 2)).view(count, length, heads, -1))
    hidden = torch.arange(keys.shape[1], device=keys.device) >= ended.unsqueeze(1)
    # A softmax over nothing is not a number: queries before the first entry see all of them and then none.
    none = (ended == 0).view(-1, 1, 1)
    weights = logits.masked_fill(hidden.unsqueeze(1) & ~none, -torch.inf).softmax(dim=-1)
    weights = weights.masked_fill(none, 0.0)
    mixed = (weights.to(values.dtype).flatten(1, 2) @ values).view(count, length, heads, -1)
    return mixed, weights.detach().sum(2)


def run_share(
    share: Float[Tensor, "... t"], parts: int, per_block: int, blocks: int
) -> Float[Tensor, "... n"]:
    """Shares of runs to shares of blocks: for each stride of a block, those of all runs over it.

    Args:
        parts: strides in a run.
        per_block: strides in a block.
        blocks: number of blocks; strides that no complete run covers count nothing.
    """
    pieces = share.new_zeros(*share.shape[:-1], max(blocks * per_block, share.shape[-1] + parts - 1))
    for i in range(parts):
        pieces[..., i : i + share.shape[-1]] += share
    return pieces[..., : blocks * per_block].unflatten(-1, (blocks, per_block)).sum(-1)
