"""Hyper-connections without a constraint on how streams mix."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from components.precision import at_least_float32, full_precision
from components.registry import register
from components.residual.collapse import HC_HEADS, build_head, check_head, head_cost
from components.residual.streams import read_streams, stream_cost, write_streams
from components.residual.watch import GAINS, STREAMS
from components.slots import Collapse, Residual
from components.spec import Cost, Site, searchable


@register("hyper_connections", source="Zhu et al. 2024, arXiv 2409.19606; as in mHC, arXiv 2512.24880, Eq. 5")
class HyperConnections(Residual):
    """n streams that each layer reads, writes and mixes freely: `X <- B X + post ⊗ F(norm(pre · X))`.

    With x̃ each stream divided by its own root mean square, `pre = α₀ tanh(θ_pre x̃ᵀ) + b_pre`, `post`
    likewise and `B = α₂ tanh(θ_res x̃ᵀ) + b_res`. At the start θ = 0, each layer reads one stream (layer
    index modulo n), writes to all of them and mixes none. B is free to amplify, which is what mHC forbids.

    Attributes:
        theta: [2 + n, d], rows for pre, post and the n outputs of B.
        base_pre, base_post: [n].
        base_res: [n * n]; row k, column j leads from stream j to stream k.
        scale: [3], α of pre, post and B.
    """

    diagnostics = STREAMS
    alarms = GAINS

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of `hyper_connections`."""

        hc_mult: int = searchable(4, low=1, high=8)
        """Number of residual streams n."""
        alpha_init: float = searchable(0.01, low=1e-3, high=1.0, log=True)
        """Start of the gates of the token-dependent part."""
        hc_head: str = searchable("sum", choices=HC_HEADS)
        """How streams end in one vector: their `sum` or `mean`, or by `learned` weights per token."""

        def __post_init__(self) -> None:
            if self.hc_mult < 1:
                raise ValueError(f"hc_mult={self.hc_mult} must be at least 1")
            check_head(self.hc_head)

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__()
        n, d = config.hc_mult, site.dims.hidden_size
        self.eps = site.dims.rms_norm_eps
        self.theta = nn.Parameter(torch.zeros(2 + n, d))
        self.wide = ("theta",)
        self.base_pre = nn.Parameter(torch.zeros(n))
        self.base_post = nn.Parameter(torch.ones(n))
        self.base_res = nn.Parameter(torch.eye(n).flatten())
        self.scale = nn.Parameter(torch.full((3,), config.alpha_init))
        with torch.no_grad():
            self.base_pre[site.layer.index % n] = 1.0

    @staticmethod
    def streams(config: Config, layers: int = 0) -> int:
        return config.hc_mult

    @staticmethod
    def collapse(config: Config, site: Site) -> Collapse:
        return build_head(config.hc_head, site, config.hc_mult, alpha=config.alpha_init, eps=0.0)

    @staticmethod
    def collapse_cost(config: Config, site: Site, seq_len: int) -> Cost:
        return head_cost(config.hc_head, site, config.hc_mult, seq_len)

    @staticmethod
    def cost(config: Config, site: Site, seq_len: int) -> Cost:
        n, d = config.hc_mult, site.dims.hidden_size
        params = (2 + n) * d + 2 * n + n * n + 3
        mapping = 2 * n * d * (n + 2) + 2 * n * (n + 1) * d
        return stream_cost(params, mapping=mapping, reading=2 * n * d, seq_len=seq_len)

    def read(self, state: Float[Tensor, "b s n d"]) -> tuple[Float[Tensor, "b s d"], Any]:
        streams = at_least_float32(state).flatten(0, 1)
        n = streams.shape[1]
        inverse_rms = torch.rsqrt(streams.square().mean(-1, keepdim=True) + self.eps)
        with full_precision(streams):
            gates = torch.tanh(streams @ self.theta.T.to(streams.dtype) * inverse_rms)
        pre = self.scale[0] * gates[..., 0] + self.base_pre
        post = self.scale[1] * gates[..., 1] + self.base_post
        res = self.scale[2] * gates[..., 2:].transpose(1, 2) + self.base_res.view(n, n)
        return read_streams(state, pre), torch.cat([res, post.unsqueeze(2)], dim=2)

    def write(
        self, state: Float[Tensor, "b s n d"], y: Float[Tensor, "b s d"], carry: Any
    ) -> Float[Tensor, "b s n d"]:
        return write_streams(state, y, carry)
