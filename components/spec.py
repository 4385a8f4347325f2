"""What a component is told and what it must declare: sizes, its place in the model, its cost, its search ranges."""

from dataclasses import dataclass, field, fields
from typing import Any

FLOP_CONVENTION = "afl-1"
"""Version of the rules behind every FLOP figure: multiply-add = 2, matmul-class work, exact attention pairs."""

LEFT_OUT = -100
"""Label of a position that counts in no loss."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dims:
    """Sizes that the components of one model share, under the official `config.json` names."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    qk_rope_head_dim: int
    q_lora_rank: int
    o_groups: int
    o_lora_rank: int
    sliding_window: int
    index_n_heads: int
    index_head_dim: int
    moe_intermediate_size: int
    n_routed_experts: int
    n_shared_experts: int
    num_experts_per_tok: int
    routed_scaling_factor: float
    rms_norm_eps: float
    initializer_range: float
    max_position_embeddings: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One layer of a schedule. Mechanism and numbers are separate: changing a ratio never changes the mechanism."""

    index: int
    attention: str
    """Name of the `attention` entry."""
    ratio: int = 0
    """Tokens per compressed entry; 0 where the mechanism does not compress."""
    overlap: bool = False
    """Whether a compressed entry also reads the previous block."""
    topk: int = 0
    """Compressed entries a query may select; 0 where the mechanism does not select."""
    router: str = "learned"
    """Name of the `router` entry, for feed-forward entries that route."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """The place a component is built for."""

    dims: Dims
    layer: Layer


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Exact integer cost of one component at one site, for one sequence of the length it was asked for.

    Attributes:
        params: trainable parameters; equals `sum(p.numel())`.
        active_params: parameters that one token uses.
        flops: forward FLOPs per sequence (`afl-1`) whose backward costs twice as much again.
        detached_flops: forward FLOPs per sequence whose inputs take no gradient, only weights do, so that the
            backward costs as much again (e.g. projections of an indexer that is trained).
        frozen_flops: forward FLOPs per sequence that no gradient reaches (e.g. an untrained indexer's).
        kernel_flops: forward FLOPs per sequence that the kernels here really run and PyTorch's FLOP counter sees,
            masked work included; a test demands equality.
        kv_bytes: bytes of cache for a context of that length, at two bytes per element.
        decode_flops: forward FLOPs to produce one token after a context of that length.
    """

    params: int = 0
    active_params: int = 0
    flops: int = 0
    detached_flops: int = 0
    frozen_flops: int = 0
    kernel_flops: int = 0
    kv_bytes: int = 0
    decode_flops: int = 0

    @property
    def forward_flops(self) -> int:
        """Forward FLOPs per sequence, whatever their backward costs."""
        return self.flops + self.detached_flops + self.frozen_flops

    @property
    def train_flops(self) -> int:
        """Training FLOPs per sequence: three times the forward where gradient flows, twice where only weights
        take it, once where nothing does."""
        return 3 * self.flops + 2 * self.detached_flops + self.frozen_flops

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Cost)})

    def __mul__(self, times: int) -> "Cost":
        return Cost(**{f.name: getattr(self, f.name) * times for f in fields(Cost)})


@dataclass(frozen=True, kw_only=True, slots=True)
class Alarm:
    """When a diagnostic means that something is broken, rather than good or bad.

    Attributes:
        metric: the diagnostic by the last part of its name, such as `max_vio`.
        above, below: bounds beyond which it is; one of them, or both.
        why: what is broken then, to be read after the value.
        source: where the bound is from.
        after: share of a trial's compute that must be over before it is judged; until then a component may be
            as untrained as it starts.
        everywhere: whether all layers that report the metric have to be beyond the bound.
    """

    metric: str
    above: float | None = None
    below: float | None = None
    why: str
    source: str
    after: float = 0.5
    everywhere: bool = False

    @property
    def bounds(self) -> str:
        """In words."""
        sides = (("above", self.above), ("below", self.below))
        return " or ".join(f"{side} {bound:g}" for side, bound in sides if bound is not None)

    def beyond(self, value: float) -> bool:
        """Whether that value means trouble."""
        return (self.above is not None and value > self.above) or (
            self.below is not None and value < self.below
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Range:
    """Search range of one scalar option; library-neutral."""

    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    choices: tuple[Any, ...] = ()


def searchable(
    default: Any, *, low: Any = None, high: Any = None, log: bool = False, choices: tuple[Any, ...] = ()
) -> Any:
    """A config field whose default and search range stand in one line."""
    return field(default=default, metadata={"range": Range(low=low, high=high, log=log, choices=choices)})


def search_space(config: type) -> dict[str, Range]:
    """Search ranges declared by a component's `Config`, by field name."""
    return {f.name: f.metadata["range"] for f in fields(config) if "range" in f.metadata}


@dataclass(frozen=True, kw_only=True, slots=True)
class NoOptions:
    """Config of a component without options."""
