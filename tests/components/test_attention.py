"""Attention layers against their equations and against the traps that each has one test for."""

import itertools
from typing import cast

import pytest
import torch
from attention_sites import LAYERS, inputs, make_attention, make_part, make_site
from torch import Tensor

from components.attention import core, trunk
from components.attention.core import Blocks, joint_attention
from components.attention.csa import CompressedSparseAttention
from components.attention.dense import DenseAttention
from components.attention.hca import HeavilyCompressedAttention
from components.attention.trunk import Trunk
from components.functional import rms_norm
from components.spec import NoOptions

CHOICES = [
    *({"position": name} for name in ("rope", "rope_no_inverse", "nope")),
    {"sink": "none"},
    {"output_projection": "dense"},
    {"compressor": "mean_pool"},
    {"indexer": "dense"},
]


def _by_equations(layer: Trunk, x: Tensor, window: int) -> Tensor:
    """One sequence [s, d], one query, head and key at a time."""
    positions = torch.arange(len(x))
    latent = rms_norm(x @ layer.q_a.T, layer.q_a_norm, layer.eps)
    queries = rms_norm((latent @ layer.q_b.T).unflatten(-1, (layer.heads, -1)), None, layer.eps)
    queries = layer.position.rotate(queries[None], positions)[0]
    kv = layer.position.rotate(rms_norm(x @ layer.kv.T, layer.kv_norm, layer.eps)[None], positions)[0]
    compressed, _ = layer.compress(x[None], latent[None], queries[None], kv[None])
    out = torch.zeros_like(queries)
    sinks = cast(Tensor, layer.sink.logits())
    for t, head in itertools.product(range(len(x)), range(layer.heads)):
        keys = [kv[j] for j in range(max(0, t - window + 1), t + 1)]
        if compressed is not None:
            entries, seen = compressed
            keys += [entries[0, i] for i in range(entries.shape[1]) if seen[0, t, i]]
        exps = [torch.exp(queries[t, head] @ key / len(key) ** 0.5) for key in keys]
        total = sum(exps) + torch.exp(sinks[head])
        out[t, head] = sum(e / total * key for e, key in zip(exps, keys, strict=True))
    return layer.output_projection(layer.position.unrotate(out[None], positions))[0]


@pytest.mark.parametrize("attention", ["sliding_window", "csa", "hca"])
def test_layers_follow_the_equations(attention: str) -> None:
    site = make_site(attention)
    layer, x = make_attention(site), inputs(site, 33, batch=1)
    assert isinstance(layer, Trunk)
    torch.testing.assert_close(layer(x)[0][0], _by_equations(layer, x[0], window=5))


