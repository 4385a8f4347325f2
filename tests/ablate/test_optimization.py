"""Optimizers as a trial drives them: the rate, clipping, saving and loading, for every entry alike."""

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import variants
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.utils.flop_counter import FlopCounterMode

from ablate import config, optimization, schema, show
from ablate.model import LanguageModel
from ablate.variant import Variant
from components import native, registry

NAMES = [entry.name for entry in registry.entries("optimizer")]


def _built(name: str) -> tuple[LanguageModel, torch.optim.Optimizer]:
    """A model with gradients, and an optimizer for it."""
    torch.manual_seed(0)
    model = LanguageModel(variants.make_variant())
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    return model, optimization.build(model, schema.Optimizer(name, lr=1e-3))


@pytest.mark.parametrize("name", NAMES)
def test_the_rate_reaches_every_group_as_a_share_of_its_peak(name: str) -> None:
    _, optimizer = _built(name)
    peaks = [group["lr"] for group in optimizer.param_groups]
    assert peaks == pytest.approx([3e-4 if name == "lion" else 1e-3] * len(peaks))
    optimization.set_rate(optimizer, 0.25)
    optimization.set_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5 * peak for peak in peaks]


def test_a_model_is_shown_with_what_its_optimizer_computes() -> None:
    one, other = (
        show.model(["model=micro", f"optimizer={name}"]).data["optimizer"] for name in ("muon", "adamw")
    )
    assert other == {"name": "adamw", "flops_per_step": 0}
    run = config.load(["model=micro"], require_sweep=False)
    model = LanguageModel(Variant.from_run(run, run.data.vocab_size))
    with FlopCounterMode(display=False) as counter:
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        optimization.build(model, schema.Optimizer("muon")).step()
    assert one == {"name": "muon", "flops_per_step": counter.get_total_flops()}


@pytest.mark.parametrize("name", NAMES)
def test_without_a_rate_nothing_moves(name: str) -> None:
    model, optimizer = _built(name)
    before = [p.detach().clone() for p in model.parameters()]
    optimization.set_rate(optimizer, 0.0)
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_can_be_clipped_in_mixed_precision(name: str, precision: Any) -> None:
    model, optimizer = _built(name)
    MixedPrecision(precision, "cpu").clip_gradients(optimizer, 1.0)
    norms = [p.grad.norm() for p in model.parameters() if p.grad is not None]
    assert torch.stack(norms).norm() == pytest.approx(1.0, rel=1e-3)


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("limit", [1e-3, 1e6])
def test_clipping_is_that_of_pytorch(limit: float, kernels: bool) -> None:
    model, optimizer = _built("adamw")
    other = copy.deepcopy(model)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        q.grad = None if p.grad is None else p.grad.clone()
    with nullcontext() if kernels else native.switched_off():
        optimization.clip(optimizer, limit)
    torch.nn.utils.clip_grad_norm_(other.parameters(), limit)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=0.0)


def test_a_gradient_that_is_no_number_is_not_hidden_by_clipping() -> None:
    model, optimizer = _built("adamw")
    next(model.parameters()).grad[0, 0] = torch.nan  # type: ignore[index]
    optimization.clip(optimizer, 1.0)
    assert all(bool(p.grad.isnan().all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_state_goes_on_bit_for_bit(name: str) -> None:
    """What is counted in groups included, as the library does that Lion is from."""
    (one, first), (other, second) = _built(name), _built(name)
    for _ in range(3):
        first.step()
    other.load_state_dict(one.state_dict())
    tensors, rest = optimization.state_tensors(first)
    optimization.load_state(second, {name: tensor.clone() for name, tensor in tensors.items()}, rest)
    for optimizer in (first, second):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))
    assert [group.get("step") for group in first.param_groups] == [
        group.get("step") for group in second.param_groups
    ]
