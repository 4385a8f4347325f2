"""Residual streams: mHC to the letter, hyper-connections, and the plain stream."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from components import registry
from components.residual.collapse import LearnedCollapse
from components.residual.hyper_connections import HyperConnections
from components.residual.mhc import ManifoldHyperConnections, MHCConfig
from components.residual.streams import read_streams
from components.slots import Residual
from components.spec import Dims, Layer, Site

DIMS = Dims(
    vocab_size=31,
    hidden_size=6,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=4,
    qk_rope_head_dim=2,
    q_lora_rank=4,
    o_groups=1,
    o_lora_rank=4,
    sliding_window=4,
    index_n_heads=2,
    index_head_dim=4,
    moe_intermediate_size=5,
    n_routed_experts=4,
    n_shared_experts=1,
    num_experts_per_tok=2,
    routed_scaling_factor=1.5,
    rms_norm_eps=1e-6,
    initializer_range=0.02,
    max_position_embeddings=128,
)


def site(index: int = 0, **sizes: int) -> Site:
    return Site(dims=dataclasses.replace(DIMS, **sizes), layer=Layer(index=index, attention="sliding_window"))


def randomise(module: nn.Module, seed: int = 0) -> Any:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.double().parameters():
        parameter.data.normal_(generator=generator)
    return module


def state(n: int, seed: int = 0) -> Tensor:
    return torch.randn(2, 5, n, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def written_out(module: ManifoldHyperConnections, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """pre [b s n], post [b s n] and C [b s j k], straight from the formulas."""
    n, config = x.shape[2], module.config
    flat = x.flatten(2)
    z = flat / (flat.square().mean(-1, keepdim=True) + 1e-6).sqrt() @ module.fn.T
    pre = torch.sigmoid(module.scale[0] * z[..., :n] + module.base[:n]) + config.hc_eps
    post = 2 * torch.sigmoid(module.scale[1] * z[..., n : 2 * n] + module.base[n : 2 * n])
    comb = (module.scale[2] * z[..., 2 * n :] + module.base[2 * n :]).unflatten(-1, (n, n)).softmax(-1)
    comb = comb + config.hc_eps
    for step in range(2 * config.hc_sinkhorn_iters - 1):
        comb = comb / (comb.sum(-1 if step % 2 else -2, keepdim=True) + config.hc_eps)
    return pre, post, comb


@pytest.mark.parametrize("n", [1, 2, 4])
def test_mhc_is_the_formula(n: int) -> None:
    module = randomise(ManifoldHyperConnections(MHCConfig(hc_mult=n), site()))
    x, y = state(n), state(1, seed=1)[:, :, 0]
    pre, post, comb = written_out(module, x)
    u, carry = module.read(x)
    assert torch.allclose(u, (pre.unsqueeze(-1) * x).sum(2), atol=1e-12)
    wanted = post.unsqueeze(-1) * y.unsqueeze(2) + torch.einsum("bsjk,bsjd->bskd", comb, x)
    assert torch.allclose(module.write(x, y, carry), wanted, atol=1e-12)


def test_trap_23_comb_leads_from_rows_to_columns() -> None:
    module = ManifoldHyperConnections(MHCConfig(), site()).double()
    cycle = torch.eye(4).roll(1, dims=1)  # stream j goes to stream j + 1
    with torch.no_grad():
        module.scale.zero_()
        module.base[8:] = 60 * cycle.flatten()
    x = state(4)
    _, carry = module.read(x)
    moved = module.write(x, torch.zeros(2, 5, 6, dtype=torch.float64), carry)
    assert torch.allclose(moved, x.roll(1, dims=2), atol=1e-4)


def test_trap_26_zero_weights_give_half_plus_eps_and_one() -> None:
    module = ManifoldHyperConnections(MHCConfig(hc_eps=1e-3), site()).double()
    with torch.no_grad():
        module.fn.zero_()
    x, y = state(4), state(1, seed=1)[:, :, 0]
    u, carry = module.read(x)
    assert torch.allclose(u, (0.5 + 1e-3) * x.sum(2))
    assert torch.allclose(carry[:, :, 4], torch.ones(1, dtype=torch.float64))
    assert torch.allclose(module.write(torch.zeros_like(x), y, carry), y.unsqueeze(2).expand_as(x))


def test_trap_27_one_root_mean_square_over_all_streams() -> None:
    module = randomise(ManifoldHyperConnections(MHCConfig(), site()))
    x = state(4)
    scaled = x * torch.tensor([10.0, 1, 1, 1], dtype=torch.float64).view(4, 1)
    assert (module.logits(x) - module.logits(scaled)).abs().amin() > 1e-6
    assert torch.allclose(module.logits(x), module.logits(10 * x), atol=1e-5)


def test_trap_28_collapse_is_learned() -> None:
    module = LearnedCollapse(site(), 4, alpha=0.01, eps=1e-6).double()
    with torch.no_grad():
        module.base.copy_(torch.tensor([-60.0, -60, 60, -60]))
    x = state(4)
    assert torch.allclose(module(x), x[:, :, 2], atol=1e-4)


@pytest.mark.parametrize("init", ["small_gate", "hf", "identity"])
def test_trap_29_streams_separate(init: str) -> None:
    module = ManifoldHyperConnections(MHCConfig(hc_init=init), site(1))
    x = torch.randn(2, 5, 1, 6).expand(-1, -1, 4, -1)
    for _ in range(2):
        u, carry = module.read(x)
        x = module.write(x, torch.tanh(u), carry)
    assert x.std(2).max() > 1e-5
    assert module.scale[0].item() == pytest.approx(1.0 if init == "hf" else 0.01)


def test_hyper_connections_are_the_formula() -> None:
    module = randomise(HyperConnections(HyperConnections.Config(hc_mult=3), site()))
    x, y = state(3), state(1, seed=1)[:, :, 0]
    normed = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    pre = module.scale[0] * torch.tanh(normed @ module.theta[0]) + module.base_pre
    post = module.scale[1] * torch.tanh(normed @ module.theta[1]) + module.base_post
    mix = module.scale[2] * torch.tanh(torch.einsum("kd,bsjd->bskj", module.theta[2:], normed))
    mix = mix + module.base_res.view(3, 3)
    u, carry = module.read(x)
    assert torch.allclose(u, torch.einsum("bsj,bsjd->bsd", pre, x), atol=1e-12)
    wanted = torch.einsum("bskj,bsjd->bskd", mix, x) + torch.einsum("bsk,bsd->bskd", post, y)
    assert torch.allclose(module.write(x, y, carry), wanted, atol=1e-12)


def test_hyper_connections_start_like_a_plain_residual() -> None:
    module = HyperConnections(HyperConnections.Config(), site(5))
    x, y = torch.randn(1, 3, 4, 6), torch.randn(1, 3, 6)
    u, carry = module.read(x)
    assert torch.allclose(u, x[:, :, 1])
    assert torch.allclose(module.write(x, y, carry), x + y.unsqueeze(2), atol=1e-6)


@pytest.mark.parametrize("name", ["hyper_connections", "mhc"])
def test_every_parameter_element_is_alive(name: str) -> None:
    entry = registry.get("residual", name)
    assert issubclass(entry.cls, Residual)
    module: Residual = randomise(entry.cls(entry.config(), site()))  # type: ignore[call-arg]
    n = entry.cls.streams(entry.config())
    x = state(n)
    u, carry = module.read(x)
    module.write(x, torch.sin(u), carry).square().sum().backward()
    for key, parameter in module.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().min() > 0, key


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hc_mult": 0}, "hc_mult=0"),
        ({"hc_init": "ones"}, "small_gate"),
        ({"hc_sinkhorn_iters": 0}, "hc_sinkhorn_iters=0"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        MHCConfig(**options)


def test_reading_streams_has_exact_gradients() -> None:
    x = state(3).requires_grad_()
    weights = torch.randn(
        10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    ).requires_grad_()
    assert torch.autograd.gradcheck(read_streams, (x, weights))


def test_prenorm_adds() -> None:
    entry = registry.get("residual", "prenorm")
    module: Any = entry.cls(entry.config(), site())  # type: ignore[call-arg]
    x, y = state(1), state(1, seed=1)[:, :, 0]
    u, carry = module.read(x)
    assert torch.equal(u, x[:, :, 0])
    assert torch.equal(module.write(x, y, carry), x + y.unsqueeze(2))
    assert not list(module.parameters())
