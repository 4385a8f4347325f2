"""Residuals that attend over depth."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from components.precision import at_least_float32, full_precision
from components.registry import register
from components.residual.streams import read_streams, stream_cost
from components.slots import Collapse, Residual
from components.spec import Cost, Site, searchable


class DepthQuery(nn.Module):
    """A learned query over streams: `softmax_j(query · X_j / rms(X_j))` weighs the streams of a token.

    Attributes:
        query: [d], zeros at first: all streams weigh the same.
    """

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(site.dims.hidden_size))
        self.eps = site.dims.rms_norm_eps

    def attended(self, state: Float[Tensor, "b s n d"]) -> Float[Tensor, "b s d"]:
        """Weighted sum of streams."""
        wide = at_least_float32(state).flatten(0, 1)
        inverse_rms = torch.rsqrt(wide.square().mean(-1) + self.eps)
        with full_precision(wide):
            scores = F.linear(wide, self.query.to(wide.dtype).unsqueeze(0)).squeeze(-1) * inverse_rms
        return read_streams(state, scores.softmax(-1))


class AttendedCollapse(DepthQuery, Collapse):
    """Embedding and blocks to one vector, by a query of its own."""

    def forward(self, state: Float[Tensor, "b s n d"]) -> Float[Tensor, "b s d"]:
        return self.attended(state)


@register("attention_residual", source="Attention Residuals, arXiv 2603.15031 (Block AttnRes)")
class AttentionResidual(DepthQuery, Residual):
    """Each branch reads a softmax-weighted mean of the embedding and of what every block so far has added up.

    The streams are the history: the first is the embedding, the next ones are the sums of branch outputs of
    each block of `layers_per_block` layers; the last one belongs to the block that is under way. A branch
    reads `Σ_j a_j X_j` with `a = softmax_j(query · X_j / rms(X_j))`, and its output adds to the last stream,
    or begins a new one where its layer begins a block. Nothing is carried on but through these reads.

    The weight that the paper's norm of keys has is left out: the query would absorb it.

    Attributes:
        query: [d], one for each branch, zeros at first.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of `residual/attention_residual`."""

        layers_per_block: int = searchable(1, low=1, high=8, log=True)
        """Layers whose outputs are added up before others attend to them. The paper uses about 8 blocks."""

        def __post_init__(self) -> None:
            if self.layers_per_block < 1:
                raise ValueError(f"layers_per_block={self.layers_per_block} must be at least 1")

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__(site)
        self.own = AttentionResidual.streams(config, site.layer.index + 1)

    @staticmethod
    def streams(config: Config, layers: int = 0) -> int:
        return 1 + -(-layers // config.layers_per_block)

    @staticmethod
    def collapse(config: Config, site: Site) -> Collapse:
        return AttendedCollapse(site)

    @staticmethod
    def collapse_cost(config: Config, site: Site, seq_len: int) -> Cost:
        streams = AttentionResidual.streams(config, site.layer.index + 1)
        return _cost(site, 2 * streams, seq_len)

    @staticmethod
    def cost(config: Config, site: Site, seq_len: int) -> Cost:
        """`4 n d` per token with n streams. Where a layer begins a block, its two sites differ by one."""
        layer = site.layer.index
        return _cost(site, sum(AttentionResidual.streams(config, layer + i) for i in (0, 1)), seq_len)

    @staticmethod
    def warnings(config: Config, site: Site, seq_len: int) -> list[str]:
        if config.layers_per_block >= site.dims.num_hidden_layers:
            return [
                f"layers_per_block={config.layers_per_block} makes one block of all "
                f"{site.dims.num_hidden_layers} layers: branches choose between the embedding and the rest"
            ]
        return []

    def read(self, state: Float[Tensor, "b s n d"]) -> tuple[Float[Tensor, "b s d"], Any]:
        return self.attended(state), None

    def write(
        self, state: Float[Tensor, "b s n d"], y: Float[Tensor, "b s d"], carry: Any
    ) -> Float[Tensor, "b s n d"]:
        if state.shape[2] < self.own:
            return torch.cat([state, y.unsqueeze(2)], dim=2)
        return torch.cat([state[:, :, :-1], state[:, :, -1:] + y.unsqueeze(2)], dim=2)


def _cost(site: Site, twice: int, seq_len: int) -> Cost:
    """Cost of a query over half of `twice` streams."""
    d = site.dims.hidden_size
    return stream_cost(d, mapping=twice * d, reading=twice * d, seq_len=seq_len)
