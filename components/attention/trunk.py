"""The attention layer of DeepSeek-V4 around whatever its queries see beyond the window."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from components.attention.core import Blocks, attend, branch_mass, joint_attention
from components.attention.pairs import window_pairs
from components.cache import Cache, appended, length
from components.functional import rms_norm
from components.precision import at_least_float32
from components.slots import Attention, Aux, OutputProjection, Position, Sink
from components.spec import Alarm, Cost, Site

Compressed = tuple[Float[Tensor, "b t c"], Bool[Tensor, "#b s t"]]
"""Compressed entries, and which of them each query may attend to."""


BRANCHES = {
    "mass_window": "share of attention that goes to the tokens of the window",
    "mass_compressed": "share that goes to compressed entries, where there are any",
    "mass_sink": "share that goes to the sink, where there is one",
}
UNUSED = Alarm(
    metric="mass_compressed",
    below=0.02,
    why="queries hardly look at compressed entries: the layers work as a sliding window",
    source="methodology §E",
    everywhere=True,
)


class Trunk(Attention):
    """Low-rank queries, one shared head that is key and value, a window, a sink, grouped output.

        latent = rms(x q_a^T; q_a_norm)                         [b, s, q_lora_rank]
        q  = rotate(rms(latent q_b^T, per head, no weight))     [b, s, h, c]
        kv = rotate(rms(x kv^T; kv_norm))                       [b, s, c], keys and values at once
        o  = softmax([q k^T / sqrt(c), sink]) k                 k: the last `sliding_window` kv, and entries
        y  = output_projection(unrotate(o))

    Subclasses add compressed entries in `compress`; window, entries and sink share one softmax.

    Attributes:
        q_a: [q_lora_rank, d].
        q_a_norm: [q_lora_rank].
        q_b: [h*c, q_lora_rank].
        kv: [c, d].
        kv_norm: [c].
    """

    diagnostics = BRANCHES
    uses = ("position", "sink", "output_projection")
    takes_bias = True

    def __init__(
        self, config: Any, site: Site, *, position: Position, sink: Sink, output_projection: OutputProjection
    ) -> None:
        super().__init__()
        dims = site.dims
        self.ratio = site.layer.ratio
        self.heads, self.window, self.eps = dims.num_attention_heads, dims.sliding_window, dims.rms_norm_eps

        def matrix(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(rows, columns).normal_(0.0, dims.initializer_range))

        self.q_a = matrix(dims.q_lora_rank, dims.hidden_size)
        self.q_a_norm = nn.Parameter(torch.ones(dims.q_lora_rank))
        self.q_b = matrix(dims.num_attention_heads * dims.head_dim, dims.q_lora_rank)
        self.kv = matrix(dims.head_dim, dims.hidden_size)
        self.kv_norm = nn.Parameter(torch.ones(dims.head_dim))
        self.position = position
        self.sink = sink
        self.output_projection = output_projection

    def forward(
        self, x: Float[Tensor, "b s d"], real: Bool[Tensor, "b s"] | None = None
    ) -> tuple[Float[Tensor, "b s d"], Aux]:
        positions = torch.arange(x.shape[1], device=x.device)
        latent, queries, kv = self._project(x, positions)
        compressed, aux = self.compress(x, latent, queries, kv, real)
        entries, seen = compressed or (None, None)
        mixed = joint_attention(
            queries,
            kv,
            self.window,
            self.sink.logits(),
            entries,
            seen,
            bias=self.position.bias,
            ratio=self.ratio,
        )
        if self.watched:
            aux = aux | self._branches(queries, kv, entries, seen, real)
        return self.output_projection(self.position.unrotate(mixed, positions)), aux

    def _branches(
        self,
        queries: Float[Tensor, "b s h c"],
        kv: Float[Tensor, "b s c"],
        entries: Float[Tensor, "b t c"] | None,
        seen: Bool[Tensor, "#b s t"] | None,
        real: Bool[Tensor, "b s"] | None,
    ) -> Aux:
        """What window, compressed entries (where the entry has any) and sink get of attention."""
        bias, sink = self.position.bias, self.sink.logits()
        shares = branch_mass(queries, kv, self.window, sink, entries, seen, bias, self.ratio)
        counted = shares.flatten(0, 1) if real is None else shares[real]
        window, compressed, rest = counted.mean(0).unbind()
        found = {"diag/mass_window": window}
        if self.ratio:
            found["diag/mass_compressed"] = compressed
        return found if sink is None else found | {"diag/mass_sink": rest}

    def step(
        self, x: Float[Tensor, "b s d"], cache: Cache | None = None
    ) -> tuple[Float[Tensor, "b s d"], Cache]:
        """Keeps the keys of one window, and what `compress_step` keeps."""
        before, after = length(cache), length(cache) + x.shape[1]
        positions = torch.arange(before, after, device=x.device)
        latent, queries, kv = self._project(x, positions)
        keys = appended(cache, "kv", kv)
        back = positions.unsqueeze(1) - torch.arange(after - keys.shape[1], after, device=x.device)
        seen = ((back >= 0) & (back < self.window)).unsqueeze(0)
        kept = {"kv": keys[:, -self.window :]}
        compressed, beyond = self.compress_step(x, latent, positions, cache)
        if compressed is not None:
            entries, chosen = compressed
            keys = torch.cat((keys, entries), dim=1)
            seen = torch.cat((seen.expand(len(chosen), -1, -1), chosen), dim=-1)
            first = torch.arange(entries.shape[1], device=x.device) * self.ratio
            back = torch.cat((back, positions.unsqueeze(1) - first), dim=1)
        sink = self.sink.logits()
        bias = self.position.bias
        added = None if bias is None else bias(back.unsqueeze(0), at_least_float32(keys).dtype)
        mixed = attend(queries, keys, keys, seen, None if sink is None else sink.unsqueeze(0), added)
        y = self.output_projection(self.position.unrotate(mixed, positions))
        return y, Cache(after, kept={**kept, **beyond.kept}, parts=beyond.parts)

    def _project(
        self, x: Float[Tensor, "b s d"], positions: Int[Tensor, "s"]
    ) -> tuple[Float[Tensor, "b s q"], Float[Tensor, "b s h c"], Float[Tensor, "b s c"]]:
        """Query latents, queries and keys."""
        latent = rms_norm(F.linear(x, self.q_a), self.q_a_norm, self.eps)
        queries = F.linear(latent, self.q_b).unflatten(-1, (self.heads, -1))
        queries = self.position.rotate(rms_norm(queries, None, self.eps), positions)
        kv = self.position.rotate(rms_norm(F.linear(x, self.kv), self.kv_norm, self.eps), positions)
        return latent, queries, kv

    def compress(
        self,
        x: Float[Tensor, "b s d"],
        latent: Float[Tensor, "b s q"],
        queries: Float[Tensor, "b s h c"],
        kv: Float[Tensor, "b s c"],
        real: Bool[Tensor, "b s"] | None = None,
    ) -> tuple[Compressed | None, Aux]:
        """What queries may attend to beyond the window."""
        return None, {}

    def compress_step(
        self,
        x: Float[Tensor, "b s d"],
        latent: Float[Tensor, "b s q"],
        positions: Int[Tensor, "s"],
        cache: Cache | None,
    ) -> tuple[Compressed | None, Cache]:
        """What `compress` gives for tokens after those of `cache`, and what is kept of it."""
        return None, Cache(length(cache) + x.shape[1])

    @staticmethod
    def check(config: Any, site: Site, seq_len: int) -> None:
        dims = site.dims
        for key in ("q_lora_rank", "sliding_window"):
            if getattr(dims, key) < 1:
                raise ValueError(f"{key}={getattr(dims, key)} must be at least 1")


def check_ratio(site: Site, seq_len: int) -> None:
    """Raise `ValueError` where no block of `layer.ratio` tokens can ever be complete."""
    if not 1 <= site.layer.ratio <= seq_len:
        raise ValueError(
            f"ratio={site.layer.ratio} leaves no complete block in seq_len={seq_len} tokens. "
            f"Allowed: 1 to {seq_len}"
        )


def ratio_warnings(site: Site, seq_len: int) -> list[str]:
    """What a ratio hides, or hardly uses."""
    ratio, window = site.layer.ratio, site.dims.sliding_window
    found = []
    if window < ratio - 1:
        found.append(
            f"sliding_window={window} is shorter than ratio {ratio}: up to {ratio - 1 - window} tokens of an "
            "unfinished block are already out of the window, and a query cannot see them"
        )
    if ratio * 4 > seq_len:
        found.append(
            f"ratio {ratio} is more than a quarter of {seq_len} tokens: a sequence has only "
            f"{seq_len // ratio} compressed entries"
        )
    return found


def trunk_cost(site: Site, seq_len: int, entries: int = 0, pairs: int = 0, decode: int = 0) -> Cost:
    """Cost of projections and core attention.

    Args:
        entries: compressed entries of one sequence.
        pairs: query-entry pairs that attention uses.
        decode: entries that the token after the sequence attends to.
    """
    dims = site.dims
    width = dims.num_attention_heads * dims.head_dim
    matrices = dims.q_lora_rank * (dims.hidden_size + width) + dims.hidden_size * dims.head_dim
    params = matrices + dims.q_lora_rank + dims.head_dim
    blocks = Blocks.best(seq_len, dims.sliding_window)
    kernel_pairs = blocks.pairs + blocks.count * blocks.size * entries
    window = min(seq_len, dims.sliding_window)
    return Cost(
        params=params,
        active_params=params,
        flops=2 * matrices * seq_len + 4 * width * (window_pairs(seq_len, dims.sliding_window) + pairs),
        kernel_flops=2 * matrices * seq_len + 4 * width * kernel_pairs,
        kv_bytes=2 * dims.head_dim * (window + entries),
        decode_flops=2 * matrices + 4 * width * (window + decode),
    )