def test_dense_attention_follows_the_equations() -> None:
    site = make_site("dense")
    layer, x = make_attention(site), inputs(site, 9, batch=1)[0]
    assert isinstance(layer, DenseAttention)
    q, k, v = (x @ w.T for w in (layer.q, layer.k, layer.v))
    q, k = (layer.position.rotate(z.unflatten(-1, (-1, 12))[None], torch.arange(9))[0] for z in (q, k))
    out = torch.zeros(9, 4, 12, dtype=torch.float64)
    sinks = cast(Tensor, layer.sink.logits())
    for t, head in itertools.product(range(9), range(4)):
        exps = torch.exp(k[: t + 1, head // 2] @ q[t, head] / 12**0.5)
        share = exps / (exps.sum() + torch.exp(sinks[head]))
        out[t, head] = share @ v.unflatten(-1, (2, 12))[: t + 1, head // 2]
    torch.testing.assert_close(layer(x[None])[0], layer.output_projection(out[None]))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_dense_attention_shares_keys_among_consecutive_heads(kv_heads: int) -> None:
    site = make_site("dense", num_key_value_heads=kv_heads)
    layer, x = make_attention(site), inputs(site, 12)
    assert isinstance(layer, DenseAttention)
    full = make_attention(make_site("dense", num_key_value_heads=4))
    weights = dict(layer.state_dict())
    for name in ("k", "v"):
        repeated = weights[name].unflatten(0, (kv_heads, 12)).repeat_interleave(4 // kv_heads, dim=0)
        weights[name] = repeated.flatten(0, 1)
    full.load_state_dict(weights)
    torch.testing.assert_close(layer(x)[0], full(x)[0])


@pytest.mark.parametrize("names", CHOICES, ids=lambda names: "-".join(names.values()))
@pytest.mark.parametrize("attention", list(LAYERS))
def test_no_output_depends_on_later_tokens(attention: str, names: dict[str, str]) -> None:
    site = make_site(attention)
    layer, x = make_attention(site, **names), inputs(site, 38)
    with torch.no_grad():
        before = layer(x)[0]
        for t in range(38):
            changed = x.clone()
            changed[:, t:] += 3.0
            after = layer(changed)[0]
            assert torch.equal(after[:, :t], before[:, :t])
            assert not torch.equal(after[:, t], before[:, t])


@pytest.mark.parametrize("attention", ["csa", "hca"])
def test_the_token_that_ends_a_block_is_the_first_to_see_its_entry(attention: str) -> None:
    site = make_site(attention, sliding_window=1)
    layer, ratio = make_attention(site), site.layer.ratio
    x = inputs(site, 2 * ratio)
    changed = x.clone()
    changed[:, 0] += 3.0
    differs = (layer(x)[0] != layer(changed)[0]).any(-1).all(0)
    assert not differs[1 : ratio - 1].any()
    assert differs[ratio - 1 :].all()


def test_the_window_ends_after_its_number_of_tokens() -> None:
    site = make_site("sliding_window")
    layer, x = make_attention(site), inputs(site, 38)
    changed = x.clone()
    changed[:, 20] += 3.0
    differs = (layer(x)[0] != layer(changed)[0]).any(-1).all(0)
    assert differs.nonzero().flatten().tolist() == [20, 21, 22, 23, 24]


def test_tokens_between_window_and_the_last_complete_block_are_blind_as_warned() -> None:
    site = make_site("hca", {"ratio": 16}, sliding_window=5)
    layer, x = make_attention(site), inputs(site, 64)
    told = HeavilyCompressedAttention.warnings(NoOptions(), site, 64)
    assert "up to 10 tokens" in told[0]
    blind = 0
    before = layer(x)[0]
    for token in range(16, 32):
        changed = x.clone()
        changed[:, token] += 3.0
        blind += bool((layer(changed)[0][:, 30] == before[:, 30]).all()) and token <= 30
    assert blind == 10


def test_a_sink_takes_everything_or_nothing() -> None:
    site = make_site("csa")
    layer, plain = make_attention(site), make_attention(site, sink="none")
    plain.load_state_dict({k: v for k, v in layer.state_dict().items() if k != "sink.sinks"})
    x = inputs(site, 30)
    assert isinstance(layer, Trunk)
    with torch.no_grad():
        layer.sink.sinks.fill_(1e4)
        assert not layer(x)[0].any()
        layer.sink.sinks.fill_(-torch.inf)
        torch.testing.assert_close(layer(x)[0], plain(x)[0])


def test_window_entries_and_sink_share_one_softmax() -> None:
    torch.manual_seed(0)
    q, kv = torch.randn(1, 12, 2, 4, dtype=torch.float64), torch.ones(1, 12, 4, dtype=torch.float64)
    entries, seen = torch.ones(1, 3, 4, dtype=torch.float64), torch.rand(1, 12, 3) < 0.5
    sink = torch.tensor([0.3, -0.7], dtype=torch.float64)
    out = joint_attention(q, kv, 5, sink, entries, seen)
    count = torch.arange(1, 13).clamp(max=5) + seen[0].sum(-1)
    exps = count.unsqueeze(1) * torch.exp(q[0].sum(-1) / 2)
    torch.testing.assert_close(out[0, ..., 0], exps / (exps + sink.exp()))


@pytest.mark.parametrize("length", [1, 4, 16, 37, 64, 65])
@pytest.mark.parametrize("blocks", [(16, 1), (8, 2), (4, 4), (5, 3)])
def test_every_grouping_of_queries_gives_the_masked_dense_result(
    length: int, blocks: tuple[int, int]
) -> None:
    size, back = blocks
    torch.manual_seed(length)
    q, kv = torch.randn(2, length, 3, 6, dtype=torch.float64), torch.randn(2, length, 6, dtype=torch.float64)
    entries = torch.randn(2, length // 4, 6, dtype=torch.float64)
    seen = torch.rand(2, length, length // 4) < 0.5
    sink = torch.randn(3, dtype=torch.float64)
    window = min(16, size * back)
    whole = joint_attention(q, kv, window, sink, entries, seen, Blocks.whole(length))
    grouped = Blocks(-(-length // size), size, back)
    torch.testing.assert_close(joint_attention(q, kv, window, sink, entries, seen, grouped), whole)
    torch.testing.assert_close(joint_attention(q, kv, window, sink, entries, seen), whole)


def test_the_grouping_in_use_is_linear_in_the_sequence() -> None:
    pairs = [Blocks.best(length, 64).pairs for length in (1024, 2048, 4096)]
    assert pairs == [1024 * 96, 2048 * 96, 4096 * 96]
    assert Blocks.best(50, 64) == Blocks.whole(50)


@pytest.mark.parametrize("yarn", [1.0, 16.0])
def test_scores_are_scaled_by_the_head_size_alone(monkeypatch: pytest.MonkeyPatch, yarn: float) -> None:
    seen: list[Tensor] = []

    def spy(queries: Tensor, *rest: Tensor, **more: Tensor) -> Tensor:
        seen.append(queries)
        return core.joint_attention(queries, *rest, **more)

    monkeypatch.setattr(trunk, "joint_attention", spy)
    site = make_site("csa")
    layer, x = make_attention(site), inputs(site, 20)
    layer.position = make_part("position", site, yarn_factor=yarn)
    before = layer(x)[0]
    torch.testing.assert_close(
        seen[0].square().mean(-1), torch.ones(2, 20, 4, dtype=torch.float64), rtol=1e-3, atol=0
    )
    with torch.no_grad():
        cast(Trunk, layer).q_b.mul_(3)
    torch.testing.assert_close(layer(x)[0], before, rtol=1e-4, atol=1e-6)


def test_selections_do_not_depend_on_the_size_of_the_query_latent() -> None:
    site = make_site("csa")
    layer, x = make_attention(site), inputs(site, 41)
    before = layer(x)[0]
    with torch.no_grad():
        cast(Trunk, layer).q_a.mul_(3)
    torch.testing.assert_close(layer(x)[0], before, rtol=1e-4, atol=1e-6)


def test_the_indexer_reads_the_normed_query_latent() -> None:
    """Scores are linear in the latent, so that its length alone would change no choice; the weight does."""
    site = make_site("csa")
    layer, x = make_attention(site), inputs(site, 41)
    assert isinstance(layer, CompressedSparseAttention)
    read: list[Tensor] = []
    layer.indexer.register_forward_pre_hook(lambda _, arguments: read.append(arguments[1]))
    layer(x)
    torch.testing.assert_close(read[0], rms_norm(x @ layer.q_a.T, layer.q_a_norm, layer.eps))


def test_no_entry_that_a_query_has_not_chosen_reaches_it(monkeypatch: pytest.MonkeyPatch) -> None:
    site = make_site("csa")
    layer, x = make_attention(site), inputs(site, 41, batch=1)
    assert isinstance(layer, CompressedSparseAttention)
    chosen: list[Tensor] = []
    layer.indexer.register_forward_hook(lambda _, arguments, found: chosen.append(found[0]))
    entries = layer.compressor(x, layer.position).detach().requires_grad_()
    monkeypatch.setattr(layer.compressor, "forward", lambda *_: entries)
    y = layer(x)[0]
    for t in range(41):
        (gradient,) = torch.autograd.grad(y[0, t].square().sum(), entries, retain_graph=True)
        assert torch.equal(gradient[0].any(-1), chosen[0][0, t])
    assert len({tuple(row.tolist()) for row in chosen[0][0]}) > 3


@pytest.mark.parametrize("attention", list(LAYERS))
def test_gradients_reach_everything_but_the_indexer(attention: str) -> None:
    site = make_site(attention)
    layer, x = make_attention(site), inputs(site, 38).requires_grad_()
    layer(x)[0].square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert (parameter.grad is None) == name.startswith("indexer."), name
        assert parameter.grad is None or parameter.grad.any(), name


@pytest.mark.parametrize("attention", ["sliding_window", "csa", "hca"])
def test_without_a_complete_block_only_the_window_is_there(attention: str) -> None:
    site = make_site(attention)
    layer, x = make_attention(site), inputs(site, 3)
    assert isinstance(layer, Trunk)
    torch.testing.assert_close(layer(x[:1])[0][0], _by_equations(layer, x[0], window=5))


def test_training_in_mixed_precision_is_close_to_single() -> None:
    for attention in LAYERS:
        site = make_site(attention)
        layer, x = make_attention(site, torch.float32), inputs(site, 38).float()
        exact = layer(x)[0]
        with torch.autocast("cpu", torch.bfloat16):
            mixed = layer(x)[0]
        mixed.float().sum().backward()
        assert (mixed - exact).norm() < 0.1 * exact.norm()
        half = make_attention(site, torch.bfloat16)(x.bfloat16())[0]
        assert half.dtype == torch.bfloat16
        assert half.isfinite().all()
