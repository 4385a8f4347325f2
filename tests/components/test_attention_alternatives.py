"""Latent attention, block mixtures, native sparse attention and the gated delta rule, one token at a time."""

import itertools
from typing import Any

import pytest
import torch
from attention_sites import ALTERNATIVES, inputs, make_attention, make_site, total_cost
from naive_attention import NAIVE
from torch.utils.flop_counter import FlopCounterMode

from components import native, registry
from components.attention.pairs import block_pairs, earlier_blocks, strided_pairs
from components.slots import Attention

VARIATIONS: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ("mla", {}, {}, {}),
    ("mla", {}, {"q_lora_rank": 0}, {"kv_lora_rank": 5, "qk_nope_head_dim": 3}),
    ("moba", {}, {}, {}),
    ("moba", {"topk": 1}, {"num_key_value_heads": 1}, {}),
    ("moba", {"ratio": 1, "topk": 4}, {"num_key_value_heads": 4}, {}),
    ("moba", {"topk": 99}, {}, {}),
    ("nsa", {}, {}, {}),
    ("nsa", {"topk": 2}, {"num_key_value_heads": 4}, {"init_blocks": 0, "local_blocks": 1}),
    ("nsa", {"topk": 1}, {"num_key_value_heads": 1}, {}),
    ("nsa", {"ratio": 6, "topk": 3}, {}, {"compress_block_size": 6, "compress_stride": 2}),
    ("nsa", {"ratio": 4}, {"sliding_window": 40}, {"compress_block_size": 4, "compress_stride": 4}),
    ("nsa", {"topk": 99}, {}, {}),
    ("gated_deltanet", {}, {}, {}),
    ("gated_deltanet", {}, {}, {"chunk_size": 5, "conv_size": 2}),
    ("gated_deltanet", {}, {}, {"chunk_size": 1, "use_short_conv": False}),
]
IDS = [
    "-".join([name, *(f"{key}={value}" for part in parts for key, value in part.items())])
    for name, *parts in VARIATIONS
]
variations = pytest.mark.parametrize(("name", "layer", "dims", "options"), VARIATIONS, ids=IDS)


@variations
def test_layers_follow_the_equations(name: str, layer: Any, dims: Any, options: Any) -> None:
    site = make_site(name, layer, **dims)
    attention, x = make_attention(site, options=options), inputs(site, 35)
    with torch.no_grad():
        for length in (1, 3, 35):
            found = attention(x[:, :length])[0]
            for b in range(2 if length < 35 else 1):
                naive = NAIVE[name](attention, x[b, :length], ALTERNATIVES[name] | layer, options)
                torch.testing.assert_close(found[b], attention.output_projection(naive[None])[0])


@variations
def test_no_output_depends_on_later_tokens(name: str, layer: Any, dims: Any, options: Any) -> None:
    site = make_site(name, layer, **dims)
    attention, x = make_attention(site, options=options), inputs(site, 37)
    with torch.no_grad():
        before = attention(x)[0]
        for t in range(37):
            changed = x.clone()
            changed[:, t:] += 3.0
            after = attention(changed)[0]
            assert torch.equal(after[:, :t], before[:, :t])
            assert not torch.equal(after[:, t], before[:, t])


@variations
def test_sequences_of_a_batch_are_alone(name: str, layer: Any, dims: Any, options: Any) -> None:
    site = make_site(name, layer, **dims)
    attention, x = make_attention(site, options=options), inputs(site, 23, batch=3)
    with torch.no_grad():
        torch.testing.assert_close(attention(x)[0][1:2], attention(x[1:2])[0])


@variations
def test_steps_continue_the_sequence_and_keep_what_the_cost_says(
    name: str, layer: Any, dims: Any, options: Any
) -> None:
    site = make_site(name, layer, **dims)
    attention, x = make_attention(site, options=options), inputs(site, 45)
    cls, config = type(attention), registry.get("attention", name).config(options)
    with torch.no_grad():
        whole = attention(x)[0]
        for sizes in ([1] * 45, [1, 3, 9, 1, 2, 12, 17], [20, 25]):
            cache, outputs, at = None, [], 0
            for size in sizes:
                y, cache = attention.step(x[:, at : at + size], cache)
                outputs.append(y)
                at += size
                assert cache.length == at
                assert cache.kv_bytes == cls.cost(config, site, at).kv_bytes
            torch.testing.assert_close(torch.cat(outputs, dim=1), whole)


