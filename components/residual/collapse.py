"""How several residual streams end in one vector."""

import torch
from jaxtyping import Float
from torch import Tensor

from components.residual.mapping import Mapping
from components.residual.streams import read_streams, stream_cost
from components.slots import Collapse
from components.spec import Cost, Site

HC_HEADS = ("learned", "mean", "sum")


class LearnedCollapse(Mapping, Collapse):
    """Streams to one vector by learned, token-dependent weights: `Σ_j (σ(α z_j + b_j) + ε) X_j`."""

    def __init__(self, site: Site, streams: int, alpha: float, eps: float) -> None:
        super().__init__(site, streams, outputs=streams, gates=1, alpha=alpha)
        self.hc_eps = eps
        self.row_blocks = {"fn": 0}  # part of the prediction head

    def forward(self, state: Float[Tensor, "b s n d"]) -> Float[Tensor, "b s d"]:
        weights = torch.sigmoid(self.scale * self.logits(state) + self.base.unsqueeze(1)) + self.hc_eps
        return read_streams(state, weights.T.contiguous())


class MeanStreams(Collapse):
    """The mean of all streams."""

    def forward(self, state: Float[Tensor, "b s n d"]) -> Float[Tensor, "b s d"]:
        return state.mean(2)


class SumStreams(Collapse):
    """The sum of all streams."""

    def forward(self, state: Float[Tensor, "b s n d"]) -> Float[Tensor, "b s d"]:
        return state.sum(2)


def check_head(kind: str) -> None:
    """Raise `ValueError` for a collapse that does not exist."""
    if kind not in HC_HEADS:
        raise ValueError(f"hc_head={kind!r} is not one of {', '.join(HC_HEADS)}")


def build_head(kind: str, site: Site, streams: int, *, alpha: float, eps: float) -> Collapse:
    """The collapse of that name; `alpha` and `eps` are those of learned weights."""
    if kind == "learned":
        return LearnedCollapse(site, streams, alpha, eps)
    return MeanStreams() if kind == "mean" else SumStreams()


def head_cost(kind: str, site: Site, streams: int, seq_len: int) -> Cost:
    """Cost of what `build_head` builds; additions without weights do not count."""
    if kind != "learned":
        return Cost()
    n, d = streams, site.dims.hidden_size
    return stream_cost(n * n * d + n + 1, mapping=2 * n * n * d, reading=2 * n * d, seq_len=seq_len)
