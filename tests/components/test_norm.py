"""Norms against their formulas, channel by channel."""

import math
from typing import Any

import pytest
import torch
from test_residual import randomise, site
from torch import Tensor

from components import registry

X = 3 * torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1


def build(name: str, **options: Any) -> Any:
    entry = registry.get("norm", name)
    cls: Any = entry.cls
    return randomise(cls(entry.config(options), site(), size=6)).requires_grad_(False)


def written_out(name: str, norm: Any, x: Tensor) -> list[float]:
    values = x.tolist()
    if name == "none":
        return values
    if name == "dyt":
        return [
            float(norm.weight[i]) * math.tanh(float(norm.alpha) * v) + float(norm.bias[i])
            for i, v in enumerate(values)
        ]
    mean = sum(values) / len(values) if name == "layernorm" else 0.0
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values) + 1e-6)
    bias = norm.bias.tolist() if name == "layernorm" else [0.0] * len(values)
    return [float(norm.weight[i]) * (v - mean) / spread + bias[i] for i, v in enumerate(values)]


@pytest.mark.parametrize("name", ["rmsnorm", "layernorm", "dyt", "none"])
def test_norms_are_their_formulas(name: str) -> None:
    norm = build(name)
    y = norm(X)
    for b in range(2):
        for s in range(4):
            assert y[b, s].tolist() == pytest.approx(written_out(name, norm, X[b, s]), rel=1e-9)


@pytest.mark.parametrize("name", ["layernorm", "dyt", "none"])
def test_half_precision_stays_and_is_computed_wide(name: str) -> None:
    norm = build(name).float()
    y = norm(X.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, norm(X.bfloat16().float()).bfloat16())


def test_dynamic_tanh_starts_as_told_and_refuses_no_slope() -> None:
    cls: Any = registry.get("norm", "dyt").cls
    norm = cls(cls.Config(alpha_init=0.25), site(), size=6).double()
    torch.testing.assert_close(norm(X), torch.tanh(0.25 * X))
    with pytest.raises(ValueError, match=r"alpha_init=0\.0 must be greater than 0"):
        cls.Config(alpha_init=0.0)
