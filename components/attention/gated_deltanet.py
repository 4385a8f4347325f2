"""Gated DeltaNet: a linear mixer with a state of constant size."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from components import cache as caches
from components.attention.delta_rule import chunk_flops, chunk_kernel_flops, gated_delta_rule
from components.cache import Cache
from components.functional import rms_norm
from components.precision import at_least_float32
from components.registry import register
from components.slots import Attention, Aux, OutputProjection
from components.spec import Cost, Site


@register(
    "gated_deltanet", source="Gated Delta Networks, arXiv 2412.06464; Qwen3-Next, Kimi Linear 2510.26692"
)
class GatedDeltaNet(Attention):
    """A matrix per head that forgets by a gate, and learns what it does not yet know of each new token.

        q, k, v = SiLU(conv(x [q, k, v]^T))                  conv: causal, per channel, `conv_size` tokens
        q, k    = q / |q| / sqrt(c), k / |k|                 per head
        a_t     = exp(-exp(A_log) softplus(x a^T + dt_bias))     b_t = sigmoid(x b^T)       per head
        S_t     = a_t S_{t-1} + b_t k_t (v_t - a_t S_{t-1}^T k_t)^T
        y       = output_projection(rms(S_t^T q_t; norm) * SiLU(x gate^T))

    Order shows through decay and convolution; there is no position encoding, no sink, no window. Cost is
    linear in the sequence, and decoding keeps the state and the last tokens under the convolution, however
    long the context.

    Attributes:
        q, k, v, gate: [h*c, d].
        q_conv, k_conv, v_conv: [h*c, conv_size], the last column for the token itself; all 1/sqrt(conv_size)
            at first, which keeps the size of independent inputs.
        a, b: [h, d].
        A_log: [h], exp(A_log) from 1 to 16 at first, evenly over heads.
        dt_bias: [h], softplus(dt_bias) from 0.001 to 0.1 at first, evenly in its logarithm.
        norm: [c].
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of Gated DeltaNet."""

        use_short_conv: bool = True
        """Whether queries, keys and values pass a short convolution."""
        conv_size: int = 4
        """Tokens under the convolution, each token's own included."""
        chunk_size: int = 32
        """Tokens that are worked on at once; changes cost, not the result."""

        def __post_init__(self) -> None:
            for key, low in (("conv_size", 2), ("chunk_size", 1)):
                if getattr(self, key) < low:
                    raise ValueError(f"{key}={getattr(self, key)} must be at least {low}")

    uses = ("output_projection",)

    def __init__(self, config: Config, site: Site, *, output_projection: OutputProjection) -> None:
        super().__init__()
        dims = site.dims
        self.width, self.eps, self.chunk = dims.head_dim, dims.rms_norm_eps, config.chunk_size
        heads, channels = dims.num_attention_heads, dims.num_attention_heads * dims.head_dim

        def matrix(rows: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(rows, dims.hidden_size).normal_(0.0, dims.initializer_range))

        self.q, self.k, self.v, self.gate = (matrix(channels) for _ in range(4))
        self.a, self.b = matrix(heads), matrix(heads)
        self.short_conv = config.use_short_conv
        if config.use_short_conv:
            self.q_conv, self.k_conv, self.v_conv = (
                nn.Parameter(torch.full((channels, config.conv_size), config.conv_size**-0.5))
                for _ in range(3)
            )
            self.row_blocks = {"q_conv": 0, "k_conv": 0, "v_conv": 0}  # every channel has a filter of its own
        self.A_log = nn.Parameter(torch.linspace(1, 16, heads).log())
        steps = torch.linspace(math.log(1e-3), math.log(1e-1), heads).exp()
        self.dt_bias = nn.Parameter(steps.expm1().log())
        self.norm = nn.Parameter(torch.ones(dims.head_dim))
        self.output_projection = output_projection

    def forward(
        self, x: Float[Tensor, "b s d"], real: Bool[Tensor, "b s"] | None = None
    ) -> tuple[Float[Tensor, "b s d"], Aux]:
        return self._mix(x, None, last=False)[0], {}

    def step(
        self, x: Float[Tensor, "b s d"], cache: Cache | None = None
    ) -> tuple[Float[Tensor, "b s d"], Cache]:
        y, kept = self._mix(x, cache, last=True)
        return y, Cache(caches.length(cache) + x.shape[1], kept)

    def _mix(
        self, x: Float[Tensor, "b s d"], cache: Cache | None, last: bool
    ) -> tuple[Float[Tensor, "b s d"], dict[str, Tensor]]:
        """Outputs, and where `last` asks for it what the next tokens need."""
        kept: dict[str, Tensor] = {}
        projected = {name: F.linear(x, getattr(self, name)) for name in ("q", "k", "v")}
        if self.short_conv:
            for name, tokens in projected.items():
                taps = getattr(self, f"{name}_conv")
                before = None if cache is None else cache.kept[name]
                tokens = extended(tokens, taps.shape[1] - 1, before)
                projected[name] = convolve(tokens, taps)
                if last:
                    kept[name] = tokens[:, tokens.shape[1] - taps.shape[1] + 1 :]
        q, k, v = (F.silu(z).unflatten(-1, (-1, self.width)) for z in projected.values())
        q, k = unit(q) * self.width**-0.5, unit(k)
        steps = F.softplus(at_least_float32(F.linear(x, self.a)) + self.dt_bias)
        beta = at_least_float32(F.linear(x, self.b)).sigmoid()
        state = None if cache is None else cache.kept["state"]
        mixed, state = gated_delta_rule(
            q, k, v, beta, -self.A_log.exp() * steps, self.chunk, state=state, last=last
        )
        if state is not None:
            kept["state"] = state
        gate = F.silu(F.linear(x, self.gate)).unflatten(-1, (-1, self.width))
        return self.output_projection(rms_norm(mixed, self.norm, self.eps) * gate), kept

    @staticmethod
    def cost(config: Config, site: Site, seq_len: int) -> Cost:
        """`2 d (4 h c + 2 h)` per token, `2 conv_size` per convolved channel, and the delta rule in chunks.

        Within chunks of C tokens the rule costs `4 h c` per token and token of its chunk, between them
        `6 h c^2` per token; one decoded token costs `6 h c^2`.
        """
        dims = site.dims
        heads, c = dims.num_attention_heads, dims.head_dim
        taps = 3 * heads * c * config.conv_size * config.use_short_conv
        matrices = dims.hidden_size * (4 * heads * c + 2 * heads)
        params = matrices + taps + 2 * heads + c
        held = 3 * heads * c * (config.conv_size - 1) * config.use_short_conv
        return Cost(
            params=params,
            active_params=params,
            flops=2 * (matrices + taps) * seq_len + heads * chunk_flops(seq_len, c, config.chunk_size),
            kernel_flops=2 * matrices * seq_len + heads * chunk_kernel_flops(seq_len, c, config.chunk_size),
            kv_bytes=2 * (heads * c**2 + held),
            decode_flops=2 * (matrices + taps) + 6 * heads * c**2,
        )


def extended(
    x: Float[Tensor, "b s n"], count: int, before: Float[Tensor, "b k n"] | None
) -> Float[Tensor, "b sk n"]:
    """`x` after the `count` tokens before it; zeros where a sequence begins."""
    return F.pad(x, (0, 0, count, 0)) if before is None else torch.cat((before, x), dim=1)


def convolve(x: Float[Tensor, "b sk n"], taps: Float[Tensor, "n k"]) -> Float[Tensor, "b s n"]:
    """Each channel by itself over each token from number k - 1 on and the k - 1 before it."""
    count = taps.shape[1]
    length = x.shape[1] - count + 1
    out = x[:, :length] * taps[:, 0]
    for i in range(1, count):
        out = out + x[:, i : i + length] * taps[:, i]
    return out


def unit(x: Float[Tensor, "... c"]) -> Float[Tensor, "... c"]:
    """`x / |x|` over the last axis, in at least 32 bits."""
    wide = at_least_float32(x)
    return (wide * torch.rsqrt(wide.square().sum(-1, keepdim=True) + 1e-6)).to(x.dtype)
