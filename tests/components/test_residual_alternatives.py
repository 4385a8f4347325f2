"""Residuals that DeepSeek-V4's is compared with, each against its formula written out by hand."""

import itertools
import math
from typing import Any

import pytest
import torch
from test_residual import randomise, site, state
from torch import Tensor

from components.residual.attention_residual import AttendedCollapse, AttentionResidual
from components.residual.collapse import HC_HEADS, build_head
from components.residual.depth_scaled import DepthScaled
from components.residual.mhc import ManifoldHyperConnections, MHCConfig
from components.residual.mhc_lite import ManifoldHyperConnectionsLite
from components.residual.mhc_static import StaticManifoldHyperConnections
from components.residual.rezero import ReZero
from components.spec import NoOptions

Y = state(1, seed=1)[:, :, 0]


def sigmoid(x: Tensor) -> float:
    return 1 / (1 + math.exp(-float(x)))


@pytest.mark.parametrize("n", [2, 3, 4])
def test_mhc_lite_is_the_formula_and_exactly_doubly_stochastic(n: int) -> None:
    config = ManifoldHyperConnectionsLite.Config(hc_mult=n)
    module, x = randomise(ManifoldHyperConnectionsLite(config, site())), state(n)
    with torch.no_grad():
        u, carry = module.read(x)
        out = module.write(x, Y, carry)
    module.requires_grad_(False)
    for b, s in itertools.product(range(2), range(5)):
        flat = x[b, s].flatten()
        rms = math.sqrt(sum(float(v) ** 2 for v in flat) / len(flat) + 1e-6)
        z = [float(row @ flat) / rms for row in module.fn]
        logits = [
            float(module.scale[2]) * z[2 * n + p] + float(module.base[2 * n + p])
            for p in range(math.factorial(n))
        ]
        total = sum(math.exp(v) for v in logits)
        comb = torch.zeros(n, n, dtype=torch.float64)
        for p, targets in enumerate(itertools.permutations(range(n))):
            for j, k in enumerate(targets):
                comb[j, k] += math.exp(logits[p]) / total
        ones = torch.ones(n, dtype=torch.float64)
        torch.testing.assert_close(comb.sum(0), ones, atol=1e-14, rtol=0)
        torch.testing.assert_close(comb.sum(1), ones, atol=1e-14, rtol=0)
        read, written = torch.zeros(6, dtype=torch.float64), comb.T @ x[b, s]
        for j in range(n):
            read += (sigmoid(module.scale[0] * z[j] + module.base[j]) + 1e-6) * x[b, s, j]
            written[j] += 2 * sigmoid(module.scale[1] * z[n + j] + module.base[n + j]) * Y[b, s]
        torch.testing.assert_close(u[b, s], read)
        torch.testing.assert_close(out[b, s], written)


def test_mhc_lite_starts_uniform_or_as_the_identity() -> None:
    x = torch.randn(1, 3, 4, 6)
    for init, wanted in (("small_gate", x.mean(2, keepdim=True).expand_as(x)), ("identity", x)):
        module = ManifoldHyperConnectionsLite(ManifoldHyperConnectionsLite.Config(hc_init=init), site())
        with torch.no_grad():
            module.scale.zero_()
        moved = module.write(x, torch.zeros(1, 3, 6), module.read(x)[1])
        assert (moved - wanted).abs().max() < 0.05


def test_mhc_static_is_mhc_with_its_gates_at_zero() -> None:
    static = randomise(StaticManifoldHyperConnections(StaticManifoldHyperConnections.Config(), site()))
    module = randomise(ManifoldHyperConnections(MHCConfig(), site()))
    with torch.no_grad():
        module.scale.zero_()
        module.base.copy_(static.base)
    x = state(4)
    (u, carry), (wanted, other) = static.read(x), module.read(x)
    torch.testing.assert_close(u, wanted)
    torch.testing.assert_close(static.write(x, Y, carry), module.write(x, Y, other))


def test_mhc_static_separates_its_streams() -> None:
    x = torch.randn(2, 5, 1, 6).expand(-1, -1, 4, -1)
    for layer in range(2):
        module = StaticManifoldHyperConnections(StaticManifoldHyperConnections.Config(), site(layer))
        u, carry = module.read(x)
        x = module.write(x, torch.tanh(u), carry)
    assert x.std(2).max() > 1e-2


def test_rezero_starts_as_the_identity_and_only_its_gate_learns() -> None:
    module = ReZero(NoOptions(), site()).double()
    x, y = state(1), Y.clone().requires_grad_()
    out = module.write(x, y, module.read(x)[1])
    assert torch.equal(out, x)
    out.square().sum().backward()
    assert module.alpha.grad is not None
    assert module.alpha.grad.item() == pytest.approx(2 * (x[:, :, 0] * Y).sum().item())
    assert y.grad is not None
    assert not y.grad.any()
    with torch.no_grad():
        module.alpha.fill_(0.3)
    torch.testing.assert_close(module.write(x, Y, None)[:, :, 0], x[:, :, 0] + 0.3 * Y)


