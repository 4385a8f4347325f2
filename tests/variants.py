"""Small models for tests."""

import dataclasses
from typing import Any

from ablate import schema
from ablate.variant import Variant

SIZES: dict[str, Any] = {
    "vocab_size": 31,
    "hidden_size": 32,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "head_dim": 16,
    "qk_rope_head_dim": 8,
    "q_lora_rank": 24,
    "o_groups": 2,
    "o_lora_rank": 12,
    "sliding_window": 6,
    "compress_ratios": "swa,csa@4,hca@8,csa@4,swa",
    "index_n_heads": 2,
    "index_head_dim": 16,
    "index_topk": 3,
    "moe_intermediate_size": 20,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "num_hash_layers": 1,
    "max_position_embeddings": 4096,
}
SLOTS = {
    "residual": "mhc",
    "norm": "rmsnorm",
    "post_norm": "none",
    "position": "rope",
    "sink": "per_head",
    "output_projection": "grouped",
    "compressor": "gated",
    "indexer": "lightning",
    "ffn": "moe",
    "router": "learned",
    "mtp": "v4",
}


def make_run(**changes: Any) -> schema.Run:
    """A configuration of a five-layer model with every mechanism; slots are changed by `slot=Slot(...)`."""
    slots = {name: changes.pop(name, schema.Slot(default)) for name, default in SLOTS.items()}
    optimizer = changes.pop("optimizer", schema.Optimizer("adamw"))
    model = schema.Model(**(SIZES | changes))
    return dataclasses.replace(schema.Run(), model=model, optimizer=optimizer, **slots)


def make_variant(**changes: Any) -> Variant:
    """The variant of `make_run`."""
    return Variant.from_run(make_run(**changes))
