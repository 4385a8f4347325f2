"""Manifold-constrained hyper-connections, the residual of DeepSeek-V4."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from components import native
from components.native import streams as fused
from components.registry import register
from components.residual.collapse import HC_HEADS, build_head, check_head, head_cost
from components.residual.mapping import Mapping
from components.residual.sinkhorn import sinkhorn
from components.residual.streams import read_streams, stream_cost, write_streams
from components.residual.watch import GAINS, STREAMS
from components.slots import Aux, Collapse, Residual
from components.spec import Cost, Site, searchable

HC_INITS = ("small_gate", "hf", "identity")


@dataclass(frozen=True, kw_only=True, slots=True)
class MHCConfig:
    """Options of `mhc`, under the official `config.json` names."""

    hc_mult: int = searchable(4, low=1, high=8)
    """Number of residual streams n."""
    hc_sinkhorn_iters: int = searchable(20, low=1, high=20, log=True)
    """Balancing steps; fewer leave rows further from a sum of one."""
    hc_eps: float = 1e-6
    """Added to `pre`, to the softmax and to every divisor of the balancing."""
    hc_init: str = searchable("small_gate", choices=HC_INITS)
    """`small_gate`: gates start at 0.01 (mHC paper); `hf`: at 1 (transformers); `identity`: as
    `small_gate`, but streams keep to themselves and each layer prefers one of them."""
    hc_head: str = searchable("learned", choices=HC_HEADS)
    """How streams end in one vector: by `learned` weights per token, or their `mean` or `sum`."""

    def __post_init__(self) -> None:
        if self.hc_mult < 1:
            raise ValueError(f"hc_mult={self.hc_mult} must be at least 1")
        if self.hc_sinkhorn_iters < 1:
            raise ValueError(f"hc_sinkhorn_iters={self.hc_sinkhorn_iters} must be at least 1")
        if self.hc_init not in HC_INITS:
            raise ValueError(f"hc_init={self.hc_init!r} is not one of {', '.join(HC_INITS)}")
        check_head(self.hc_head)

    @property
    def alpha(self) -> float:
        """Start of all gates."""
        return 1.0 if self.hc_init == "hf" else 0.01


def identity_base(streams: int, layer: int) -> Float[Tensor, "o"]:
    """Biases of pre, post and C with which streams keep to themselves and a layer prefers one of them."""
    own = torch.nn.functional.one_hot(torch.tensor(layer % streams), streams).float()
    return torch.cat([6 * own - 3, own, 5 * torch.eye(streams).flatten()])


@register("mhc", source="mHC, arXiv 2512.24880; DeepSeek-V4 report §2.2 and inference/model.py")
class ManifoldHyperConnections(Mapping, Residual):
    """n streams mixed by doubly stochastic matrices, so that no depth amplifies the signal.

    From all streams of a token: `pre = σ(α₀ z + b) + ε` reads, `post = 2 σ(α₁ z + b)` writes, and the
    Sinkhorn-balanced `C[j, k]` carries stream j to k: `X'_k = post_k F(norm(Σ_j pre_j X_j)) + Σ_j C[j, k]
    X_j`.

    Attributes:
        fn: [(2 + n) n, n d], rows for pre, post and C (row-major); columns are stream-major.
        base: [(2 + n) n].
        scale: [3], gates α of pre, post and C.
    """

    Config = MHCConfig
    diagnostics = STREAMS | {"ds_error": "how far a row or column of C is from a sum of one at most"}
    alarms = GAINS

    def __init__(self, config: MHCConfig, site: Site) -> None:
        n = config.hc_mult
        super().__init__(site, n, outputs=(2 + n) * n, gates=3, alpha=config.alpha)
        self.config = config
        if config.hc_init == "identity":
            with torch.no_grad():
                self.base.copy_(identity_base(n, site.layer.index))

    @staticmethod
    def streams(config: MHCConfig, layers: int = 0) -> int:
        return config.hc_mult

    @staticmethod
    def collapse(config: MHCConfig, site: Site) -> Collapse:
        return build_head(config.hc_head, site, config.hc_mult, alpha=config.alpha, eps=config.hc_eps)

    @staticmethod
    def collapse_cost(config: MHCConfig, site: Site, seq_len: int) -> Cost:
        return head_cost(config.hc_head, site, config.hc_mult, seq_len)

    @staticmethod
    def cost(config: MHCConfig, site: Site, seq_len: int) -> Cost:
        n, d = config.hc_mult, site.dims.hidden_size
        outputs = (2 + n) * n
        params = outputs * n * d + outputs + 3
        mapping = 2 * outputs * n * d + 2 * n * (n + 1) * d
        return stream_cost(params, mapping=mapping, reading=2 * n * d, seq_len=seq_len)

    @staticmethod
    def warnings(config: MHCConfig, site: Site, seq_len: int) -> list[str]:
        if config.hc_mult == 1:
            return ["hc_mult=1: there is one stream and nothing to mix; only reading and writing are gated"]
        return []

    def read(self, state: Float[Tensor, "b s n d"]) -> tuple[Float[Tensor, "b s d"], Any]:
        n, eps = self.config.hc_mult, self.config.hc_eps
        if n <= fused.MAX_STREAMS and native.takes(state, self.fn):
            balance = fused.Balance(self.config.hc_sinkhorn_iters, eps, self.eps)
            y, mixing = fused.read(state.flatten(0, 1), self.fn, self.base, self.scale, balance)
            return y.unflatten(0, state.shape[:2]), mixing
        z, base = self.logits(state), self.base.unsqueeze(1)
        pre = torch.sigmoid(self.scale[0] * z[:n] + base[:n]) + eps
        post = 2 * torch.sigmoid(self.scale[1] * z[n : 2 * n] + base[n : 2 * n])
        logits = (self.scale[2] * z[2 * n :] + base[2 * n :]).unflatten(0, (n, n))
        comb = sinkhorn(logits, self.config.hc_sinkhorn_iters, eps)
        mixing = torch.cat([comb, post.unsqueeze(0)]).permute(2, 1, 0).contiguous()
        return read_streams(state, pre.T.contiguous()), mixing

    def write(
        self, state: Float[Tensor, "b s n d"], y: Float[Tensor, "b s d"], carry: Any
    ) -> Float[Tensor, "b s n d"]:
        return write_streams(state, y, carry)

    @torch.no_grad()
    def diagnose(self, state: Float[Tensor, "b s n d"], carry: Any) -> Aux:
        """`ds_error`: how far a row or column of C is from a sum of one at most, mean over tokens."""
        comb = carry[..., :-1]
        off = torch.cat([comb.sum(1), comb.sum(2)], dim=1).sub(1).abs()
        return {"diag/ds_error": off.amax(1).mean()}
