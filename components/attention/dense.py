"""Full causal attention with separate keys and values: multi-head, grouped-query or multi-query."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from components.attention.core import attend
from components.attention.pairs import causal_pairs
from components.cache import Cache, appended, length
from components.precision import at_least_float32
from components.registry import register
from components.slots import Attention, Aux, OutputProjection, Position, Sink
from components.spec import Cost, NoOptions, Site


@register("dense", source="Vaswani et al. 2017, arXiv 1706.03762; grouped queries, arXiv 2305.13245")
class DenseAttention(Attention):
    """`softmax([q k^T / sqrt(c), sink]) v` over all tokens up to the query's own.

    `num_key_value_heads` decides the kind: as many as `num_attention_heads` is multi-head, 1 is multi-query,
    between is grouped-query, where consecutive query heads share keys and values. Positions are encoded in
    queries and keys, not in values, so outputs are not turned back.

    Attributes:
        q: [h*c, d].
        k: [num_key_value_heads*c, d].
        v: [num_key_value_heads*c, d].
    """

    Config = NoOptions
    uses = ("position", "sink", "output_projection")
    takes_bias = True

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
        dims = site.dims
        self.width, self.shared = dims.head_dim, dims.num_key_value_heads

        def matrix(heads: int) -> nn.Parameter:
            rows = heads * dims.head_dim
            return nn.Parameter(torch.empty(rows, dims.hidden_size).normal_(0.0, dims.initializer_range))

        self.q = matrix(dims.num_attention_heads)
        self.k = matrix(dims.num_key_value_heads)
        self.v = matrix(dims.num_key_value_heads)
        self.position = position
        self.sink = sink
        self.output_projection = output_projection

    def forward(
        self, x: Float[Tensor, "b s d"], real: Bool[Tensor, "b s"] | None = None
    ) -> tuple[Float[Tensor, "b s d"], Aux]:
        return self.step(x)[0], {}

    def step(
        self, x: Float[Tensor, "b s d"], cache: Cache | None = None
    ) -> tuple[Float[Tensor, "b s d"], Cache]:
        """Keeps all keys and values."""
        batch, before, after = len(x), length(cache), length(cache) + x.shape[1]
        positions = torch.arange(before, after, device=x.device)
        queries = self.position.rotate(F.linear(x, self.q).unflatten(-1, (-1, self.width)), positions)
        keys = self.position.rotate(F.linear(x, self.k).unflatten(-1, (-1, self.width)), positions)
        values = F.linear(x, self.v).unflatten(-1, (-1, self.width))
        kept = {"keys": appended(cache, "keys", keys), "values": appended(cache, "values", values)}
        # Heads of keys and values join the batch; the query heads that share one stay together.
        queries = queries.unflatten(2, (self.shared, -1)).transpose(1, 2).flatten(0, 1)
        keys, values = (heads.transpose(1, 2).flatten(0, 1) for heads in kept.values())
        behind = positions.unsqueeze(1) - torch.arange(after, device=x.device)
        seen = behind >= 0
        sink = self.sink.logits()
        if sink is not None:
            sink = sink.view(self.shared, -1).repeat(batch, 1)
        added = self.position.bias
        if added is not None:
            added = added(behind.unsqueeze(0), at_least_float32(keys).dtype).unflatten(2, (self.shared, -1))
            added = added.squeeze(0).transpose(0, 1).repeat(batch, 1, 1, 1)
        mixed = attend(queries, keys, values, seen.unsqueeze(0), sink, added)
        mixed = mixed.unflatten(0, (batch, self.shared))
        return self.output_projection(mixed.transpose(1, 2).flatten(2, 3)), Cache(after, kept=kept)

    @staticmethod
    def cost(config: NoOptions, site: Site, seq_len: int) -> Cost:
        """`2 d c (h + 2 kv heads)` per token and `4 h c` per query-key pair."""
        dims = site.dims
        heads = dims.num_attention_heads + 2 * dims.num_key_value_heads
        params = dims.hidden_size * dims.head_dim * heads
        per_pair = 4 * dims.num_attention_heads * dims.head_dim
        return Cost(
            params=params,
            active_params=params,
            flops=2 * params * seq_len + per_pair * causal_pairs(seq_len),
            kernel_flops=2 * params * seq_len + per_pair * seq_len**2,
            kv_bytes=4 * dims.num_key_value_heads * dims.head_dim * seq_len,
            decode_flops=2 * params + per_pair * seq_len,
        )

    @staticmethod
    def check(config: NoOptions, site: Site, seq_len: int) -> None:
        heads, shared = site.dims.num_attention_heads, site.dims.num_key_value_heads
        if shared < 1 or heads % shared:
            divisors = [n for n in range(1, heads + 1) if heads % n == 0]
            raise ValueError(
                f"num_key_value_heads={shared} does not divide num_attention_heads={heads}. "
                f"Allowed: {', '.join(map(str, divisors))}"
            )
