"""Single attention layers against transformers' DeepSeek-V4."""

import pytest
import torch
from attention_sites import inputs, make_attention, make_part, make_site
from transformers import DeepseekV4Config
from transformers.models.deepseek_v4.modeling_deepseek_v4 import (
    DeepseekV4Attention,
    DeepseekV4RotaryEmbedding,
)

KINDS = {
    "sliding_window": "sliding_attention",
    "csa": "compressed_sparse_attention",
    "hca": "heavily_compressed_attention",
}
NAMES = {
    "q_a_proj.weight": "q_a",
    "q_a_norm.weight": "q_a_norm",
    "q_b_proj.weight": "q_b",
    "kv_proj.weight": "kv",
    "kv_norm.weight": "kv_norm",
    "sinks": "sink.sinks",
    "o_a_proj.weight": "output_projection.a",
    "o_b_proj.weight": "output_projection.b",
    "compressor.kv_proj.weight": "compressor.kv",
    "compressor.gate_proj.weight": "compressor.gate",
    "compressor.position_bias": "compressor.ape",
    "compressor.kv_norm.weight": "compressor.norm",
    "compressor.indexer.kv_proj.weight": "indexer.compressor.kv",
    "compressor.indexer.gate_proj.weight": "indexer.compressor.gate",
    "compressor.indexer.position_bias": "indexer.compressor.ape",
    "compressor.indexer.kv_norm.weight": "indexer.compressor.norm",
    "compressor.indexer.q_b_proj.weight": "indexer.q_b",
    "compressor.indexer.scorer.weights_proj.weight": "indexer.weights",
}


@pytest.mark.parametrize("yarn", [1.0, 16.0])
@pytest.mark.parametrize("length", [1, 3, 4, 6, 7, 40, 64])
@pytest.mark.parametrize("attention", list(KINDS))
def test_outputs_are_those_of_transformers(attention: str, length: int, yarn: float) -> None:
    # With few indexer heads some scores are exactly zero, and which of them are chosen is arbitrary.
    site = make_site(attention, index_n_heads=16)
    dims = site.dims
    factor = dims.qk_rope_head_dim / dims.head_dim
    main = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": factor}
    compress = main | {"rope_theta": 160000.0}
    if yarn != 1:
        compress |= {
            "rope_type": "yarn",
            "factor": yarn,
            "original_max_position_embeddings": 65536,
            "beta_fast": 32,
            "beta_slow": 1,
            "attention_factor": 1.0,
        }
    config = DeepseekV4Config(
        hidden_size=dims.hidden_size,
        num_hidden_layers=1,
        num_attention_heads=dims.num_attention_heads,
        num_key_value_heads=1,
        head_dim=dims.head_dim,
        q_lora_rank=dims.q_lora_rank,
        o_groups=dims.o_groups,
        o_lora_rank=dims.o_lora_rank,
        sliding_window=dims.sliding_window,
        index_n_heads=dims.index_n_heads,
        index_head_dim=dims.index_head_dim,
        index_topk=3,
        partial_rotary_factor=factor,
        rope_parameters={"main": main, "compress": compress},
        layer_types=[KINDS[attention]],
        mlp_layer_types=["moe"],
        compress_rates={"compressed_sparse_attention": 4, "heavily_compressed_attention": 7},
        attn_implementation="eager",
    )
    ours = make_attention(site)
    ours.position = make_part("position", site, yarn_factor=yarn)
    theirs = DeepseekV4Attention(config, 0).double()
    state = ours.state_dict()
    theirs.load_state_dict({name: state[NAMES[name]] for name in theirs.state_dict()})
    x = inputs(site, length)
    positions = torch.arange(length).unsqueeze(0)
    rotary = DeepseekV4RotaryEmbedding(config)
    embeddings = {kind: rotary(x, positions, layer_type=kind) for kind in ("main", "compress")}
    query, key = torch.arange(length).unsqueeze(1), torch.arange(length)
    seen = (key <= query) & (key > query - dims.sliding_window)
    mask = torch.zeros(seen.shape, dtype=x.dtype).masked_fill(~seen, -torch.inf).expand(2, 1, -1, -1)
    with torch.no_grad():
        expected = theirs(x, embeddings, positions.expand(2, -1), mask)[0]
        torch.testing.assert_close(ours(x)[0], expected, rtol=1e-5, atol=2e-5)
