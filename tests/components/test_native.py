"""Fused kernels equal the PyTorch code that defines them, forward and backward, and are really used."""

import dataclasses
from collections.abc import Callable

import pytest
import torch
import variants
from torch import Tensor
from torch.nn import functional as F

from ablate.model import LanguageModel, initialise
from components import functional, native, registry
from components.attention.core import Blocks, attend, entry_mass, joint_attention
from components.compressor.gated import Gated
from components.ffn.activation import clamped_swiglu
from components.indexer.lightning import highest
from components.indexer.teaching import divergence
from components.native import attention, experts, indexer, pointwise
from components.position.rotary import Rotary
from components.slots import Residual
from components.spec import NoOptions, Site

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C compiler was there at installation")


def _residual(hc_mult: int, iterations: int, width: int) -> Residual:
    variant = variants.make_variant(hidden_size=width)
    entry = registry.get("residual", "mhc")
    config = entry.config({"hc_mult": hc_mult, "hc_sinkhorn_iters": iterations})
    built = entry.cls(config, Site(dims=variant.dims, layer=variant.layers[0]))  # type: ignore[call-arg]
    generator = torch.Generator().manual_seed(0)
    for parameter in built.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * (
            1.0 if parameter.ndim < 2 else 0.1
        )
    assert isinstance(built, Residual)
    return built


def _pass(module: Residual, state: Tensor, weights: tuple[Tensor, Tensor]) -> list[Tensor]:
    """Output of one site and every gradient, for a fixed linear functional of what it reads and writes."""
    for parameter in module.parameters():
        parameter.grad = None
    state = state.clone().requires_grad_()
    x, carry = module.read(state)
    out = module.write(state, torch.tanh(x), carry)
    ((out * weights[0]).sum() + (x * weights[1]).sum()).backward()
    grads = [p.grad for p in module.parameters()]
    assert all(g is not None for g in grads)
    assert state.grad is not None
    return [x.detach(), out.detach(), state.grad, *(g for g in grads if g is not None)]


@pytest.mark.parametrize("tokens", [(1, 1), (1, 15), (2, 16), (3, 37)])
@pytest.mark.parametrize(("n", "iterations"), [(4, 20), (1, 3), (2, 1), (3, 7), (8, 20)])
def test_a_site_of_mhc_equals_its_definition(n: int, iterations: int, tokens: tuple[int, int]) -> None:
    module = _residual(n, iterations, width=24)
    generator = torch.Generator().manual_seed(1)
    state = 3 * torch.randn(*tokens, n, 24, generator=generator)
    weights = torch.randn(state.shape, generator=generator), torch.randn(*tokens, 24, generator=generator)
    fast = _pass(module, state, weights)
    with native.switched_off():
        module.double()
        exact = _pass(module, state.double(), (weights[0].double(), weights[1].double()))
    module.float()
    for ours, true in zip(fast, exact, strict=True):
        scale = true.abs().max()
        assert (ours - true).abs().max() <= 2e-5 * scale + 1e-6


def test_extreme_logits_stay_finite_and_what_is_no_number_stays_one() -> None:
    module = _residual(4, 20, width=16)
    module.scale.data.fill_(500.0)
    state = torch.randn(1, 20, 4, 16, generator=torch.Generator().manual_seed(2))
    ones = torch.ones_like(state), torch.ones(1, 20, 16)
    assert all(bool(t.isfinite().all()) for t in _pass(module, state, ones))
    state[0, 3, 1, 2] = torch.nan
    x, carry = module.read(state)
    assert bool(x[0, 3].isnan().any())
    assert bool(module.write(state, x, carry)[0, 3].isnan().any())
    assert not bool(x[0, 4:].isnan().any())


