"""Where every tensor of a DeepSeek-V4 model lies in checkpoints: its names there, and how official files store it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ablate.interop import expressible
from ablate.model import shape_of
from ablate.variant import Variant
from components.spec import Layer

PLAIN, WIDE, BLOCKS, EXPERT, TABLE = "plain", "wide", "blocks", "expert", "table"
"""How official files store a tensor: in BF16, in FP32, in FP8 blocks, as an expert's (FP4 or FP8), in integers."""


@dataclass(frozen=True, slots=True)
class Place:
    """One tensor of ours and what it is made of elsewhere: matrices one below the other, in this order.

    Attributes:
        ours: name in the `state_dict` of `LanguageModel`.
        shape: there.
        official: names of the pieces in official files; all pieces have one shape.
        native: the same in the `state_dict` of transformers; empty for prediction layers, which it has not.
        kind: how official files store the pieces.
    """

    ours: str
    shape: tuple[int, ...]
    official: tuple[str, ...]
    native: tuple[str, ...]
    kind: str

    @property
    def piece_shape(self) -> tuple[int, ...]:
        """Shape of one official piece."""
        if len(self.official) == 1:
            return self.shape
        return math.prod(self.shape[:-1]) // len(self.official), self.shape[-1]

    @property
    def saved(self) -> tuple[str, ...]:
        """Names of the official pieces in files that `save_pretrained` of transformers writes."""
        return tuple(_saved(name) for name in self.official)


def places(variant: Variant) -> list[Place]:
    """All tensors of a variant that DeepSeek-V4 can express, layer by layer, prediction layers last.

    Raises:
        BadInputError: it cannot, because of a component that is named.
    """
    expressible.options(variant, "DeepSeek-V4")
    if variant.prediction_layers and variant.config("mtp")[0] != "v4":
        raise expressible.inexpressible("DeepSeek-V4", "mtp", variant.config("mtp")[0], "v4")
    shapes = {name: tuple(tensor.shape) for name, tensor in shape_of(variant).state_dict().items()}
    found = [
        Place(ours, shapes.pop(ours), official, native, kind)
        for ours, official, native, kind in _all(variant)
    ]
    assert not shapes, f"no counterpart for {sorted(shapes)}"
    return found


_Names = tuple[str, tuple[str, ...], tuple[str, ...], str]
"""Ours, official, native, kind."""


def _all(variant: Variant) -> Iterator[_Names]:
    experts = variant.dims.n_routed_experts
    yield from _single("", "", "", EDGES)
    yield from _single("", "", "model.", END)
    for layer in variant.layers:
        prefix = f"layers.{layer.index}."
        yield from _layer(layer, prefix, prefix, f"model.{prefix}", experts)
    for index, layer in enumerate(variant.prediction_layers):
        prefix = f"mtp.{index}."
        named = [*_single(prefix, prefix, "", (*JOIN, *END))]
        named += _layer(layer, f"{prefix}block.", prefix, "", experts)
        yield from ((ours, official, (), kind) for ours, official, _, kind in named)


def _layer(layer: Layer, ours: str, official: str, native: str, experts: int) -> Iterator[_Names]:
    yield from _single(ours, official, native, LAYER)
    inside = (f"{ours}attention.", f"{official}attn.", f"{native}self_attn.")
    yield from _single(*inside, ATTENTION)
    if layer.ratio:
        inner = (f"{inside[0]}compressor.", f"{inside[1]}compressor.", f"{inside[2]}compressor.")
        yield from _single(*inner, COMPRESSOR)
    if layer.attention == "csa":
        indexer = (f"{inside[0]}indexer.", f"{inside[1]}indexer.", f"{inside[2]}compressor.indexer.")
        yield from _single(*indexer, INDEXER)
        yield from _single(f"{indexer[0]}compressor.", f"{indexer[1]}compressor.", indexer[2], COMPRESSOR)
    ffn, official, native = f"{ours}ffn.", f"{official}ffn.", f"{native}mlp."
    yield from _single(ffn, official, native, (GATE, HASHED if layer.router == "hash" else BALANCED))
    shared, routed = f"{native}shared_experts.", f"{native}experts."
    one = [f"{official}shared_experts."]
    each = [f"{official}experts.{e}." for e in range(experts)]
    halves = (f"{shared}gate_proj.weight", f"{shared}up_proj.weight")
    yield f"{ffn}shared.gate_up", _matrices(one, "w1", "w3"), halves, BLOCKS
    yield f"{ffn}shared.down", _matrices(one, "w2"), (f"{shared}down_proj.weight",), BLOCKS
    yield f"{ffn}gate_up", _matrices(each, "w1", "w3"), (f"{routed}gate_up_proj",), EXPERT
    yield f"{ffn}down", _matrices(each, "w2"), (f"{routed}down_proj",), EXPERT


