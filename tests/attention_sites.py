"""Single attention layers for tests: sites, and components with all parts and random weights."""

import dataclasses
from typing import Any

import torch

from components import registry
from components.slots import Attention, Component
from components.spec import Cost, Dims, Layer, Site

DIMS = Dims(
    vocab_size=31,
    hidden_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=12,
    qk_rope_head_dim=4,
    q_lora_rank=10,
    o_groups=2,
    o_lora_rank=7,
    sliding_window=5,
    index_n_heads=3,
    index_head_dim=8,
    moe_intermediate_size=16,
    n_routed_experts=4,
    n_shared_experts=1,
    num_experts_per_tok=2,
    routed_scaling_factor=1.5,
    rms_norm_eps=1e-6,
    initializer_range=0.02,
    max_position_embeddings=1024,
)
LAYERS: dict[str, dict[str, Any]] = {
    "dense": {},
    "sliding_window": {},
    "csa": {"ratio": 4, "overlap": True, "topk": 3},
    "hca": {"ratio": 7},
}
ALTERNATIVES: dict[str, dict[str, Any]] = {
    "mla": {},
    "moba": {"ratio": 7, "topk": 3},
    "nsa": {"ratio": 8, "topk": 4},
    "gated_deltanet": {},
}
PARTS = {
    "position": "rope",
    "sink": "per_head",
    "output_projection": "grouped",
    "compressor": "gated",
    "indexer": "lightning",
}


def make_site(attention: str, layer: dict[str, Any] | None = None, **dims: Any) -> Site:
    """A site for an attention entry; `layer` changes its schedule fields."""
    fields = (LAYERS | ALTERNATIVES)[attention] | (layer or {})
    return Site(dims=dataclasses.replace(DIMS, **dims), layer=Layer(index=0, attention=attention, **fields))


def make_part(slot: str, site: Site, name: str | None = None, **options: Any) -> Component:
    """One component without parts of its own, weights as constructed."""
    entry = registry.get(slot, name or PARTS[slot])
    sizes = {"width": site.dims.head_dim} if slot == "compressor" else {}
    return entry.cls(entry.config(options), site, **sizes)


def make_attention(
    site: Site, dtype: torch.dtype = torch.float64, options: dict[str, Any] | None = None, **names: str
) -> Attention:
    """The site's attention with the parts in `names`, all weights random and large enough to matter."""
    entry = registry.get("attention", site.layer.attention)
    parts = {slot: make_part(slot, site, names.get(slot)) for slot in entry.cls.uses}
    attention = entry.cls(entry.config(options), site, **parts).to(dtype)
    randomise(attention)
    return attention


def randomise(module: torch.nn.Module, seed: int = 1) -> None:
    """Fill every parameter with random numbers, norms around one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(1 + 0.3 * values if "norm" in name else 0.5 * values)


def total_cost(site: Site, seq_len: int, options: dict[str, Any] | None = None, **names: str) -> Cost:
    """Cost of the site's attention and all its parts."""
    entry = registry.get("attention", site.layer.attention)
    total = entry.cls.cost(entry.config(options), site, seq_len)
    for slot in entry.cls.uses:
        part = registry.get(slot, names.get(slot, PARTS[slot]))
        total += part.cls.cost(part.config(), site, seq_len)
    return total


def inputs(site: Site, length: int, batch: int = 2, seed: int = 0) -> torch.Tensor:
    """Random float64 input of an attention layer."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, site.dims.hidden_size, generator=generator, dtype=torch.float64)