@variations
def test_parameters_and_kernel_work_are_exact(name: str, layer: Any, dims: Any, options: Any) -> None:
    site = make_site(name, layer, **dims)
    attention = make_attention(site, options=options)
    for length in (1, 4, 8, 33, 100):
        cost = total_cost(site, length, options=options)
        assert cost.params == cost.active_params == sum(p.numel() for p in attention.parameters())
        with native.switched_off(), FlopCounterMode(display=False) as counter, torch.no_grad():
            attention(inputs(site, length, batch=3))
        assert counter.get_total_flops() == 3 * cost.kernel_flops


@pytest.mark.parametrize("length", [1, 5, 7, 8, 64, 100])
def test_pair_counts_are_those_of_counting(length: int) -> None:
    queries = range(length)
    for block, topk in itertools.product((1, 5, 8, 150), (1, 2, 3, 40)):
        assert earlier_blocks(length, block) == sum(t // block for t in queries)
        assert block_pairs(length, block, topk) == sum(
            min(topk - 1, t // block) * block + t % block + 1 for t in queries
        )
    for size, stride in ((1, 1), (4, 2), (6, 3), (8, 8), (200, 100)):
        starts = range(0, length, stride)
        expected = sum(start + size - 1 <= t for t in queries for start in starts)
        assert strided_pairs(length, size, stride) == expected


def test_flops_follow_the_formulas_per_token() -> None:
    d, h, g, c, s = 24, 4, 2, 12, 100
    out = 2 * s * (h * c * 7 + 2 * 7 * d)
    causal = s * (s + 1) // 2
    mla = total_cost(make_site("mla"), s)
    latent, rope, q = 48, 4, 10
    matrices = d * q + q * h * (c + rope) + d * (latent + rope) + latent * h * 2 * c
    assert mla.flops == out + 2 * s * matrices + 2 * h * (c + rope + c) * causal
    moba = total_cost(make_site("moba"), s)
    pairs = sum(min(2, t // 7) * 7 + t % 7 + 1 for t in range(s))
    assert moba.flops == out + 2 * s * d * c * (h + 2 * g) + 4 * h * c * pairs
    assert moba.frozen_flops == 2 * h * c * sum(t // 7 for t in range(s))
    nsa = total_cost(make_site("nsa"), s)
    runs = sum(t + 1 >= 4 and (t + 1) % 2 == 0 for t in range(s))
    pairs = sum(max(0, (t + 1 - 4) // 2 + 1) for t in range(s))
    pairs += sum(min(3, t // 8) * 8 + t % 8 + 1 for t in range(s))
    pairs += sum(min(5, t + 1) for t in range(s))
    mlps = 2 * g * runs * 2 * (4 * c * c + c * c)
    assert nsa.flops == out + 2 * s * d * (h * c + 6 * g * c + 3 * h) + mlps + 4 * h * c * pairs
    delta = total_cost(make_site("gated_deltanet"), s)
    # Chunks of 32, 32, 32 and 4 tokens: four products over pairs of tokens, two of them with the diagonal,
    # and what reads the state before a chunk twice and writes it once.
    within = sum(size * (size - 1) // 2 * 8 * c + size * 4 * c for size in (32, 32, 32, 4))
    between = (s - 32) * 4 * c * c + 96 * 2 * c * c
    projections = 2 * s * (d * (4 * h * c + 2 * h) + 3 * h * c * 4)
    assert delta.flops == out + projections + h * (within + between)


@pytest.mark.parametrize("name", ["mla", "moba", "nsa"])
def test_decoding_costs_what_a_step_runs(name: str) -> None:
    """But for tokens that a step computes and masks, and a run's MLP, which is spread over its stride."""
    site = make_site(name)
    attention = make_attention(site)
    block, topk, per_pair = site.layer.ratio, site.layer.topk, 4 * 4 * 12
    for context in (17, 25, 38, 41):
        x = inputs(site, context, batch=1)
        with torch.no_grad():
            cache = attention.step(x[:, :-1])[1]
            with native.switched_off(), FlopCounterMode(display=False) as counter:
                attention.step(x[:, -1:], cache)
        extra = 0
        if name != "mla":
            attended = min(topk - 1, context // block) * block + context % block
            extra += per_pair * (context - attended)
        if name == "nsa":
            per_run = 2 * 2 * 2 * (4 * 12 * 12 + 12 * 12)
            extra += per_pair + per_run * (context % 2 == 0) - per_run // 2
        assert counter.get_total_flops() == total_cost(site, context).decode_flops + extra


def test_a_state_of_constant_size_and_a_small_latent() -> None:
    delta = [total_cost(make_site("gated_deltanet"), n) for n in (1000, 2000)]
    assert delta[0].kv_bytes == delta[1].kv_bytes == 2 * 4 * (12 * 12 + 3 * 12 * 3)
    assert delta[0].decode_flops == delta[1].decode_flops
    assert delta[1].flops == pytest.approx(2 * delta[0].flops, rel=0.01)
    mla, dense = (total_cost(make_site(name, num_key_value_heads=4), 1000) for name in ("mla", "dense"))
    assert mla.kv_bytes == 2 * (48 + 4) * 1000
    assert dense.kv_bytes == 2 * 2 * 48 * 1000


@pytest.mark.parametrize("name", ["moba", "nsa"])
def test_choosing_all_blocks_is_full_attention(name: str) -> None:
    site = make_site(name, {"topk": 6, "ratio": 7})
    attention, x = make_attention(site), inputs(site, 38)
    if name == "moba":
        dense = make_attention(make_site("dense"))
        dense.load_state_dict(attention.state_dict())
        # The rotation's base depends on the ratio, so the dense layer gets the other's.
        dense.position = attention.position
        torch.testing.assert_close(attention(x)[0], dense(x)[0])
    chosen = make_attention(make_site(name, {"topk": 3, "ratio": 7}))
    assert not torch.allclose(attention(x)[0], chosen(x)[0])


@pytest.mark.parametrize("name", list(ALTERNATIVES))
def test_gradients_reach_every_element(name: str) -> None:
    site = make_site(name)
    attention, x = make_attention(site), inputs(site, 38).requires_grad_()
    attention(x)[0].square().sum().backward()
    assert x.grad is not None
    assert x.grad.any(-1).all()
    for key, parameter in attention.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert (parameter.grad != 0).all(), key


def test_no_gradient_passes_through_a_choice() -> None:
    """Moving a block's mean key a little moves the output only through the tokens that are attended to."""
    site = make_site("moba")
    attention, x = make_attention(site), inputs(site, 38)
    positions = torch.arange(38)
    queries, keys, _ = attention._project(x.requires_grad_(), positions)  # type: ignore[operator]
    means = keys[:, :35].unflatten(1, (5, 7)).mean(2)
    chosen = attention.choose(queries, means, positions)  # type: ignore[operator]
    assert not chosen.requires_grad
    assert chosen.sum(-1).tolist() == [[[min(2, t // 7) for t in range(38)]] * 4] * 2


def test_mixed_precision_is_close_to_single_and_finite() -> None:
    for name in ALTERNATIVES:
        site = make_site(name)
        attention, x = make_attention(site, torch.float32), inputs(site, 38).float()
        with torch.no_grad():
            for parameter in attention.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(0.3)
        exact = attention(x)[0]
        with torch.autocast("cpu", torch.bfloat16):
            mixed = attention(x)[0]
        mixed.float().sum().backward()
        assert (mixed - exact).norm() < 0.1 * exact.norm(), name
        half = attention.to(torch.bfloat16)(x.bfloat16())[0]
        assert half.dtype == torch.bfloat16
        assert half.isfinite().all()


def test_extreme_decay_is_exact_to_rounding() -> None:
    """Ratios of decays over a chunk overflow unless they are formed as differences of logarithms."""
    site = make_site("gated_deltanet")
    attention, x = make_attention(site), inputs(site, 40)
    with torch.no_grad():
        attention.get_parameter("A_log").fill_(5.0)
        naive = NAIVE["gated_deltanet"](attention, x[0], {}, {})
        torch.testing.assert_close(attention(x)[0][0], attention.output_projection(naive[None])[0])


def test_latent_attention_is_that_of_transformers() -> None:
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
        DeepseekV3Attention,
        DeepseekV3RotaryEmbedding,
    )

    site = make_site("mla")
    ours = make_attention(site, sink="none", output_projection="dense")
    config = DeepseekV3Config(
        hidden_size=24,
        num_attention_heads=4,
        num_key_value_heads=4,
        q_lora_rank=10,
        kv_lora_rank=48,
        qk_rope_head_dim=4,
        qk_nope_head_dim=12,
        v_head_dim=12,
        rope_interleave=True,
        attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    theirs = DeepseekV3Attention(config, layer_idx=0).double()
    names = {
        "q_a_proj.weight": "q_a",
        "q_a_layernorm.weight": "q_a_norm",
        "q_b_proj.weight": "q_b",
        "kv_a_proj_with_mqa.weight": "kv_a",
        "kv_a_layernorm.weight": "kv_a_norm",
        "kv_b_proj.weight": "kv_b",
        "o_proj.weight": "output_projection.weight",
    }
    weights = ours.state_dict()
    theirs.load_state_dict({key: weights.pop(name) for key, name in names.items()})
    assert not weights
    x = inputs(site, 33)
    mask = torch.full((33, 33), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    rotation = DeepseekV3RotaryEmbedding(config)(x, torch.arange(33)[None])
    with torch.no_grad():
        expected = theirs(x, rotation, mask)[0]
        torch.testing.assert_close(ours(x)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "layer", "dims", "options", "message"),
    [
        ("mla", {}, {"qk_rope_head_dim": 0}, {}, "qk_rope_head_dim=0 .* Allowed: even numbers from 2"),
        ("moba", {"ratio": 0}, {}, {}, "ratio=0 must be at least 1"),
        ("moba", {"topk": 0}, {}, {}, "index_topk=0 must be at least 1"),
        ("moba", {}, {"num_key_value_heads": 3}, {}, "num_key_value_heads=3 .* Allowed: 1, 2, 4"),
        ("nsa", {}, {}, {"compress_stride": 3}, "compress_stride=3 does not divide .* Allowed: 1, 2, 4, 8"),
        ("nsa", {}, {}, {"compress_block_size": 5}, "compress_block_size=5 .* Allowed: 2, 4, 6, 8"),
        ("nsa", {}, {"sliding_window": 0}, {}, "sliding_window=0 must be at least 1"),
    ],
)
def test_what_cannot_work_is_refused(name: str, layer: Any, dims: Any, options: Any, message: str) -> None:
    entry = registry.get("attention", name)
    with pytest.raises(ValueError, match=message):
        entry.cls.check(entry.config(options), make_site(name, layer, **dims), 64)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mla", {"kv_lora_rank": -1}, "kv_lora_rank=-1 must be at least 0"),
        ("nsa", {"local_blocks": 0}, "local_blocks=0 must be at least 1"),
        ("gated_deltanet", {"conv_size": 1}, "conv_size=1 must be at least 2"),
        ("gated_deltanet", {"chunk_size": 0}, "chunk_size=0 must be at least 1"),
    ],
)
def test_impossible_options_are_refused(name: str, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        registry.get("attention", name).config(options)


def test_what_hardly_works_is_told() -> None:
    def told(name: str, layer: dict[str, Any] | None = None, length: int = 64, **options: Any) -> list[str]:
        entry = registry.get("attention", name)
        assert issubclass(entry.cls, Attention)
        return entry.cls.warnings(entry.config(options), make_site(name, layer), length)

    assert told("mla", kv_lora_rank=8) == []
    assert "no bottleneck" in told("mla")[0]
    assert told("moba") == []
    assert "none is ever chosen" in told("moba", {"topk": 1})[0]
    assert "64 tokens are only 4 blocks of 16" in told("moba", {"ratio": 16, "topk": 4})[0]
    assert told("nsa") == []
    assert "none is selected by its score" in told("nsa", {"topk": 3})[0]
    assert "every query selects all of them" in told("nsa", {"topk": 8})[0]
    assert told("gated_deltanet") == []
