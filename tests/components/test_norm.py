"""Norms against their formulas, channel by channel."""

import math
from typing import Any

import pytest
import torch
from test_residual import randomise, site
from torch import Tensor
from variants import make_variant

from ablate.model import Block, build_model
from ablate.schema import Slot
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


def test_a_sandwich_norm_takes_what_a_branch_gives_before_the_residual_does() -> None:
    """Both branches of a block by hand; the residual adds."""
    variant = make_variant(residual=Slot("prenorm"), post_norm=Slot("rmsnorm"))
    block = randomise(Block(variant, variant.layers[0], "layers.0")).requires_grad_(False)
    x = torch.randn(2, 7, 1, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(14).view(2, 7)

    def after(y: Tensor, norm: Any) -> Tensor:
        return norm.weight * y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    u = x[:, :, 0]
    u = u + after(block.attention(block.attention_norm(u))[0], block.attention_post_norm)
    u = u + after(block.ffn(block.ffn_norm(u), ids)[0], block.ffn_post_norm)
    torch.testing.assert_close(block(x, ids)[0][:, :, 0], u)


def test_after_a_sandwich_norm_the_size_of_a_branch_does_not_matter() -> None:
    def change(post_norm: str) -> Tensor:
        """What it does to logits to make feed-forward layers fifty times as large."""
        model = build_model(make_variant(post_norm=Slot(post_norm), ffn=Slot("swiglu"))).double()
        tokens, logits = torch.arange(20).view(2, 10), []
        for factor in (1e4, 50.0):  # at first, so that the norm's epsilon is nothing beside the branch
            with torch.no_grad():
                for layer in model.layers:
                    layer.ffn.expert.down.mul_(factor)  # type: ignore[union-attr]
                logits.append(model(tokens).logits)
        return (logits[1] - logits[0]).abs().max()

    assert change("rmsnorm") < 1e-6 < 1e-3 < change("none")
