"""Manifold-constrained hyper-connections whose maps do not depend on the token."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from components.registry import register
from components.residual.collapse import HC_HEADS, build_head, check_head, head_cost
from components.residual.mhc import identity_base
from components.residual.sinkhorn import sinkhorn
from components.residual.streams import read_streams, stream_cost, write_streams
from components.residual.watch import GAINS, STREAMS
from components.slots import Collapse, Residual
from components.spec import Cost, Site, searchable


@register("mhc_static", source="mHC, arXiv 2512.24880 §4, with its gates α fixed at zero")
class StaticManifoldHyperConnections(Residual):
    """`mhc` with learned constants for its maps: what is left of it when they do not look at the token.

    `pre = σ(b_pre) + ε`, `post = 2 σ(b_post)` and `C = sinkhorn(b_comb)`, the same for all tokens:
    `X'_k = post_k F(norm(Σ_j pre_j X_j)) + Σ_j C[j, k] X_j`. Equal constants would leave equal streams equal
    for ever, so they start as `mhc` with `hc_init=identity` does: streams keep to themselves, and each layer
    prefers one of them.

    Attributes:
        base: [(2 + n) n], for pre, post and C (row-major).
    """

    diagnostics = STREAMS
    alarms = GAINS

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of `residual/mhc_static`, under the official `config.json` names."""

        hc_mult: int = searchable(4, low=2, high=8)
        """Number of residual streams n."""
        hc_sinkhorn_iters: int = searchable(20, low=1, high=20, log=True)
        """Balancing steps; fewer leave rows further from a sum of one."""
        hc_eps: float = 1e-6
        """Added to `pre`, to the softmax and to every divisor of the balancing."""
        hc_head: str = searchable("learned", choices=HC_HEADS)
        """How streams end in one vector; `learned` weights depend on the token."""

        def __post_init__(self) -> None:
            if self.hc_mult < 2:
                raise ValueError(f"hc_mult={self.hc_mult} must be at least 2: one stream has nothing to mix")
            if self.hc_sinkhorn_iters < 1:
                raise ValueError(f"hc_sinkhorn_iters={self.hc_sinkhorn_iters} must be at least 1")
            check_head(self.hc_head)

    def __init__(self, config: Config, site: Site) -> None:
        super().__init__()
        self.config = config
        self.base = nn.Parameter(identity_base(config.hc_mult, site.layer.index))

    @staticmethod
    def streams(config: Config, layers: int = 0) -> int:
        return config.hc_mult

    @staticmethod
    def collapse(config: Config, site: Site) -> Collapse:
        return build_head(config.hc_head, site, config.hc_mult, alpha=0.01, eps=config.hc_eps)

    @staticmethod
    def collapse_cost(config: Config, site: Site, seq_len: int) -> Cost:
        return head_cost(config.hc_head, site, config.hc_mult, seq_len)

    @staticmethod
    def cost(config: Config, site: Site, seq_len: int) -> Cost:
        n, d = config.hc_mult, site.dims.hidden_size
        return stream_cost((2 + n) * n, mapping=2 * n * (n + 1) * d, reading=2 * n * d, seq_len=seq_len)

    def read(self, state: Float[Tensor, "b s n d"]) -> tuple[Float[Tensor, "b s d"], Any]:
        n, eps, tokens = self.config.hc_mult, self.config.hc_eps, state.shape[0] * state.shape[1]
        pre = torch.sigmoid(self.base[:n]) + eps
        post = 2 * torch.sigmoid(self.base[n : 2 * n])
        comb = sinkhorn(self.base[2 * n :].view(n, n, 1), self.config.hc_sinkhorn_iters, eps)[..., 0]
        mixing = torch.cat([comb, post.unsqueeze(0)]).T
        return read_streams(state, pre.expand(tokens, -1)), mixing.expand(tokens, -1, -1)

    def write(
        self, state: Float[Tensor, "b s n d"], y: Float[Tensor, "b s d"], carry: Any
    ) -> Float[Tensor, "b s n d"]:
        return write_streams(state, y, carry)
