"""Hyper-connections whose mixing is exactly doubly stochastic, without balancing."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from components.precision import full_precision
from components.registry import register
from components.residual.collapse import HC_HEADS, build_head, check_head, head_cost
from components.residual.mapping import Mapping
from components.residual.streams import read_streams, stream_cost, write_streams
from components.residual.watch import GAINS, STREAMS
from components.slots import Collapse, Residual
from components.spec import Cost, Site, searchable

HC_INITS = ("small_gate", "identity")


@register("mhc_lite", source="mHC-lite, arXiv 2601.05732 §3")
class ManifoldHyperConnectionsLite(Mapping, Residual):
    """`mhc` with a weighted mean of all n! permutation matrices for its balanced matrix.

    `C = Σ_p softmax(α₂ z + b)_p P_p`. Every doubly stochastic matrix is such a mean (Birkhoff), and every
    such mean is doubly stochastic, to rounding: there is nothing to iterate. Reading and writing are as in
    `mhc`: `X'_k = 2σ(α₁ z_k + b_k) F(norm(Σ_j (σ(α₀ z_j + b_j) + ε) X_j)) + Σ_j C[j, k] X_j`. Permutations
    are in lexicographic order, the identity first.

    Attributes:
        fn: [2n + n!, n d], rows for pre, post and the permutations; columns are stream-major.
        base: [2n + n!].
        scale: [3], gates α of pre, post and C.
    """

    diagnostics = STREAMS
    alarms = GAINS

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of `residual/mhc_lite`."""

        hc_mult: int = searchable(4, low=2, high=4)
        """Number of residual streams n; there are n! permutations, so at most 4."""
        hc_eps: float = 1e-6
        """Added to `pre`."""
        hc_init: str = searchable("small_gate", choices=HC_INITS)
        """`small_gate`: gates start at 0.01 and all permutations weigh the same; `identity`: as `small_gate`,
        but streams keep to themselves and each layer prefers one of them."""
        hc_head: str = searchable("learned", choices=HC_HEADS)
        """How streams end in one vector."""

        def __post_init__(self) -> None:
            if not 2 <= self.hc_mult <= 4:
                raise ValueError(
                    f"hc_mult={self.hc_mult} must be 2, 3 or 4: there is a weight for each of n! permutations"
                )
            if self.hc_init not in HC_INITS:
                raise ValueError(f"hc_init={self.hc_init!r} is not one of {', '.join(HC_INITS)}")
            check_head(self.hc_head)

    def __init__(self, config: Config, site: Site) -> None:
        n = config.hc_mult
        count = math.factorial(n)
        super().__init__(site, n, outputs=2 * n + count, gates=3, alpha=0.01)
        self.config = config
        if config.hc_init == "identity":
            with torch.no_grad():
                own = torch.nn.functional.one_hot(torch.tensor(site.layer.index % n), n).float()
                # The identity then outweighs all other permutations together by e^5.
                first = torch.zeros(count)
                first[0] = 5 + math.log(count - 1)
                self.base.copy_(torch.cat([6 * own - 3, own, first]))

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
        """`2 (2n + n!) n d` per token for the weights, `2 n! n²` for the mean, the rest as `mhc`."""
        n, d, count = config.hc_mult, site.dims.hidden_size, math.factorial(config.hc_mult)
        outputs = 2 * n + count
        mapping = 2 * outputs * n * d + 2 * count * n * n + 2 * n * (n + 1) * d
        params = outputs * n * d + outputs + 3
        return stream_cost(params, mapping=mapping, reading=2 * n * d, seq_len=seq_len)

    def read(self, state: Float[Tensor, "b s n d"]) -> tuple[Float[Tensor, "b s d"], Any]:
        n = self.config.hc_mult
        z, base = self.logits(state), self.base.unsqueeze(1)
        pre = torch.sigmoid(self.scale[0] * z[:n] + base[:n]) + self.config.hc_eps
        post = 2 * torch.sigmoid(self.scale[1] * z[n : 2 * n] + base[n : 2 * n])
        shares = (self.scale[2] * z[2 * n :] + base[2 * n :]).softmax(0)
        with full_precision(shares):
            comb = (_permutations(n).to(shares).flatten(1).T @ shares).unflatten(0, (n, n))
        mixing = torch.cat([comb, post.unsqueeze(0)]).permute(2, 1, 0).contiguous()
        return read_streams(state, pre.T.contiguous()), mixing

    def write(
        self, state: Float[Tensor, "b s n d"], y: Float[Tensor, "b s d"], carry: Any
    ) -> Float[Tensor, "b s n d"]:
        return write_streams(state, y, carry)


def _permutations(n: int) -> Float[Tensor, "p n n"]:
    """All permutation matrices: entry j, k of matrix p is 1 where stream j goes to stream k."""
    return torch.eye(n)[torch.tensor(list(itertools.permutations(range(n))))]
