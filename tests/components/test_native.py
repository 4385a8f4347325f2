"""Fused kernels equal the PyTorch code that defines them, forward and backward, and are really used."""

import pytest
import torch
import variants
from torch import Tensor

from components import native, registry
from components.slots import Residual
from components.spec import Site

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
