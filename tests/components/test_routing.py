"""Routers and feed-forward layers: formulas, selection, balancing, clamps, sorted experts."""

from typing import Any

import pytest
import torch
from test_residual import randomise, site
from torch import Tensor
from torch.nn import functional as F

from components.ffn.activation import clamped_swiglu
from components.ffn.moe import MixtureOfExperts
from components.ffn.swiglu import SwiGLU
from components.router.hash import HashRouter, make_table
from components.router.learned import LearnedRouter

IDS = torch.arange(24) % 31


def tokens(m: int = 24, seed: int = 0) -> Tensor:
    return torch.randn(m, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def learned(seed: int = 0, **options: Any) -> LearnedRouter:
    return randomise(LearnedRouter(LearnedRouter.Config(**options), site()), seed)


def moe(router: Any, limit: float = 10.0) -> MixtureOfExperts:
    return randomise(MixtureOfExperts(MixtureOfExperts.Config(swiglu_limit=limit), site(), router), 1)


def test_trap_30_weights_are_renormalised_scores_and_the_bias_only_selects() -> None:
    router = learned()
    x = tokens()
    scores = F.softplus(x @ router.weight.T).sqrt()
    weights, chosen, _ = router(x[None], IDS[None])
    assert torch.equal(chosen.sort(-1).values, scores.topk(2).indices.sort(-1).values)
    assert torch.allclose(weights.sum(-1), torch.full((24,), 1.5, dtype=torch.float64))
    assert torch.allclose(
        weights[:, 0] / weights[:, 1], (scores.gather(1, chosen)[:, 0] / scores.gather(1, chosen)[:, 1])
    )
    router.e_score_correction_bias += 7.0  # the same for all: selects the same
    again, same, _ = router(x[None], IDS[None])
    assert torch.equal(chosen, same)
    assert torch.equal(weights, again)
    router.e_score_correction_bias[3] += 100.0
    assert (router(x[None], IDS[None])[1] == 3).any(-1).all()


def test_bias_moves_towards_idle_experts_after_the_step_only() -> None:
    router = learned(bias_update_speed=0.25)
    _, chosen, aux = router(tokens()[None], IDS[None])
    load = torch.bincount(chosen.flatten(), minlength=4)
    assert torch.equal(router.load, load)
    assert router.e_score_correction_bias.abs().max() == 0
    assert aux["diag/max_vio"] == pytest.approx(load.max().item() / 12 - 1)
    router.after_step()
    assert torch.equal(router.e_score_correction_bias, 0.25 * torch.sign(12.0 - load))
    assert router.load.sum() == 0
    router.eval()
    router(tokens()[None], IDS[None])
    assert router.load.sum() == 0


def test_balancing_evens_the_load() -> None:
    router = learned(bias_update_speed=0.02)
    x = tokens(512) + 1
    ids = torch.zeros(512, dtype=torch.int64)
    before = router(x[None], ids[None])[2]["diag/max_vio"]
    for _ in range(200):
        router(x[None], ids[None])
        router.after_step()
    assert router(x[None], ids[None])[2]["diag/max_vio"] < 0.2 * before


@pytest.mark.parametrize("kind", ["random", "round_robin", "frequency_balanced"])
def test_trap_32_hash_tables_are_distinct_seeded_and_saved(kind: str) -> None:
    config = HashRouter.Config(kind=kind)
    tables = [make_table(config, (1000, 3), 8, layer) for layer in (0, 0, 1)]
    assert torch.equal(tables[0], tables[1])
    assert not torch.equal(tables[0], tables[2])
    assert not torch.equal(tables[0], make_table(HashRouter.Config(kind=kind, table_seed=1), (1000, 3), 8, 0))
    assert all(len(set(row)) == 3 for row in tables[0].tolist())
    assert 0 <= tables[0].min() <= tables[0].max() < 8
    if kind != "random":
        assert torch.equal(tables[0].flatten().bincount(), torch.full((8,), 375))
    source, target = HashRouter(config, site(0)), HashRouter(config, site(1))
    target.load_state_dict(source.state_dict())
    assert torch.equal(source.tid2eid, target.tid2eid)


def test_trap_31_hash_choice_is_fixed_but_weights_are_learned() -> None:
    router = randomise(HashRouter(HashRouter.Config(), site()))
    weights, chosen, _ = router(tokens()[None], IDS[None])
    assert torch.equal(chosen, router.tid2eid[IDS])
    assert torch.allclose(weights.sum(-1), torch.full((24,), 1.5, dtype=torch.float64))
    weights[:, 0].sum().backward()
    assert router.weight.grad.abs().min() > 0


@pytest.mark.parametrize("limit", [0.0, 1.0])
def test_moe_is_the_sum_over_chosen_experts(limit: float) -> None:
    layer = moe(learned(), limit)
    x = 3 * tokens().view(2, 12, 6)
    y, aux = layer(x, IDS.view(2, 12))
    weights, chosen, _ = layer.router(x, IDS.view(2, 12))
    wanted = torch.zeros(24, 6, dtype=torch.float64)
    f = 5
    for t, u in enumerate(x.flatten(0, 1)):
        for w, e in zip(weights[t], chosen[t], strict=True):
            gate, up = layer.gate_up[e, :f] @ u, layer.gate_up[e, f:] @ u
            if limit:
                gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
            wanted[t] += w * (layer.down[e] @ (F.silu(gate) * up))
        wanted[t] += layer.shared.down @ clamped_swiglu(layer.shared.gate_up @ u, limit)
    assert torch.allclose(y.flatten(0, 1), wanted, atol=1e-10)
    assert list(aux) == ["diag/max_vio", "loss/balance"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_trap_34_clamps_before_silu_above_only_for_gate_on_both_kinds(dtype: torch.dtype) -> None:
    closed = clamped_swiglu(torch.tensor([-50.0, 3.0], dtype=dtype), 10.0)
    assert closed.abs().item() < 1e-15
    far_up = clamped_swiglu(torch.tensor([50.0, -50.0], dtype=dtype), 10.0)
    assert far_up.item() == pytest.approx(-100.0, rel=1e-3)
    layer = moe(learned())
    far = 1e4 * tokens().view(2, 12, 6)
    for expert in (*zip(layer.gate_up, layer.down, strict=True), (layer.shared.gate_up, layer.shared.down)):
        bound = 101 * expert[1].abs().sum(-1).max()
        assert (clamped_swiglu(far @ expert[0].T, layer.limit) @ expert[1].T).abs().max() <= bound
    assert layer(far, IDS.view(2, 12))[0].abs().max() < 1e4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_trap_35_gate_rows_come_first(dtype: torch.dtype) -> None:
    def gated(gate: float, up: float) -> float:
        return clamped_swiglu(torch.tensor([gate, up], dtype=dtype), 0.0).item()

    assert gated(2.0, 0.0) == gated(0.0, 2.0) == 0.0
    assert abs(gated(-30.0, 2.0)) < 1e-9
    assert gated(2.0, -30.0) < -50


def test_experts_without_tokens_get_zero_gradient_and_shared_is_optional() -> None:
    router = learned()
    router.e_score_correction_bias.copy_(torch.tensor([9.0, 9.0, 0.0, 0.0]))
    config = MixtureOfExperts.Config()
    alone = randomise(MixtureOfExperts(config, site(n_shared_experts=0), router), 1)
    assert alone.shared is None
    x = tokens().view(2, 12, 6)
    alone(x, IDS.view(2, 12))[0].square().sum().backward()
    assert alone.gate_up.grad[:2].abs().min() > 0
    assert alone.gate_up.grad[2:].abs().max() == 0
    two = randomise(MixtureOfExperts(config, site(n_shared_experts=2), router), 1)
    assert two.shared.gate_up.shape == (20, 6)


@pytest.mark.parametrize("router", ["learned", "hash"])
def test_every_parameter_element_is_alive(router: str) -> None:
    built = learned() if router == "learned" else randomise(HashRouter(HashRouter.Config(), site()))
    layer = moe(built)
    x = tokens(496).view(2, 248, 6)
    layer(x, (torch.arange(496) % 31).view(2, 248))[0].square().sum().backward()
    for key, parameter in layer.named_parameters():
        assert parameter.grad.abs().min() > 0, key


def test_dense_layer_is_as_wide_as_active_experts_unless_told() -> None:
    layer = SwiGLU(SwiGLU.Config(), site())
    assert layer.expert.gate_up.shape == (2 * 5 * 3, 6)
    assert SwiGLU(SwiGLU.Config(intermediate_size=7), site()).expert.down.shape == (6, 7)
    x = torch.randn(2, 12, 6)
    y, aux = layer(x, IDS.view(2, 12))
    assert y.shape == x.shape
    assert aux == {}


def test_too_many_experts_per_token_is_refused_and_all_of_them_is_worth_a_warning() -> None:
    config = LearnedRouter.Config()
    with pytest.raises(ValueError, match=r"num_experts_per_tok=5 .* n_routed_experts=4"):
        LearnedRouter.check(config, site(num_experts_per_tok=5), 8)
    assert LearnedRouter.warnings(config, site(num_experts_per_tok=4), 8)
    assert not LearnedRouter.warnings(config, site(), 8)
