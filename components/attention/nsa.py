"""Native sparse attention (NSA)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from components import cache as caches
from components.attention.blockwise import check_blocks, decoded_tokens, joined, to_tokens, windowed
from components.attention.core import Blocks, attend
from components.attention.dense import DenseAttention
from components.attention.pairs import block_pairs, strided_pairs, window_pairs
from components.attention.runs import RunMlp, attend_runs, run_share
from components.cache import Cache
from components.indexer.lightning import highest
from components.registry import register
from components.slots import Attention, Aux, OutputProjection, Position
from components.spec import Cost, NoOptions, Site

BRANCHES = ("compressed", "selected", "window")


@register("nsa", source="NSA, arXiv 2502.11089 §3")
class NativeSparseAttention(Attention):
    """Three attentions with keys and values of their own, added up by gates: compressed, selected, window.

        y = sum_branch sigmoid(x gate^T)_branch * attention(q, k_branch, v_branch)      gates per head

    *compressed*: an MLP makes one key and one value of every run of `compress_block_size` tokens, one run
    each `compress_stride` tokens; query t sees the runs that have ended by t, and nothing before the first.
    *selected*: tokens up to t in `layer.topk` blocks of `layer.ratio` tokens. A block's score is the share
    that its runs got of the compressed branch's softmax, summed over the heads that share keys; these select
    together. The query's own block and the `local_blocks` - 1 before it come first, then the first
    `init_blocks`, then all others by score, of equal ones the earliest. The choice passes no gradient.
    *window*: the last `sliding_window` tokens.

    Compressed keys rotate at their run's first token. There is no sink. Heads share keys and values as in
    `dense`, by `num_key_value_heads`.

    Attributes:
        q: [h*c, d].
        k, v: [num_key_value_heads*c, d] for each branch.
        compress_k, compress_v: the MLPs.
        gate: [h*3, d].
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of native sparse attention. The paper: blocks of 64, runs of 32, one every 16."""

        compress_block_size: int = 0
        """Tokens of a run; 0 means twice `compress_stride`."""
        compress_stride: int = 0
        """Tokens from one run to the next; 0 means the largest divisor of a block up to a quarter of it."""
        init_blocks: int = 1
        """First blocks of the sequence that are selected without a score."""
        local_blocks: int = 2
        """Last blocks, the query's own included, that are selected without a score."""

        def __post_init__(self) -> None:
            for key in ("compress_block_size", "compress_stride", "init_blocks"):
                if getattr(self, key) < 0:
                    raise ValueError(f"{key}={getattr(self, key)} must be at least 0")
            if self.local_blocks < 1:
                raise ValueError(f"local_blocks={self.local_blocks} must be at least 1: a query's own block")

    uses = ("position", "output_projection")

    def __init__(
        self, config: Config, site: Site, *, position: Position, output_projection: OutputProjection
    ) -> None:
        super().__init__()
        dims, layer = site.dims, site.layer
        self.width, self.shared, self.window = dims.head_dim, dims.num_key_value_heads, dims.sliding_window
        self.block, self.topk = layer.ratio, layer.topk
        self.run, self.stride = run_sizes(config, site)
        self.init_blocks, self.local_blocks = config.init_blocks, config.local_blocks

        def matrix(rows: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(rows, dims.hidden_size).normal_(0.0, dims.initializer_range))

        shared = dims.num_key_value_heads * dims.head_dim
        self.q = matrix(dims.num_attention_heads * dims.head_dim)
        self.k = nn.ParameterDict({branch: matrix(shared) for branch in BRANCHES})
        self.v = nn.ParameterDict({branch: matrix(shared) for branch in BRANCHES})
        self.compress_k, self.compress_v = (
            RunMlp(self.run, self.stride, dims.head_dim, dims.initializer_range) for _ in range(2)
        )
        self.gate = matrix(dims.num_attention_heads * len(BRANCHES))
        self.position = position
        self.output_projection = output_projection

    def forward(
        self, x: Float[Tensor, "b s d"], real: Bool[Tensor, "b s"] | None = None
    ) -> tuple[Float[Tensor, "b s d"], Aux]:
        positions = torch.arange(x.shape[1], device=x.device)
        queries, k, v = self._project(x, positions)
        entries = self._compress(k["compressed"], v["compressed"], 0)
        recent = windowed(queries, joined(k["window"]), joined(v["window"]), self.window)
        return self._mix(x, queries, entries, (k["selected"], v["selected"]), recent, positions), {}

    def step(
        self, x: Float[Tensor, "b s d"], cache: Cache | None = None
    ) -> tuple[Float[Tensor, "b s d"], Cache]:
        before = caches.length(cache)
        length = before + x.shape[1]
        positions = torch.arange(before, length, device=x.device)
        queries, k, v = self._project(x, positions)
        # Tokens of runs that are not complete wait, from the beginning of the next run on.
        pending = {} if cache is None else cache.pending
        tokens = {name: z["compressed"] for name, z in (("k", k), ("v", v))}
        tokens = {name: torch.cat((pending[name], z), 1) if pending else z for name, z in tokens.items()}
        done = 0 if cache is None else cache.kept["compressed_k"].shape[1]
        entries = self._compress(tokens["k"], tokens["v"], done)
        pending = {name: z[:, entries[0].shape[1] * self.stride :] for name, z in tokens.items()}
        new = {"compressed": entries} | {name: (k[name], v[name]) for name in ("selected", "window")}
        kept = {
            f"{name}_{part}": caches.appended(cache, f"{name}_{part}", z)
            for name, pair in new.items()
            for part, z in zip("kv", pair, strict=True)
        }
        window = kept["window_k"], kept["window_v"]
        places = torch.arange(length - window[0].shape[1], length, device=x.device)
        age = positions.unsqueeze(1) - places
        seen = ((age >= 0) & (age < self.window)).unsqueeze(0)
        recent = attend(queries, joined(window[0]), joined(window[1]), seen, None)
        y = self._mix(
            x,
            queries,
            (kept["compressed_k"], kept["compressed_v"]),
            (kept["selected_k"], kept["selected_v"]),
            recent,
            positions,
        )
        kept |= {name: kept[name][:, -self.window :] for name in ("window_k", "window_v")}
        return y, Cache(length, kept, pending)

    def _project(
        self, x: Float[Tensor, "b s d"], positions: Int[Tensor, "s"]
    ) -> tuple[Float[Tensor, "m s h c"], dict[str, Tensor], dict[str, Tensor]]:
        """Queries joined with the heads whose keys they share; keys and values [b, s, g, c] by branch.

        Keys are rotated but for those that are yet to be compressed.
        """

        def heads(matrix: Tensor) -> Tensor:
            return F.linear(x, matrix).unflatten(-1, (-1, self.width))

        queries = self.position.rotate(heads(self.q), positions)
        queries = queries.unflatten(2, (self.shared, -1)).transpose(1, 2).flatten(0, 1)
        k, v = ({branch: heads(matrices[branch]) for branch in BRANCHES} for matrices in (self.k, self.v))
        k |= {branch: self.position.rotate(k[branch], positions) for branch in ("selected", "window")}
        return queries, k, v

    def _compress(
        self, keys: Float[Tensor, "b s g c"], values: Float[Tensor, "b s g c"], first: int
    ) -> tuple[Float[Tensor, "b t g c"], Float[Tensor, "b t g c"]]:
        """Entries of the complete runs in tokens that begin with run number `first`."""
        entries = self.compress_k(keys)
        starts = (torch.arange(entries.shape[1], device=keys.device) + first) * self.stride
        return self.position.rotate(entries, starts), self.compress_v(values)

    def _mix(
        self,
        x: Float[Tensor, "b q d"],
        queries: Float[Tensor, "m q h c"],
        entries: tuple[Float[Tensor, "b t g c"], Float[Tensor, "b t g c"]],
        tokens: tuple[Float[Tensor, "b s g c"], Float[Tensor, "b s g c"]],
        recent: Float[Tensor, "m q h c"],
        positions: Int[Tensor, "q"],
    ) -> Float[Tensor, "b q d"]:
        """Attention to entries and to selected tokens, gates over these and the window's output."""
        length, (batch, new) = tokens[0].shape[1], x.shape[:2]
        ended = (positions + self.stride - self.run + 1).clamp(min=0) // self.stride
        compressed, share = attend_runs(queries, joined(entries[0]), joined(entries[1]), ended)
        seen = to_tokens(self.select(share, positions, length), self.block, length)
        seen &= torch.arange(length, device=x.device) <= positions.unsqueeze(1)
        selected = attend(queries, joined(tokens[0]), joined(tokens[1]), seen, None)
        gates = F.linear(x, self.gate).sigmoid().unflatten(-1, (self.shared, -1, len(BRANCHES)))
        gate = gates.transpose(1, 2).flatten(0, 1).unsqueeze(-2)
        mixed = gate[..., 0] * compressed + gate[..., 1] * selected + gate[..., 2] * recent
        mixed = mixed.view(batch, self.shared, new, -1, self.width).transpose(1, 2)
        return self.output_projection(mixed.flatten(2, 3))

    @torch.no_grad()
    def select(
        self, share: Float[Tensor, "m q t"], positions: Int[Tensor, "q"], length: int
    ) -> Bool[Tensor, "m q n"]:
        """The blocks that each query attends to, given the share of the softmax that each run got."""
        count = -(-length // self.block)
        scores = run_share(share, self.run // self.stride, self.block // self.stride, count)
        block = torch.arange(count, device=share.device)
        age = (positions // self.block).unsqueeze(1) - block
        # Above every score: first the nearest local blocks, then the first ones of the sequence.
        local = self.local_blocks + 1 - age
        first = (block < self.init_blocks).long().expand_as(local)
        line = torch.where(age < self.local_blocks, local, first)
        scores = scores + line * (scores.amax(-1, keepdim=True) + 1)
        scores = scores.masked_fill(age < 0, -torch.inf)
        return highest(scores, min(self.topk, count)) & (age >= 0)

    @classmethod
    def default_layer(cls) -> Mapping[str, Any]:
        return {"ratio": 0, "topk": 0}

    @staticmethod
    def cost(config: Config, site: Site, seq_len: int) -> Cost:
        """`2 d (h c + 6 g c + 3 h)` per token, `4 g c^2 (run + 1)` per run, `4 h c` per pair; g key heads."""
        dims, layer = site.dims, site.layer
        heads, shared, c = dims.num_attention_heads, dims.num_key_value_heads, dims.head_dim
        run, stride = run_sizes(config, site)
        runs = max(0, (seq_len - run) // stride + 1)
        matrices = dims.hidden_size * (heads * c + 2 * len(BRANCHES) * shared * c + len(BRANCHES) * heads)
        params = matrices + 2 * RunMlp.params(run, c)
        per_run = 2 * shared * RunMlp.flops(run, c)
        pairs = (
            strided_pairs(seq_len, run, stride)
            + block_pairs(seq_len, layer.ratio, layer.topk)
            + window_pairs(seq_len, dims.sliding_window)
        )
        kernel_pairs = seq_len * runs + seq_len**2 + Blocks.best(seq_len, dims.sliding_window).pairs
        window = min(seq_len, dims.sliding_window)
        decoded = runs + decoded_tokens(seq_len, layer.ratio, layer.topk) + window
        return Cost(
            params=params,
            active_params=params,
            flops=2 * matrices * seq_len + per_run * runs + 4 * heads * c * pairs,
            kernel_flops=2 * matrices * seq_len + per_run * runs + 4 * heads * c * kernel_pairs,
            kv_bytes=4 * shared * c * (runs + seq_len + window),
            decode_flops=2 * matrices + per_run // stride + 4 * heads * c * decoded,
        )

    @staticmethod
    def check(config: Config, site: Site, seq_len: int) -> None:
        DenseAttention.check(NoOptions(), site, seq_len)
        check_blocks(site)
        if site.dims.sliding_window < 1:
            raise ValueError(f"sliding_window={site.dims.sliding_window} must be at least 1")
        block, (run, stride) = site.layer.ratio, run_sizes(config, site)
        if block % stride:
            divisors = ", ".join(str(n) for n in range(1, block + 1) if block % n == 0)
            raise ValueError(
                f"compress_stride={stride} does not divide blocks of {block} tokens. Allowed: {divisors}"
            )
        if run % stride or run > max(block, 2 * stride):
            sizes = ", ".join(str(n) for n in range(stride, block + 1, stride))
            raise ValueError(
                f"compress_block_size={run} must be a multiple of compress_stride={stride} and at most "
                f"the {block} tokens of a block. Allowed: {sizes}"
            )

    @staticmethod
    def warnings(config: Config, site: Site, seq_len: int) -> list[str]:
        block, topk = site.layer.ratio, site.layer.topk
        count, fixed = -(-seq_len // block), config.local_blocks + config.init_blocks
        if topk >= count:
            return [
                f"index_topk={topk} has no effect: {seq_len} tokens are only {count} blocks of {block}, and "
                "every query selects all of them"
            ]
        if topk <= fixed:
            return [
                f"index_topk={topk} is used up by the {config.local_blocks} last and {config.init_blocks} "
                "first blocks, which every query selects: none is selected by its score"
            ]
        return []


def run_sizes(config: NativeSparseAttention.Config, site: Site) -> tuple[int, int]:
    """`compress_block_size` and `compress_stride` in effect."""
    block = site.layer.ratio
    stride = config.compress_stride or max(n for n in range(1, max(block // 4, 1) + 1) if block % n == 0)
    return config.compress_block_size or 2 * stride, stride