def test_training_uses_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    from components.native import streams

    calls = []
    real = streams.read
    monkeypatch.setattr(streams, "read", lambda *args: (calls.append(1), real(*args))[1])
    module = _residual(4, 20, width=16)
    module.read(torch.randn(1, 4, 4, 16))
    assert len(calls) == 1
    with native.switched_off():
        module.read(torch.randn(1, 4, 4, 16))
    assert len(calls) == 1
    module.double().read(torch.randn(1, 4, 4, 16, dtype=torch.float64))
    assert len(calls) == 1


def test_what_is_no_float32_on_the_cpu_is_not_taken() -> None:
    x = torch.zeros(2)
    assert native.takes(x)
    assert not native.takes(x, x.double())
    assert not native.takes(x.bfloat16())
    assert not native.takes(torch.zeros(2, device="meta"))


def _agree(fast: Callable[..., Tensor], exact: Callable[..., Tensor], *inputs: Tensor) -> None:
    """A kernel against its definition in float64: value and every gradient, for a random linear functional.

    Gradients arrive as part of a wider tensor, as behind a concatenation, so kernels that want them in one piece
    have to copy them.
    """

    def run(function: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        given = [t.detach().to(dtype).clone().requires_grad_() for t in inputs]
        out = torch.atleast_1d(function(*[t.clone() for t in given]))
        generator = torch.Generator().manual_seed(9)
        functional = torch.randn(out.shape, generator=generator).to(dtype)
        beside = torch.ones_like(functional)
        (torch.cat((out, beside), -1) * torch.cat((functional, beside), -1)).sum().backward()
        return [out.detach(), *(t.grad for t in given if t.grad is not None)]

    ours, true = run(fast, torch.float32), run(exact, torch.float64)
    assert len(ours) == len(true)
    for a, b in zip(ours, true, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max() + 1e-6


def _randn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("weight", [None, _randn(37, seed=1)])
@pytest.mark.parametrize("shape", [(37,), (3, 37), (2, 5, 3, 37)])
def test_rms_norm(shape: tuple[int, ...], weight: Tensor | None) -> None:
    def by(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x, w=None: norm(x, w, 1e-6)

    inputs = (_randn(*shape),) if weight is None else (_randn(*shape), weight)
    _agree(by(pointwise.rms_norm), by(functional.rms_norm), *inputs)


@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("shape", [(2, 7, 16), (2, 7, 3, 16), (1, 1, 16)])
def test_rotate(shape: tuple[int, ...], direction: int) -> None:
    variant = variants.make_variant()
    rope = variant.part("position", variant.layers[1]).build()
    assert isinstance(rope, Rotary)
    positions = torch.arange(3, 3 + shape[1])
    turns = rope._turns(positions, torch.zeros(shape[-1], dtype=torch.float64)).float()
    _agree(
        lambda x: pointwise.rotate(x, turns, direction),
        lambda x: rope._turn(x, positions, direction),
        _randn(*shape),
    )


@pytest.mark.parametrize("limit", [0.0, 1.5])
def test_swiglu(limit: float) -> None:
    inputs = _randn(5, 7, 26, scale=3.0)
    _agree(lambda x: pointwise.swiglu(x, limit), lambda x: clamped_swiglu(x, limit), inputs)


@pytest.mark.parametrize("limit", [0.0, 0.7])
@pytest.mark.parametrize("chosen", [[[0, 3], [3, 1], [5, 0], [5, 5], [0, 1]], [[4, 1]], [[5, 5]]])
def test_mixture_of_experts(chosen: list[list[int]], limit: float) -> None:
    """Experts with many tokens, one and none; number 5 is none of the five."""
    picks = torch.tensor(chosen)
    inputs = (
        _randn(len(chosen), 6),
        _randn(*picks.shape, seed=1),
        _randn(5, 6, 6, seed=2),
        _randn(5, 6, 3, seed=3),
    )

    def definition(x: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        y = torch.zeros_like(x)
        for token, row in enumerate(picks.tolist()):
            for place, expert in enumerate(row):
                if expert < 5:
                    h = clamped_swiglu(gate_up[expert] @ x[token], limit)
                    y[token] += weights[token, place] * (down[expert] @ h)
        return y + 0 * (x.sum() + weights.sum() + gate_up.sum() + down.sum())

    _agree(lambda x, w, g, d: experts.mixture(x, w, picks, g, d, limit), definition, *inputs)


def test_pairs_by_expert_are_a_stable_sort() -> None:
    chosen = torch.randint(0, 7, (50, 3), generator=torch.Generator().manual_seed(0))
    order, sizes = experts.sort(chosen, 6)  # 6 stands for no expert
    kept = chosen.flatten()[order]
    assert kept.tolist() == sorted(kept.tolist())
    assert sizes == torch.bincount(chosen.flatten(), minlength=7)[:6].tolist()
    assert torch.equal(order, chosen.flatten().argsort(stable=True)[: sum(sizes)])


def test_cross_entropy_leaves_out_negative_labels() -> None:
    labels = torch.randint(0, 91, (33,), generator=torch.Generator().manual_seed(1))
    labels[[0, 7, 32]] = -100
    logits = _randn(33, 91, scale=4.0)
    _agree(lambda x: pointwise.cross_entropy(x, labels), lambda x: F.cross_entropy(x, labels), logits)
    loss = pointwise.cross_entropy(torch.full((2, 5), torch.nan), torch.tensor([1, 2]))
    assert bool(loss.isnan())


@pytest.mark.parametrize("sinks", [0, 1, 3])
@pytest.mark.parametrize("masks", [1, 3])
def test_masked_softmax(masks: int, sinks: int) -> None:
    groups, queries, heads, keys = 3, 5, 2, 11
    seen = torch.rand(masks, queries, keys, generator=torch.Generator().manual_seed(4)) < 0.4
    seen[..., 2] = True

    def exact(scores: Tensor, sink: Tensor | None = None) -> Tensor:
        logits = scores.view(groups, queries, heads, keys).masked_fill(~seen.unsqueeze(2), -torch.inf)
        if sink is not None:
            column = sink[:, None, :, None].expand(groups, queries, heads, 1)
            logits = torch.cat((logits, column), dim=-1)
        return logits.softmax(-1)[..., :keys].reshape(scores.shape)

    inputs = [_randn(groups, queries * heads, keys, scale=3.0), *([_randn(sinks, heads)] if sinks else [])]
    _agree(lambda x, sink=None: attention.masked_softmax(x, seen, sink, heads), exact, *inputs)


@pytest.mark.parametrize("blocks", [Blocks(5, 4, 2), Blocks(2, 9, 1), Blocks(1, 17, 0)])
@pytest.mark.parametrize("sequences", [0, 1, 2])
@pytest.mark.parametrize("sinks", [False, True])
def test_joint_attention(blocks: Blocks, sequences: int, sinks: bool) -> None:
    """17 tokens in blocks that run past them, entries that all sequences see alike, or each its own, or none."""
    entries = (_randn(2, 3, 6, seed=2),) if sequences else ()
    seen = torch.rand(sequences or 1, 17, 3, generator=torch.Generator().manual_seed(5)) < 0.5
    sink = (_randn(4, seed=3),) if sinks else ()

    def joint(queries: Tensor, kv: Tensor, *rest: Tensor) -> Tensor:
        given = rest[0] if entries else None
        return joint_attention(
            queries, kv, 5, rest[-1] if sinks else None, given, seen if entries else None, blocks
        )

    _agree(joint, joint, _randn(2, 17, 4, 6), _randn(2, 17, 6, seed=1), *entries, *sink)


@pytest.mark.parametrize("sinks", [False, True])
def test_entry_mass(sinks: bool) -> None:
    seen = torch.rand(2, 17, 3, generator=torch.Generator().manual_seed(5)) < 0.5
    inputs = _randn(2, 17, 4, 6), _randn(2, 17, 6, seed=1), _randn(2, 3, 6, seed=2), _randn(4, seed=3)

    def mass(dtype: torch.dtype) -> Tensor:
        queries, kv, entries, sink = (t.to(dtype) for t in inputs)
        return entry_mass(queries, kv, 5, sink if sinks else None, entries, seen)

    torch.testing.assert_close(mass(torch.float32).double(), mass(torch.float64), atol=1e-6, rtol=1e-5)


def test_index_scores() -> None:
    def scores(products: Tensor, weights: Tensor) -> Tensor:
        return (products.relu() * weights.unsqueeze(-1)).sum(1)

    _agree(indexer.index_scores, scores, _randn(9, 3, 7), _randn(9, 3, seed=1))


def test_divergence_without_candidates_and_without_mass() -> None:
    candidates = torch.rand(2, 6, 5, generator=torch.Generator().manual_seed(6)) < 0.6
    candidates[0, 0] = False
    mass = _randn(2, 6, 5, seed=1).abs()
    mass[0, 1] = 0.0
    mass[1, 2, 0] = 0.0

    def loss(scores: Tensor) -> Tensor:
        return divergence(scores, mass.to(scores.dtype), candidates)

    _agree(loss, loss, _randn(2, 6, 5, scale=3.0))
    assert divergence(_randn(2, 6, 5), mass, torch.zeros_like(candidates)) == 0


@pytest.mark.parametrize("count", [1, 3, 8, 20, 21])
def test_highest(count: int) -> None:
    scores = torch.randint(-3, 4, (4, 50, 21), generator=torch.Generator().manual_seed(count)) / 2
    scores[0, :, ::3] = -torch.inf
    scores[1, :, ::2] *= -0.0  # of either sign, and equal
    scores[2] = _randn(50, 21)
    fast = highest(scores, count)
    with native.switched_off():
        assert torch.equal(fast, highest(scores, count))
    assert bool((fast.sum(-1) == count).all())


@pytest.mark.parametrize(("ratio", "overlap", "width"), [(4, True, 5), (3, False, 70), (1, True, 130)])
def test_gated_pool(ratio: int, overlap: bool, width: int) -> None:
    layer = dataclasses.replace(variants.make_variant().layers[1], ratio=ratio, overlap=overlap)
    module = Gated(NoOptions(), Site(dims=variants.make_variant().dims, layer=layer), width=width)

    def pool(values: Tensor, gates: Tensor, ape: Tensor) -> Tensor:
        del module.ape
        module.ape = ape  # type: ignore[assignment]  # no parameter, so that it is an input like the others
        return module.pool((values, gates))

    wide = width * (1 + overlap)
    _agree(pool, pool, *(_randn(2, 4, ratio, wide, seed=i, scale=2.0) for i in (0, 1)), _randn(ratio, wide))


@pytest.mark.parametrize("masks", [1, 3])
def test_attention_to_values_of_their_own(masks: int) -> None:
    seen = torch.rand(masks, 5, 7, generator=torch.Generator().manual_seed(5)) < 0.5
    seen[..., 0] = True

    def attending(queries: Tensor, keys: Tensor, values: Tensor, sink: Tensor) -> Tensor:
        return attend(queries, keys, values, seen, sink)

    inputs = _randn(3, 5, 2, 8), _randn(3, 7, 8, seed=1), _randn(3, 7, 9, seed=2), _randn(3, 2, seed=3)
    _agree(attending, attending, *inputs)


def test_a_model_computes_the_same_without_the_kernels() -> None:
    model = LanguageModel(variants.make_variant(vocab_size=61))
    initialise(model, seed=1)
    tokens = torch.randint(0, 61, (2, 20), generator=torch.Generator().manual_seed(1))

    def run() -> list[Tensor]:
        model.zero_grad()
        out = model(tokens[:, :-1], tokens[:, 1:])
        out.loss.backward()
        return [out.logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]

    fast = run()
    with native.switched_off():
        plain = run()
    for a, b in zip(fast, plain, strict=True):
        assert (a - b).abs().max() <= 2e-4 * b.abs().max() + 1e-7