def _matrices(experts: list[str], *names: str) -> tuple[str, ...]:
    return tuple(f"{expert}{name}.weight" for expert in experts for name in names)


def _single(
    ours: str, official: str, native: str, rows: tuple[tuple[str, str, str, str], ...]
) -> Iterator[_Names]:
    for mine, theirs, hf, kind in rows:
        yield f"{ours}{mine}", (f"{official}{theirs}",), (f"{native}{hf}",), kind


def _saved(official: str) -> str:
    """As transformers 5 undoes its renaming when it saves; some names it does not undo."""
    if official.startswith("mtp.") or official == "head.weight":
        return official
    if official == "embed.weight":
        return "model.embed_tokens.weight"
    if official.startswith("hc_head_"):
        return official.replace("hc_head_", "model.hc_head.hc_")
    return "model." + official.replace(".attn.kv_norm.", ".attn.norm.")


EDGES = (
    ("embedding", "embed.weight", "model.embed_tokens.weight", PLAIN),
    ("head", "head.weight", "lm_head.weight", PLAIN),
)
END = (
    ("norm.weight", "norm.weight", "norm.weight", PLAIN),
    *(
        (f"collapse.{name}", f"hc_head_{name}", f"hc_head.hc_{name}", WIDE)
        for name in ("fn", "base", "scale")
    ),
)
JOIN = (
    ("join.enorm", "enorm.weight", "", PLAIN),
    ("join.hnorm", "hnorm.weight", "", PLAIN),
    ("join.e_proj", "e_proj.weight", "", BLOCKS),
    ("join.h_proj", "h_proj.weight", "", BLOCKS),
)
LAYER = (
    ("attention_norm.weight", "attn_norm.weight", "input_layernorm.weight", PLAIN),
    ("ffn_norm.weight", "ffn_norm.weight", "post_attention_layernorm.weight", PLAIN),
    *(
        (f"{site}_residual.{name}", f"hc_{short}_{name}", f"{short}_hc.{name}", WIDE)
        for site, short in (("attention", "attn"), ("ffn", "ffn"))
        for name in ("fn", "base", "scale")
    ),
)
ATTENTION = (
    ("q_a", "wq_a.weight", "q_a_proj.weight", BLOCKS),
    ("q_a_norm", "q_norm.weight", "q_a_norm.weight", PLAIN),
    ("q_b", "wq_b.weight", "q_b_proj.weight", BLOCKS),
    ("kv", "wkv.weight", "kv_proj.weight", BLOCKS),
    ("kv_norm", "kv_norm.weight", "kv_norm.weight", PLAIN),
    ("sink.sinks", "attn_sink", "sinks", WIDE),
    ("output_projection.a", "wo_a.weight", "o_a_proj.weight", BLOCKS),
    ("output_projection.b", "wo_b.weight", "o_b_proj.weight", BLOCKS),
)
COMPRESSOR = (
    ("kv", "wkv.weight", "kv_proj.weight", PLAIN),
    ("gate", "wgate.weight", "gate_proj.weight", PLAIN),
    ("ape", "ape", "position_bias", WIDE),
    ("norm", "norm.weight", "kv_norm.weight", PLAIN),
)
INDEXER = (
    ("q_b", "wq_b.weight", "q_b_proj.weight", BLOCKS),
    ("weights", "weights_proj.weight", "scorer.weights_proj.weight", PLAIN),
)
GATE = ("router.weight", "gate.weight", "gate.weight", PLAIN)
HASHED = ("router.tid2eid", "gate.tid2eid", "gate.tid2eid", TABLE)
BALANCED = ("router.e_score_correction_bias", "gate.bias", "gate.e_score_correction_bias", WIDE)
