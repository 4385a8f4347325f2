"""Activations of feed-forward layers: formulas one number at a time, equal sizes, experts of every kind."""

import math
from typing import Any

import pytest
import torch
from test_residual import randomise, site
from test_routing import IDS, learned, tokens

from components import registry
from components.ffn.activation import GATED, PLAIN
from components.ffn.dense import DenseFFN
from components.ffn.moe import MixtureOfExperts

KINDS = (*GATED, *PLAIN)


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def gelu(x: float) -> float:
    return x * 0.5 * (1 + math.erf(x / math.sqrt(2)))


def written_out(kind: str, pre: list[float], limit: float) -> list[float]:
    """Activations of pre-activations, by the definitions in the papers and a clamp before them."""
    bound = limit or math.inf
    act = {"swiglu": silu, "geglu": gelu, "gelu": gelu, "relu2": lambda v: max(v, 0.0) ** 2}[kind]
    if kind in PLAIN:
        return [act(min(v, bound)) for v in pre]
    half = len(pre) // 2
    return [act(min(pre[i], bound)) * max(-bound, min(pre[half + i], bound)) for i in range(half)]


def dense(kind: str, **options: Any) -> Any:
    cls: Any = registry.get("ffn", kind).cls
    return randomise(cls(cls.Config(**options), site())).requires_grad_(False)


@pytest.mark.parametrize("limit", [0.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_dense_layers_are_their_formulas(kind: str, limit: float) -> None:
    layer, x = dense(kind, swiglu_limit=limit), tokens(10).view(2, 5, 6)
    y, aux = layer(x, IDS[:10].view(2, 5))
    assert aux == {}
    for b in range(2):
        for s in range(5):
            hidden = written_out(kind, (layer.expert.gate_up @ x[b, s]).tolist(), limit)
            wanted = layer.expert.down @ torch.tensor(hidden, dtype=torch.float64)
            torch.testing.assert_close(y[b, s], wanted)


@pytest.mark.parametrize("width", [0, 8, 14])
def test_all_kinds_of_one_width_are_equally_large(width: int) -> None:
    costs = [
        registry.get("ffn", kind).cls.cost(DenseFFN.Config(intermediate_size=width), site(), 8)  # type: ignore
        for kind in KINDS
    ]
    assert len({cost.flops for cost in costs}) == 1 or width == 0  # 3 x 5 is odd
    assert max(cost.params for cost in costs) - min(cost.params for cost in costs) <= 6
    assert dense("relu2", intermediate_size=8).expert.down.shape == (6, 12)
    assert dense("geglu", intermediate_size=8).expert.gate_up.shape == (16, 6)


@pytest.mark.parametrize("limit", [0.0, 1.0])
@pytest.mark.parametrize("kind", KINDS)
def test_experts_have_the_activation_too(kind: str, limit: float) -> None:
    config = MixtureOfExperts.Config(activation=kind, swiglu_limit=limit)
    layer = randomise(MixtureOfExperts(config, site(), learned()), 1).requires_grad_(False)
    x = tokens().view(2, 12, 6)
    y, _ = layer(x, IDS.view(2, 12))
    weights, chosen, _ = layer.router(x, IDS.view(2, 12))
    assert layer.shared is not None

    def expert(gate_up: torch.Tensor, down: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        hidden = written_out(kind, (gate_up @ u).tolist(), limit)
        return down @ torch.tensor(hidden, dtype=torch.float64)

    for t, u in enumerate(x.flatten(0, 1)):
        wanted = expert(layer.shared.gate_up, layer.shared.down, u)
        for weight, e in zip(weights[t], chosen[t].tolist(), strict=True):
            wanted = wanted + weight * expert(layer.gate_up[e], layer.down[e], u)
        torch.testing.assert_close(y.flatten(0, 1)[t], wanted)


def test_a_gate_is_a_matrix_of_its_own_and_without_gate_there_is_one() -> None:
    assert dense("geglu").expert.row_blocks == {"gate_up": 2}
    assert dense("relu2").expert.row_blocks == {"gate_up": 1}


def test_an_unknown_activation_is_named() -> None:
    with pytest.raises(ValueError, match="activation='silu' is not one of swiglu, geglu, relu2, gelu"):
        MixtureOfExperts.Config(activation="silu")
