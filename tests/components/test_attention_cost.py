"""Costs of attention layers against what is built and run, and settings that are refused or told about."""

import itertools

import pytest
import torch
from attention_sites import LAYERS, inputs, make_attention, make_site, total_cost
from torch.utils.flop_counter import FlopCounterMode

from components import native
from components.attention.csa import CompressedSparseAttention
from components.attention.dense import DenseAttention
from components.attention.hca import HeavilyCompressedAttention
from components.attention.pairs import causal_pairs, entry_pairs, window_pairs
from components.attention.sliding_window import SlidingWindow
from components.indexer.lightning import Lightning
from components.spec import NoOptions

CHOICES = [
    {},
    {"sink": "none", "position": "nope"},
    {"output_projection": "dense"},
    {"compressor": "mean_pool"},
    {"indexer": "dense"},
]


@pytest.mark.parametrize("length", [1, 5, 7, 64, 100, 131])
def test_pair_counts_are_those_of_counting(length: int) -> None:
    queries = range(length)
    assert causal_pairs(length) == sum(t + 1 for t in queries)
    for window, ratio, topk in itertools.product((1, 5, 64, 200), (1, 4, 7, 150), (1, 3, 40)):
        assert window_pairs(length, window) == sum(min(t + 1, window) for t in queries)
        assert entry_pairs(length, ratio) == sum((t + 1) // ratio for t in queries)
        assert entry_pairs(length, ratio, topk) == sum(min(topk, (t + 1) // ratio) for t in queries)


@pytest.mark.parametrize("names", CHOICES, ids=lambda names: "-".join(names.values()) or "official")
@pytest.mark.parametrize("attention", list(LAYERS))
def test_parameters_and_kernel_work_are_exact(attention: str, names: dict[str, str]) -> None:
    for layer_fields, length in (
        ({}, 8),
        ({}, 33),
        ({}, 100),
        ({"topk": 50} if attention == "csa" else {}, 100),
    ):
        site = make_site(attention, layer_fields)
        layer, cost = make_attention(site, **names), total_cost(site, length, **names)
        assert cost.params == cost.active_params == sum(p.numel() for p in layer.parameters())
        with native.switched_off(), FlopCounterMode(display=False) as counter, torch.no_grad():
            layer(inputs(site, length, batch=3))
        assert counter.get_total_flops() == 3 * cost.kernel_flops


@pytest.mark.parametrize("attention", list(LAYERS))
def test_training_runs_three_times_the_forward_where_gradient_flows(attention: str) -> None:
    site = make_site(attention)
    layer = make_attention(site)
    with native.switched_off(), FlopCounterMode(display=False) as forward, torch.no_grad():
        layer(inputs(site, 40))
    with native.switched_off(), FlopCounterMode(display=False) as both:
        layer(inputs(site, 40).requires_grad_())[0].sum().backward()
    frozen = 2 * Lightning.cost(Lightning.Config(), site, 40).kernel_flops if attention == "csa" else 0
    assert both.get_total_flops() == 3 * forward.get_total_flops() - 2 * frozen


def test_flops_follow_the_formulas_per_token() -> None:
    d, q, h, c, g, r, s = 24, 10, 4, 12, 2, 7, 40
    trunk = 2 * s * (d * q + q * h * c + d * c + h * c * r + g * r * d)
    window = 5 * 6 // 2 + (s - 5) * 5
    assert total_cost(make_site("sliding_window"), s).flops == trunk + 4 * h * c * window
    heavy = sum((t + 1) // 7 for t in range(s))
    expected = trunk + 2 * s * 2 * d * c + 4 * h * c * (window + heavy)
    assert total_cost(make_site("hca"), s).flops == expected
    chosen = sum(min(3, (t + 1) // 4) for t in range(s))
    visible = sum((t + 1) // 4 for t in range(s))
    cost = total_cost(make_site("csa"), s)
    attention = trunk + 2 * s * 4 * d * c + 4 * h * c * (window + chosen)
    scores = 2 * 3 * 8 * visible
    assert cost.flops == attention + scores
    assert cost.detached_flops == 2 * s * (4 * d * 8 + q * 3 * 8 + d * 3)
    assert cost.frozen_flops == 0
    assert cost.train_flops == 3 * attention + 3 * scores + 2 * cost.detached_flops
    everything = total_cost(make_site("csa"), s, indexer="dense")
    assert everything.flops == attention + 4 * h * c * (visible - chosen)
    dense = total_cost(make_site("dense"), s, output_projection="dense")
    assert dense.flops == 2 * s * (2 * d * h * c + 2 * d * 2 * c) + 4 * h * c * s * (s + 1) // 2


def test_cache_and_decoding_follow_the_formulas() -> None:
    n, d, h, c = 100, 24, 4, 12
    window, csa, hca, dense = (
        total_cost(make_site(name), n) for name in ("sliding_window", "csa", "hca", "dense")
    )
    assert window.kv_bytes == 2 * 5 * c
    assert csa.kv_bytes == 2 * (5 * c + 25 * (c + 8))
    assert hca.kv_bytes == 2 * (5 * c + 14 * c)
    assert dense.kv_bytes == 2 * 2 * 2 * c * n
    assert hca.decode_flops - window.decode_flops == 4 * d * c + 4 * h * c * 14
    indexer = 2 * (4 * d * 8 + 10 * 3 * 8 + d * 3) + 2 * 3 * 8 * 25
    assert csa.decode_flops - window.decode_flops == 8 * d * c + 4 * h * c * 3 + indexer


def test_the_mini_model_has_the_published_sizes() -> None:
    mini = {
        "hidden_size": 1536,
        "num_attention_heads": 24,
        "head_dim": 64,
        "q_lora_rank": 512,
        "o_groups": 4,
        "o_lora_rank": 512,
        "sliding_window": 64,
        "index_n_heads": 16,
        "index_head_dim": 96,
    }
    csa = make_site("csa", {"ratio": 4, "topk": 192}, **mini)
    hca = make_site("hca", {"ratio": 112}, **mini)
    window = make_site("sliding_window", **mini)
    window_params, csa_params, hca_params = (total_cost(site, 4096).params for site in (window, csa, hca))
    layers = 13 * csa_params + 12 * hca_params + 3 * window_params
    assert round(28 * window_params / 1e6, 2) == 156.91
    assert round((layers - 28 * window_params) / 1e6, 2) == round(7.57 + 18.22, 2)


@pytest.mark.parametrize(
    ("cls", "attention", "layer", "dims", "length", "message"),
    [
        (CompressedSparseAttention, "csa", {"ratio": 0}, {}, 32, "ratio=0 leaves .* Allowed: 1 to 32"),
        (
            HeavilyCompressedAttention,
            "hca",
            {"ratio": 33},
            {},
            32,
            "ratio=33 .* seq_len=32 .* Allowed: 1 to 32",
        ),
        (
            SlidingWindow,
            "sliding_window",
            {},
            {"sliding_window": 0},
            32,
            "sliding_window=0 must be at least 1",
        ),
        (SlidingWindow, "sliding_window", {}, {"q_lora_rank": 0}, 32, "q_lora_rank=0 must be at least 1"),
        (
            DenseAttention,
            "dense",
            {},
            {"num_key_value_heads": 3},
            32,
            "num_key_value_heads=3 .* Allowed: 1, 2, 4",
        ),
    ],
)
def test_what_cannot_work_is_refused(cls, attention, layer, dims, length, message) -> None:
    with pytest.raises(ValueError, match=message):
        cls.check(NoOptions(), make_site(attention, layer, **dims), length)


def test_what_hardly_works_is_told() -> None:
    none = NoOptions()
    seed = make_site("hca", {"ratio": 112}, sliding_window=64)
    assert len(HeavilyCompressedAttention.warnings(none, seed, 4096)) == 1
    assert "up to 47 tokens" in HeavilyCompressedAttention.warnings(none, seed, 4096)[0]
    assert HeavilyCompressedAttention.warnings(none, make_site("hca", {"ratio": 6}), 64) == []
    assert (
        "3 compressed entries"
        in CompressedSparseAttention.warnings(none, make_site("csa", {"ratio": 5}), 19)[0]
    )
