"""Multi-head latent attention (MLA) of DeepSeek-V2 and V3."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from components import cache as caches
from components.attention.core import attend
from components.attention.pairs import causal_pairs
from components.cache import Cache
from components.functional import rms_norm
from components.registry import register
from components.slots import Attention, Aux, OutputProjection, Position, Sink
from components.spec import Cost, Dims, Site


@register("mla", source="DeepSeek-V2, arXiv 2405.04434 §2.1; DeepSeek-V3, arXiv 2412.19437 §2.1.1")
class MultiHeadLatentAttention(Attention):
    """Keys and values of all heads from one small latent per token; positions in a part of their own.

        latent    = rms(x q_a^T; q_a_norm)                 [b, s, q_lora_rank]
        qn, qr    = latent q_b^T                           [b, s, h, n], [b, s, h, r]
        kv, kr    = x kv_a^T                               [b, s, kv_lora_rank], [b, s, r]
        kn, v     = rms(kv; kv_a_norm) kv_b^T              [b, s, h, n], [b, s, h, c]
        o         = softmax([[qn, rotate(qr)] [kn, rotate(kr)]^T / sqrt(n + r), sink]) v

    n = `qk_nope_head_dim`, r = `qk_rope_head_dim`, c = `head_dim`. All heads share the rotated key `kr`.
    Without `q_lora_rank` (0) queries are `x q^T`. A cache holds `kv` and `kr` only: decoding moves `kv_b`
    over to the query and to the output, and attends to latents.

    Attributes:
        q: [h*(n+r), d], where q_lora_rank is 0; otherwise the next three.
        q_a: [q_lora_rank, d].
        q_a_norm: [q_lora_rank].
        q_b: [h*(n+r), q_lora_rank].
        kv_a: [kv_lora_rank + r, d].
        kv_a_norm: [kv_lora_rank].
        kv_b: [h*(n+c), kv_lora_rank].
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of multi-head latent attention; `q_lora_rank` and `qk_rope_head_dim` are the model's."""

        kv_lora_rank: int = 0
        """Channels of the latent that is cached; 0 means four heads' worth, as in V2 and V3."""
        qk_nope_head_dim: int = 0
        """Channels of a query or key that carry no position; 0 means `head_dim`, as in V2 and V3."""

        def __post_init__(self) -> None:
            for key in ("kv_lora_rank", "qk_nope_head_dim"):
                if getattr(self, key) < 0:
                    raise ValueError(f"{key}={getattr(self, key)} must be at least 0")

    uses = ("position", "sink", "output_projection")

    def __init__(
        self,
        config: Config,
        site: Site,
        *,
        position: Position,
        sink: Sink,
        output_projection: OutputProjection,
    ) -> None:
        super().__init__()
        dims = site.dims
        self.eps, self.heads = dims.rms_norm_eps, dims.num_attention_heads
        self.latent, self.nope = _sizes(config, dims)
        self.rope = dims.qk_rope_head_dim

        def matrix(rows: int, columns: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(rows, columns).normal_(0.0, dims.initializer_range))

        rows = self.heads * (self.nope + self.rope)
        if dims.q_lora_rank:
            self.q_a = matrix(dims.q_lora_rank, dims.hidden_size)
            self.q_a_norm = nn.Parameter(torch.ones(dims.q_lora_rank))
            self.q_b = matrix(rows, dims.q_lora_rank)
        else:
            self.q = matrix(rows, dims.hidden_size)
        self.kv_a = matrix(self.latent + self.rope, dims.hidden_size)
        self.kv_a_norm = nn.Parameter(torch.ones(self.latent))
        self.kv_b = matrix(self.heads * (self.nope + dims.head_dim), self.latent)
        self.low_rank = dims.q_lora_rank > 0
        self.position = position
        self.sink = sink
        self.output_projection = output_projection

    def forward(
        self, x: Float[Tensor, "b s d"], real: Bool[Tensor, "b s"] | None = None
    ) -> tuple[Float[Tensor, "b s d"], Aux]:
        batch, length, _ = x.shape
        positions = torch.arange(length, device=x.device)
        queries = torch.cat(self._queries(x, positions), dim=-1)
        latent, shared = self._latents(x, positions)
        expanded = F.linear(latent, self.kv_b).unflatten(-1, (self.heads, -1))
        plain, values = expanded.tensor_split((self.nope,), dim=-1)
        keys = torch.cat((plain, shared.unsqueeze(2).expand(-1, -1, self.heads, -1)), dim=-1)
        # Every head has keys of its own, so heads join the batch.
        queries, keys, values = (z.transpose(1, 2).flatten(0, 1) for z in (queries, keys, values))
        seen = torch.ones(length, length, dtype=torch.bool, device=x.device).tril().unsqueeze(0)
        sink = self.sink.logits()
        if sink is not None:
            sink = sink.unsqueeze(1).repeat(batch, 1)
        mixed = attend(queries.unsqueeze(2), keys, values, seen, sink).squeeze(2)
        return self.output_projection(mixed.unflatten(0, (batch, self.heads)).transpose(1, 2)), {}

    def step(
        self, x: Float[Tensor, "b s d"], cache: Cache | None = None
    ) -> tuple[Float[Tensor, "b s d"], Cache]:
        before, new = caches.length(cache), x.shape[1]
        positions = torch.arange(before, before + new, device=x.device)
        plain, turned = self._queries(x, positions)
        latent, shared = self._latents(x, positions)
        kept = {
            "latent": caches.appended(cache, "latent", latent),
            "rope": caches.appended(cache, "rope", shared),
        }
        to_keys, to_values = self.kv_b.unflatten(0, (self.heads, -1)).tensor_split((self.nope,), dim=1)
        absorbed = torch.cat((torch.einsum("bshn,hnl->bshl", plain, to_keys), turned), dim=-1)
        # `attend` divides by the root of the width that it sees, which is not that of the real keys.
        absorbed = absorbed * ((self.latent + self.rope) / (self.nope + self.rope)) ** 0.5
        seen = positions.unsqueeze(1) >= torch.arange(before + new, device=x.device)
        sink = self.sink.logits()
        sink = None if sink is None else sink.unsqueeze(0)
        keys = torch.cat((kept["latent"], kept["rope"]), dim=-1)
        mixed = attend(absorbed, keys, kept["latent"], seen.unsqueeze(0), sink)
        heads = torch.einsum("bshl,hcl->bshc", mixed, to_values)
        return self.output_projection(heads), Cache(before + new, kept)

    def _queries(
        self, x: Float[Tensor, "b s d"], positions: Int[Tensor, "s"]
    ) -> tuple[Float[Tensor, "b s h n"], Float[Tensor, "b s h r"]]:
        """The part without and, rotated, the part with positions."""
        if self.low_rank:
            queries = F.linear(rms_norm(F.linear(x, self.q_a), self.q_a_norm, self.eps), self.q_b)
        else:
            queries = F.linear(x, self.q)
        plain, turning = queries.unflatten(-1, (self.heads, -1)).split((self.nope, self.rope), dim=-1)
        return plain, self.position.rotate(turning, positions)

    def _latents(
        self, x: Float[Tensor, "b s d"], positions: Int[Tensor, "s"]
    ) -> tuple[Float[Tensor, "b s l"], Float[Tensor, "b s r"]]:
        """The normalised latent of keys and values, and the rotated key that all heads share."""
        latent, turning = F.linear(x, self.kv_a).split((self.latent, self.rope), dim=-1)
        return rms_norm(latent, self.kv_a_norm, self.eps), self.position.rotate(turning, positions)

    @staticmethod
    def cost(config: Config, site: Site, seq_len: int) -> Cost:
        """Projections, and `2 h (n + r + c)` per query-key pair; decoding attends to latents.

        A decoded token costs `2 h (2 kv_lora_rank + r)` per cached token, and each matrix once.
        """
        dims = site.dims
        d, heads, rope, rank = (
            dims.hidden_size,
            dims.num_attention_heads,
            dims.qk_rope_head_dim,
            dims.q_lora_rank,
        )
        latent, nope = _sizes(config, dims)
        width = heads * (nope + rope)
        queries = rank * (d + width) if rank else d * width
        matrices = queries + d * (latent + rope) + latent * heads * (nope + dims.head_dim)
        params = matrices + rank + latent
        per_pair = 2 * heads * (nope + rope + dims.head_dim)
        return Cost(
            params=params,
            active_params=params,
            flops=2 * matrices * seq_len + per_pair * causal_pairs(seq_len),
            kernel_flops=2 * matrices * seq_len + per_pair * seq_len**2,
            kv_bytes=2 * (latent + rope) * seq_len,
            decode_flops=2 * matrices + 2 * heads * (2 * latent + rope) * seq_len,
        )

    @staticmethod
    def check(config: Config, site: Site, seq_len: int) -> None:
        if site.dims.qk_rope_head_dim < 2:
            raise ValueError(
                f"qk_rope_head_dim={site.dims.qk_rope_head_dim} leaves no channel for positions, which mla "
                "keeps apart from all others. Allowed: even numbers from 2"
            )

    @staticmethod
    def warnings(config: Config, site: Site, seq_len: int) -> list[str]:
        dims = site.dims
        latent, nope = _sizes(config, dims)
        expanded = dims.num_attention_heads * (nope + dims.head_dim)
        if latent < min(expanded, dims.hidden_size):
            return []
        return [
            f"kv_lora_rank={latent} is no bottleneck between hidden_size={dims.hidden_size} and the "
            f"{expanded} channels of all keys and values: mla saves nothing"
        ]


def _sizes(config: MultiHeadLatentAttention.Config, dims: Dims) -> tuple[int, int]:
    """`kv_lora_rank` and `qk_nope_head_dim` in effect."""
    return config.kv_lora_rank or 4 * dims.head_dim, config.qk_nope_head_dim or dims.head_dim
