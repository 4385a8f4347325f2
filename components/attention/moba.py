"""Mixture of block attention (MoBA)."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from components import cache as caches
from components.attention.blockwise import check_blocks, decoded_tokens, to_tokens
from components.attention.core import attend
from components.attention.dense import DenseAttention
from components.attention.pairs import block_pairs, earlier_blocks
from components.cache import Cache
from components.indexer.lightning import highest
from components.registry import register
from components.slots import Attention, Aux, OutputProjection, Position, Sink
from components.spec import Cost, NoOptions, Site


@register("moba", source="MoBA, arXiv 2502.13189 §2.2")
class MixtureOfBlockAttention(Attention):
    """Full attention to few blocks: the query's own, and those whose mean key fits the query best.

        score(t, j) = q_t . mean(k in block j)              per query head, blocks before the query's own
        o_t = softmax([q_t k^T / sqrt(c), sink]) v          k, v: tokens of the chosen blocks up to t

    Blocks have `layer.ratio` tokens; a query attends to `layer.topk` of them, its own included and always
    chosen. Of equal scores the earliest block goes first. The choice is hard: no gradient passes through
    the scores. Where there are not more blocks than `layer.topk`, this is `dense` attention and no score is
    computed. Keys and values are shared among heads as in `dense`, by `num_key_value_heads`.

    Attributes:
        q: [h*c, d].
        k: [num_key_value_heads*c, d].
        v: [num_key_value_heads*c, d].
    """

    Config = NoOptions
    uses = ("position", "sink", "output_projection")

    def __init__(
        self,
        config: NoOptions,
        site: Site,
        *,
        position: Position,
        sink: Sink,
        output_projection: OutputProjection,
    ) -> None:
        super().__init__()
        dims, layer = site.dims, site.layer
        self.width, self.heads, self.shared = (
            dims.head_dim,
            dims.num_attention_heads,
            dims.num_key_value_heads,
        )
        self.block, self.topk = layer.ratio, layer.topk

        def matrix(heads: int) -> nn.Parameter:
            rows = heads * dims.head_dim
            return nn.Parameter(torch.empty(rows, dims.hidden_size).normal_(0.0, dims.initializer_range))

        self.q, self.k, self.v = matrix(self.heads), matrix(self.shared), matrix(self.shared)
        self.position = position
        self.sink = sink
        self.output_projection = output_projection

    def forward(
        self, x: Float[Tensor, "b s d"], real: Bool[Tensor, "b s"] | None = None
    ) -> tuple[Float[Tensor, "b s d"], Aux]:
        length = x.shape[1]
        positions = torch.arange(length, device=x.device)
        queries, keys, values = self._project(x, positions)
        means = self._means(keys, 0, (length - 1) // self.block)
        return self._attend(queries, keys, values, means, positions), {}

    def step(
        self, x: Float[Tensor, "b s d"], cache: Cache | None = None
    ) -> tuple[Float[Tensor, "b s d"], Cache]:
        before = caches.length(cache)
        length = before + x.shape[1]
        positions = torch.arange(before, length, device=x.device)
        queries, keys, values = self._project(x, positions)
        keys, values = caches.appended(cache, "k", keys), caches.appended(cache, "v", values)
        means = self._means(keys, before // self.block, length // self.block)
        means = caches.appended(cache, "means", means)
        y = self._attend(queries, keys, values, means, positions)
        return y, Cache(length, {"k": keys, "v": values, "means": means})

    def _project(
        self, x: Float[Tensor, "b s d"], positions: Int[Tensor, "s"]
    ) -> tuple[Float[Tensor, "b s h c"], Float[Tensor, "b s g c"], Float[Tensor, "b s g c"]]:
        queries, keys, values = (
            F.linear(x, matrix).unflatten(-1, (-1, self.width)) for matrix in (self.q, self.k, self.v)
        )
        return self.position.rotate(queries, positions), self.position.rotate(keys, positions), values

    def _means(self, keys: Float[Tensor, "b s g c"], first: int, end: int) -> Float[Tensor, "b n g c"]:
        """Mean keys of the complete blocks from `first` to `end`."""
        blocks = keys[:, first * self.block : end * self.block]
        return blocks.unflatten(1, (end - first, self.block)).mean(2)

    def _attend(
        self,
        queries: Float[Tensor, "b q h c"],
        keys: Float[Tensor, "b s g c"],
        values: Float[Tensor, "b s g c"],
        means: Float[Tensor, "b n g c"],
        positions: Int[Tensor, "q"],
    ) -> Float[Tensor, "b q d"]:
        batch, length = keys.shape[:2]
        places, query = torch.arange(length, device=keys.device), positions.unsqueeze(1)
        own = (query // self.block == places // self.block) & (places <= query)
        chosen = self.choose(queries, means, positions).flatten(0, 1)
        seen = to_tokens(chosen, self.block, length) | own
        # Every head chooses blocks of its own, so heads join the batch.
        queries = queries.transpose(1, 2).flatten(0, 1).unsqueeze(2)
        keys, values = (
            z.transpose(1, 2).repeat_interleave(self.heads // self.shared, dim=1).flatten(0, 1)
            for z in (keys, values)
        )
        sink = self.sink.logits()
        if sink is not None:
            sink = sink.unsqueeze(1).repeat(batch, 1)
        mixed = attend(queries, keys, values, seen, sink).squeeze(2)
        return self.output_projection(mixed.unflatten(0, (batch, self.heads)).transpose(1, 2))

    @torch.no_grad()
    def choose(
        self,
        queries: Float[Tensor, "b s h c"],
        means: Float[Tensor, "b n g c"],
        positions: Int[Tensor, "s"],
    ) -> Bool[Tensor, "b h s n"]:
        """Which of n complete blocks each query attends to beside its own; none that is not before it."""
        batch, count = means.shape[:2]
        earlier = torch.arange(count, device=means.device) < (positions // self.block).unsqueeze(1)
        if self.topk == 1 or self.topk > count:
            return (earlier & (self.topk > 1)).expand(batch, self.heads, -1, -1)
        grouped = queries.unflatten(2, (self.shared, -1)).permute(0, 2, 3, 1, 4).flatten(2, 3)
        scores = (grouped @ means.permute(0, 2, 3, 1)).reshape(batch, self.heads, -1, count)
        scores = scores.masked_fill(~earlier, -torch.inf)
        return highest(scores, self.topk - 1).logical_and_(earlier)

    @classmethod
    def default_layer(cls) -> Mapping[str, Any]:
        return {"ratio": 0, "topk": 0}

    @staticmethod
    def cost(config: NoOptions, site: Site, seq_len: int) -> Cost:
        """`2 d c (h + 2 kv heads)` per token, `4 h c` per query-key pair, `2 h c` per score (frozen)."""
        dims, block, topk = site.dims, site.layer.ratio, site.layer.topk
        dense = DenseAttention.cost(config, site, seq_len)
        width, ended, past = (
            dims.num_attention_heads * dims.head_dim,
            seq_len // block,
            (seq_len - 1) // block,
        )
        runs, decode_runs = 1 < topk <= past, 1 < topk <= ended
        return Cost(
            params=dense.params,
            active_params=dense.params,
            flops=2 * dense.params * seq_len + 4 * width * block_pairs(seq_len, block, topk),
            frozen_flops=runs * 2 * width * earlier_blocks(seq_len, block),
            kernel_flops=dense.kernel_flops + runs * 2 * width * seq_len * past,
            kv_bytes=dense.kv_bytes + 2 * dims.num_key_value_heads * dims.head_dim * ended,
            decode_flops=2 * dense.params
            + 4 * width * decoded_tokens(seq_len, block, topk)
            + decode_runs * 2 * width * ended,
        )

    @staticmethod
    def check(config: NoOptions, site: Site, seq_len: int) -> None:
        DenseAttention.check(config, site, seq_len)
        check_blocks(site)

    @staticmethod
    def warnings(config: NoOptions, site: Site, seq_len: int) -> list[str]:
        block, topk, count = site.layer.ratio, site.layer.topk, -(-seq_len // site.layer.ratio)
        if topk >= count:
            return [
                f"index_topk={topk} has no effect: {seq_len} tokens are only {count} blocks of {block}, and "
                "every query attends to all of them, as with dense"
            ]
        if topk == 1:
            return [f"index_topk=1 leaves only a query's own block of {block} tokens: none is ever chosen"]
        return []