@pytest.mark.parametrize(("depth", "exponent", "scale"), [(2, 1.0, 1), (8, 1.0, 1 / 4), (18, 0.5, 1 / 3)])
def test_branches_shrink_with_depth(depth: int, exponent: float, scale: float) -> None:
    config = DepthScaled.Config(exponent=exponent)
    module, x = DepthScaled(config, site(num_hidden_layers=depth)), state(1)
    torch.testing.assert_close(module.write(x, Y, module.read(x)[1])[:, :, 0], x[:, :, 0] + scale * Y)
    assert bool(DepthScaled.warnings(config, site(num_hidden_layers=depth), 8)) is (depth == 2)


@pytest.mark.parametrize("layers_per_block", [1, 2, 3])
def test_attention_residual_attends_to_the_embedding_and_to_sums_of_blocks(layers_per_block: int) -> None:
    """Seven layers of two branches each, against sums over a list of everything that branches gave."""
    config = AttentionResidual.Config(layers_per_block=layers_per_block)
    generator = torch.Generator().manual_seed(0)
    embedding = state(1)
    x, outputs = embedding, {}

    def attended(sources: list[Tensor], query: Tensor) -> Tensor:
        out = torch.zeros(2, 5, 6, dtype=torch.float64)
        for b, s in itertools.product(range(2), range(5)):
            scores = [
                math.exp(float(query @ v[b, s]) / math.sqrt(float(v[b, s].square().mean()) + 1e-6))
                for v in sources
            ]
            for v, score in zip(sources, scores, strict=True):
                out[b, s] += score / sum(scores) * v[b, s]
        return out

    def sources() -> list[Tensor]:
        blocks = sorted({layer // layers_per_block for layer, _ in outputs})
        sums = [sum(y for (i, _), y in outputs.items() if i // layers_per_block == block) for block in blocks]
        return [embedding[:, :, 0], *sums]  # type: ignore[list-item]

    for layer in range(7):
        assert x.shape[2] == AttentionResidual.streams(config, layer) == len(sources())
        for branch in range(2):
            module = randomise(AttentionResidual(config, site(layer)), seed=2 * layer + branch)
            module.requires_grad_(False)
            u, carry = module.read(x)
            torch.testing.assert_close(u, attended(sources(), module.query))
            y = torch.randn(u.shape, generator=generator, dtype=torch.float64)
            outputs[layer, branch] = y
            x = module.write(x, y, carry)
    end = AttentionResidual.collapse(config, site(6))
    assert isinstance(end, AttendedCollapse)
    randomise(end, seed=99).requires_grad_(False)
    torch.testing.assert_close(end(x), attended(sources(), end.query))


def test_attention_residual_starts_with_equal_weights() -> None:
    module = AttentionResidual(AttentionResidual.Config(), site(3))
    x = state(4)
    torch.testing.assert_close(module.double().read(x)[0], x.mean(2))
    assert (
        "one block" in AttentionResidual.warnings(AttentionResidual.Config(layers_per_block=2), site(), 8)[0]
    )


@pytest.mark.parametrize("kind", HC_HEADS)
def test_collapses_are_what_they_are_called(kind: str) -> None:
    head, x = randomise(build_head(kind, site(), 3, alpha=0.01, eps=1e-6)), state(3)
    wanted = {"mean": x.sum(2) / 3, "sum": x.sum(2)}
    if kind == "learned":
        flat = x.flatten(2)
        z = (flat @ head.fn.T) / (flat.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        weights = torch.sigmoid(head.scale * z + head.base) + 1e-6
        wanted["learned"] = sum(weights[:, :, j : j + 1] * x[:, :, j] for j in range(3))
    torch.testing.assert_close(head(x), wanted[kind])


@pytest.mark.parametrize(
    ("config", "options", "said"),
    [
        (ManifoldHyperConnectionsLite.Config, {"hc_mult": 5}, "hc_mult=5 must be 2, 3 or 4"),
        (ManifoldHyperConnectionsLite.Config, {"hc_init": "hf"}, "small_gate, identity"),
        (StaticManifoldHyperConnections.Config, {"hc_mult": 1}, "hc_mult=1"),
        (MHCConfig, {"hc_head": "max"}, "hc_head='max' is not one of learned, mean, sum"),
        (DepthScaled.Config, {"exponent": 0.0}, r"exponent=0\.0"),
        (AttentionResidual.Config, {"layers_per_block": 0}, "layers_per_block=0"),
    ],
)
def test_bad_options_are_named(config: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        config(**options)
