"""DeepSeek's lightning indexer: cheap scores choose the compressed entries that attention reads."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from components.attention.pairs import entry_pairs
from components.compressor.gated import Gated
from components.registry import register
from components.slots import Aux, Indexer, Position
from components.spec import Cost, NoOptions, Site


@register(
    "lightning", source="DeepSeek-V3.2, arXiv 2512.02556; DeepSeek-V4 report §2.3.1 and inference/model.py"
)
class Lightning(Indexer):
    """Top-k of `sum_h w_h ReLU(q_h . k)` over entries of its own small compressor.

    `q = rotate(latent q_b^T)` in H = `index_n_heads` heads of c = `index_head_dim`;
    `w = x weights^T / sqrt(c H)` of either sign; keys `k` by a gated compressor of width c over the same
    blocks. The choice is hard: no gradient of the language-model loss reaches any of these tensors. Of equal
    scores the earliest entry goes first. Where there are not more entries than `layer.topk`, all visible ones
    are chosen and no score is computed.

    Attributes:
        q_b: [H*c, q_lora_rank].
        weights: [H, d].
    """

    Config = NoOptions

    def __init__(self, config: NoOptions, site: Site) -> None:
        super().__init__()
        dims, layer = site.dims, site.layer
        self.ratio, self.topk, self.heads = layer.ratio, layer.topk, dims.index_n_heads
        std, rows = dims.initializer_range, dims.index_n_heads * dims.index_head_dim
        self.q_b = nn.Parameter(torch.empty(rows, dims.q_lora_rank).normal_(0.0, std))
        self.weights = nn.Parameter(torch.empty(dims.index_n_heads, dims.hidden_size).normal_(0.0, std))
        self.compressor = Gated(NoOptions(), site, width=dims.index_head_dim)
        self.scale = rows**-0.5

    @torch.no_grad()
    def forward(
        self,
        x: Float[Tensor, "b s d"],
        query_latent: Float[Tensor, "b s q"],
        visible: Int[Tensor, "s"],
        position: Position,
    ) -> tuple[Bool[Tensor, "b s t"], Aux]:
        entries = x.shape[1] // self.ratio
        seen = torch.arange(entries, device=x.device) < visible.unsqueeze(1)
        if entries <= self.topk:
            return seen.expand(x.shape[0], -1, -1), {}
        scores = self.scores(x, query_latent, position).masked_fill_(~seen, -torch.inf)
        return highest(scores, self.topk).logical_and_(seen), {}

    def scores(
        self, x: Float[Tensor, "b s d"], query_latent: Float[Tensor, "b s q"], position: Position
    ) -> Float[Tensor, "b s t"]:
        """Score of every entry for every query, entries a query must not see included."""
        keys = self.compressor(x, position)
        queries = F.linear(query_latent, self.q_b).unflatten(-1, (self.heads, -1))
        queries = position.rotate(queries, torch.arange(x.shape[1], device=x.device))
        weights = F.linear(x, self.weights) * self.scale
        products = (queries.flatten(1, 2) @ keys.transpose(1, 2)).unflatten(1, (-1, self.heads))
        return (products.relu() * weights.unsqueeze(-1)).sum(2)

    @staticmethod
    def cost(config: NoOptions, site: Site, seq_len: int) -> Cost:
        """`2 (4 d c + q H c + d H)` per token with overlap, `2 H c` per visible pair; all of it frozen."""
        dims, layer = site.dims, site.layer
        compressor = Gated.cost(config, site, seq_len, dims.index_head_dim)
        width, entries = dims.index_n_heads * dims.index_head_dim, seq_len // layer.ratio
        own = width * dims.q_lora_rank + dims.index_n_heads * dims.hidden_size
        runs = entries > layer.topk
        return Cost(
            params=compressor.params + own,
            active_params=compressor.params + own,
            frozen_flops=compressor.flops + 2 * own * seq_len + 2 * width * entry_pairs(seq_len, layer.ratio),
            kernel_flops=runs * (compressor.kernel_flops + 2 * own * seq_len + 2 * width * seq_len * entries),
            kv_bytes=2 * dims.index_head_dim * entries,
            decode_flops=compressor.decode_flops + 2 * own + 2 * width * entries,
        )

    @staticmethod
    def check(config: NoOptions, site: Site, seq_len: int) -> None:
        dims = site.dims
        for key in ("index_n_heads", "index_head_dim"):
            if getattr(dims, key) < 1:
                raise ValueError(f"{key}={getattr(dims, key)} must be at least 1")
        if dims.index_head_dim % 2 or dims.index_head_dim < dims.qk_rope_head_dim:
            raise ValueError(
                f"index_head_dim={dims.index_head_dim} must be even and at least "
                f"qk_rope_head_dim={dims.qk_rope_head_dim}, because its last channels rotate in pairs"
            )
        if site.layer.topk < 1:
            raise ValueError(f"index_topk={site.layer.topk} must be at least 1")

    @staticmethod
    def warnings(config: NoOptions, site: Site, seq_len: int) -> list[str]:
        entries = seq_len // site.layer.ratio
        if site.layer.topk < entries:
            return []
        return [
            f"index_topk={site.layer.topk} has no effect: {seq_len} tokens have only {entries} compressed "
            f"entries at ratio {site.layer.ratio}, and queries attend to all that they may see"
        ]


def highest(scores: Float[Tensor, "... t"], count: int) -> Bool[Tensor, "... t"]:
    """Mask of the `count` highest scores along the last axis; of equal ones the first."""
    least = scores.topk(count, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    above, equal = scores > least, scores == least
    room = count - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1) <= room))
