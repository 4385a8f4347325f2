"""Which of our variants are DeepSeek-V4 models, so that official files and transformers can hold them."""

from typing import Any

from ablate.errors import BadInputError
from ablate.variant import Variant

KINDS = {
    "sliding_window": "sliding_attention",
    "csa": "compressed_sparse_attention",
    "hca": "heavily_compressed_attention",
}
"""Our `attention` entries to transformers' layer types."""

ENTRIES = {
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
}
"""The only component of each slot that DeepSeek-V4 has, beside `router/hash` in its first layers."""

YARN = {
    "yarn_factor": "factor",
    "yarn_original": "original_max_position_embeddings",
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
}


def options(variant: Variant, whose: str) -> dict[str, Any]:
    """Configs of the components by slot, of a variant that both official files and transformers can hold.

    Prediction layers are not looked at.

    Args:
        whose: who cannot express another, for messages.

    Raises:
        BadInputError: a component or an option that DeepSeek-V4 does not have, by name.
    """
    found: dict[str, Any] = {}
    for slot, name, config in variant.slots:
        found[slot] = config
        if slot == "attention" and name not in KINDS:
            raise inexpressible(
                whose, "model.compress_ratios", variant.schedule, f"layers of {', '.join(KINDS)}"
            )
        if slot in ENTRIES and name != ENTRIES[slot] and (slot, name) != ("router", "hash"):
            raise inexpressible(whose, slot, name, ENTRIES[slot])
    if "indexer" in found and found["indexer"].train == "dense":
        raise inexpressible(whose, "indexer.args.train", "dense", "attention to the top-k entries")
    for slot, option, only in (("ffn", "activation", "swiglu"), ("residual", "hc_head", "learned")):
        if getattr(found[slot], option) != only:
            raise inexpressible(whose, f"{slot}.args.{option}", getattr(found[slot], option), only)
    if variant.dims.n_shared_experts != 1:
        raise inexpressible(whose, "model.n_shared_experts", variant.dims.n_shared_experts, 1)
    schedule = "model.compress_ratios"
    for layer in variant.layers:
        if layer.overlap != (layer.attention == "csa"):
            raise inexpressible(whose, schedule, variant.schedule, "overlap in csa and nowhere else")
    if len({layer.topk for layer in variant.layers if layer.topk}) > 1:
        raise inexpressible(whose, schedule, variant.schedule, "the same top-k in all csa layers")
    return found


def topk(variant: Variant) -> int:
    """Entries that queries choose in all layers where they do; 1 where none does."""
    return next((layer.topk for layer in variant.layers if layer.topk), 1)


def inexpressible(whose: str, key: str, value: Any, allowed: Any) -> BadInputError:
    """The error for a setting that is none of DeepSeek-V4's."""
    return BadInputError(f"{whose} has no {key}={value}. It only has {allowed}.")
