"""Optimizers against their formulas: Newton-Schulz, the split by role, every update, exact costs."""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from test_every_entry import ENTRIES, title, variant_with
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from variants import make_variant

from ablate.model import LanguageModel
from ablate.schema import Slot
from components import registry
from components.optimizer import muon
from components.optimizer.adamw import AdamWConfig
from components.optimizer.matrices import as_matrices, row_blocks
from components.optimizer.muon import MuonConfig
from components.optimizer.newton_schulz import orthogonalise
from components.registry import Entry
from components.slots import Optimizer
from components.spec import search_space

OPTIMIZERS = registry.entries("optimizer")
NOT_MATRICES = re.compile(r"embedding|head|(.*\.)?collapse\..*|.*\.(ape|position|kernel|[qkv]_conv)")
"""What the report's split, or the lack of a linear map, gives to AdamW beside all vectors."""


def optimizer_class(name: str) -> type[Optimizer]:
    cls = registry.get("optimizer", name).cls
    assert issubclass(cls, Optimizer)
    return cls


def random_matrices(count: int, rows: int, columns: int, condition: float) -> Tensor:
    """Matrices in double precision whose singular values fall from 1 to 1 / condition."""
    generator = torch.Generator().manual_seed(rows * columns)
    left, right = (
        torch.linalg.qr(torch.randn(count, n, rows, generator=generator, dtype=torch.float64))[0]
        for n in (rows, columns)
    )
    values = torch.logspace(0, -math.log10(condition), rows, dtype=torch.float64)
    return left * values @ right.mT


def scalar(values: Tensor, steps: list[tuple[float, float, float]]) -> Tensor:
    """What the iteration does to singular values: it acts on each by itself."""
    for a, b, c in steps:
        values = a * values + b * values**3 + c * values**5
    return values


FORMS = {
    "hybrid": [(3.4445, -4.7750, 2.0315)] * 8 + [(2.0, -1.5, 0.5)] * 2,
    "quintic": [(3.4445, -4.7750, 2.0315)] * 5,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 7), (12, 12), (8, 40)])
def test_newton_schulz_is_its_polynomial_on_singular_values(form: str, rows: int, columns: int) -> None:
    x = random_matrices(3, rows, columns, condition=50)
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    expected = u * scalar(s / s.square().sum(1, keepdim=True).sqrt(), FORMS[form]).unsqueeze(1) @ v
    torch.testing.assert_close(orthogonalise(x, form), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("condition", [1, 100, 1e4])
@pytest.mark.parametrize("shape", [(64, 64), (64, 192), (192, 64)])
def test_hybrid_ends_with_singular_values_of_one_and_the_stated_update(
    condition: float, shape: tuple[int, int]
) -> None:
    """Singular values within [0.9996, 1.002], root mean square 0.18."""
    rows, columns = sorted(shape)
    x = random_matrices(2, rows, columns, condition)
    x = x.mT if shape[0] > shape[1] else x
    (update,) = muon.equalised([x], [1], MuonConfig())
    values = torch.linalg.svdvals(update) / (0.18 * math.sqrt(columns))
    assert 0.9996 < values.min() <= values.max() < 1.002
    assert update.square().mean().sqrt() == pytest.approx(0.18, rel=2e-3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-12, 1e12, 1e30])
def test_size_of_a_gradient_does_not_matter(form: str, scale: float) -> None:
    x = random_matrices(2, 6, 9, condition=10).float()
    torch.testing.assert_close(orthogonalise(x * scale, form), orthogonalise(x, form), rtol=0, atol=2e-3)


def test_nothing_stays_nothing() -> None:
    assert not orthogonalise(torch.zeros(2, 3, 4), "hybrid").any()


def test_many_matrices_in_pieces_are_as_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x = list(torch.randn(2, 7, 5, 8).double())
    whole = muon.equalised(x, [1, 1], MuonConfig())
    monkeypatch.setattr(muon, "_AT_ONCE", 3 * 40)
    for one, other in zip(whole, muon.equalised(x, [1, 1], MuonConfig()), strict=True):
        torch.testing.assert_close(one, other)


# ---------------------------------------------------------------------------- the split


@pytest.mark.parametrize("entry", ENTRIES, ids=title)
def test_every_parameter_has_one_rule_by_its_role(entry: Entry) -> None:
    with torch.device("meta"):
        model = LanguageModel(variant_with(entry))
    blocks = dict(row_blocks(model))
    assert set(blocks) == {p for p in model.parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        if parameter in blocks:
            other = parameter.ndim < 2 or NOT_MATRICES.fullmatch(name) is not None
            assert (blocks[parameter] == 0) == other, name
            assert other or parameter.shape[-2] % blocks[parameter] == 0, name
    for place, module in model.named_modules():
        declared = getattr(module, "row_blocks", {})
        own = {name for name, _ in module.named_parameters(recurse=False)}
        assert set(declared) <= own, f"{place} declares what it does not have"


@pytest.mark.parametrize("entry", OPTIMIZERS, ids=title)
@pytest.mark.parametrize("change", [{}, {"residual": Slot("prenorm")}, {"compress_ratios": "nsa@4*5"}])
def test_groups_have_every_parameter_once(entry: Entry, change: dict[str, Any]) -> None:
    model = LanguageModel(make_variant(num_nextn_predict_layers=1, **change))
    built = optimizer_class(entry.name).build(entry.config(), model, 1e-3)
    held = [p for group in built.param_groups for p in group["params"]]
    assert len(held) == len(set(held)) == len(list(model.parameters()))


def test_stacked_and_fused_matrices_are_taken_apart() -> None:
    x = torch.arange(3 * 4 * 5.0).view(3, 4, 5)
    assert torch.equal(as_matrices(x, 2)[3], x[1, 2:])
    assert torch.equal(as_matrices(x[0], 4)[2], x[0, 2:3])


# ---------------------------------------------------------------------------- updates


def naive_matrices(name: str, p: Tensor, groups: int) -> Iterator[Tensor]:
    """Views of the independent matrices of a parameter, told by its name."""
    if p.ndim == 3:
        for expert in p:
            yield from naive_matrices(name, expert, groups)
    elif name.endswith("gate_up"):
        yield from (p[: len(p) // 2], p[len(p) // 2 :])
    elif name.endswith("output_projection.a"):
        yield from (p[g * len(p) // groups : (g + 1) * len(p) // groups] for g in range(groups))
    else:
        yield p


def naive_muon_step(weight: Tensor, grad: Tensor, momentum: Tensor, lr: float, config: MuonConfig) -> None:
    momentum.copy_(config.momentum * momentum + grad)
    u, s, v = torch.linalg.svd(grad + config.momentum * momentum, full_matrices=False)
    s = scalar(s / s.norm(), FORMS[config.newton_schulz])
    update = (u * s) @ v * math.sqrt(max(weight.shape)) * config.update_rms
    weight.copy_(weight * (1 - lr * config.weight_decay) - lr * update)


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("options", [{}, {"newton_schulz": "quintic", "momentum": 0.8, "decayed": "all"}])
def test_muon_is_the_naive_loop_over_matrices_and_adamw_on_the_rest(options: dict[str, Any]) -> None:
    lr, config = 0.02, MuonConfig(**options)
    model = LanguageModel(make_variant(num_hidden_layers=2, compress_ratios="csa@4,swa")).double()
    weights = copies(model)
    momenta = {name: torch.zeros_like(w) for name, w in weights.items()}
    others = {n: w for n, w in weights.items() if w.ndim < 2 or NOT_MATRICES.fullmatch(n)}
    adamw = torch.optim.AdamW(
        [
            {"params": [w], "weight_decay": 0.1 if w.ndim > 1 or config.decayed == "all" else 0.0}
            for w in others.values()
        ],
        lr=lr,
        betas=(0.9, 0.95),
        eps=1e-20,
        fused=False,
    )
    ours = optimizer_class("muon").build(config, model, lr)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        for name, p in model.named_parameters():
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            if name in others:
                others[name].grad = p.grad.clone()
                continue
            views = (naive_matrices(name, x, 2) for x in (weights[name], p.grad, momenta[name]))
            for weight, grad, momentum in zip(*views, strict=True):
                naive_muon_step(weight, grad, momentum, lr, config)
        ours.step()
        adamw.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), weights[name], rtol=0, atol=1e-9, msg=lambda m, n=name: n + m)


def test_quintic_is_pytorchs_muon() -> None:
    """PyTorch's own rounds to bfloat16 and scales by 0.2 sqrt(max); vectors aside, it is the same rule."""
    model = nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 40), nn.Linear(40, 12))
    twin = [p.detach().clone().requires_grad_() for p in model.parameters() if p.ndim == 2]
    start = [p.detach().clone() for p in twin]
    config = MuonConfig(newton_schulz="quintic", update_rms=0.2)
    ours = optimizer_class("muon").build(config, model, 0.01)
    theirs = torch.optim.Muon(
        twin, lr=0.01, weight_decay=0.1, momentum=0.95, nesterov=True, adjust_lr_fn="match_rms_adamw"
    )
    matrices = [p for p in model.parameters() if p.ndim == 2]
    for _ in range(3):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        for p, q in zip(matrices, twin, strict=True):
            assert p.grad is not None
            q.grad = p.grad.clone()
        ours.step()
        theirs.step()
    for p, q, before in zip(matrices, twin, start, strict=True):
        assert (p - q).norm() < 0.03 * (p - before).norm()


def test_a_matrix_without_a_gradient_stays() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    before = copies(model)
    built = optimizer_class("muon").build(MuonConfig(), model, 0.1)
    model[0](torch.randn(3, 6)).sum().backward()
    built.step()
    assert torch.equal(model[1].weight, before["1.weight"])
    assert not torch.equal(model[0].weight, before["0.weight"])


def test_lion_is_its_formula_at_a_share_of_the_rate() -> None:
    model, lr = nn.Linear(5, 4).double(), 0.03
    weights = copies(model)
    momenta = {name: torch.zeros_like(w) for name, w in weights.items()}
    entry = registry.get("optimizer", "lion")
    built = optimizer_class("lion").build(entry.config({"lr_scale": 0.1, "weight_decay": 1.0}), model, lr)
    for _ in range(3):
        for name, p in model.named_parameters():
            p.grad = torch.randn_like(p)
            decay = 1.0 if p.ndim == 2 else 0.0
            step = torch.sign(0.9 * momenta[name] + 0.1 * p.grad)
            weights[name] = weights[name] * (1 - 0.1 * lr * decay) - 0.1 * lr * step
            momenta[name] = 0.99 * momenta[name] + 0.01 * p.grad
        built.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), weights[name])


@pytest.mark.parametrize("entry", OPTIMIZERS, ids=title)
def test_weight_decay_acts_on_matrices_or_on_everything(entry: Entry) -> None:
    model = LanguageModel(make_variant())
    for decayed, expected in (
        ("matrices", {p for p in model.parameters() if p.ndim >= 2}),
        ("all", set(model.parameters())),
    ):
        built = optimizer_class(entry.name).build(entry.config({"decayed": decayed}), model, 1e-3)
        assert {p for g in built.param_groups if g["weight_decay"] for p in g["params"]} == expected


def test_adamw_takes_pytorchs_step() -> None:
    model = nn.Linear(5, 4)
    weights = {name: p.requires_grad_() for name, p in copies(model).items()}
    theirs = torch.optim.AdamW(list(weights.values()), lr=0.01, betas=(0.8, 0.9), eps=1e-3, weight_decay=0.3)
    config = AdamWConfig(beta1=0.8, beta2=0.9, eps=1e-3, weight_decay=0.3, decayed="all")
    ours = optimizer_class("adamw").build(config, model, 0.01)
    for name, p in model.named_parameters():
        p.grad = torch.randn_like(p)
        weights[name].grad = p.grad.clone()
    ours.step()
    theirs.step()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p, weights[name])


# ---------------------------------------------------------------------------- options and cost


@pytest.mark.parametrize("form", FORMS)
def test_cost_is_what_pytorch_counts(form: str) -> None:
    model = LanguageModel(make_variant())
    config = MuonConfig(newton_schulz=form)
    built = optimizer_class("muon").build(config, model, 1e-3)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    with FlopCounterMode(display=False) as counter:
        built.step()
    with torch.device("meta"):
        shapes = LanguageModel(make_variant())
    assert optimizer_class("muon").flops_per_step(config, shapes) == counter.get_total_flops() > 0


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_rules_by_entry_have_no_products(name: str) -> None:
    model, entry = LanguageModel(make_variant()), registry.get("optimizer", name)
    built = optimizer_class(name).build(entry.config(), model, 1e-3)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    with FlopCounterMode(display=False) as counter:
        built.step()
    assert optimizer_class(name).flops_per_step(entry.config(), model) == counter.get_total_flops() == 0


@pytest.mark.parametrize("entry", OPTIMIZERS, ids=title)
def test_every_end_of_a_search_range_takes_finite_steps(entry: Entry) -> None:
    for option, bounds in search_space(entry.cls.Config).items():
        for value in bounds.choices or (bounds.low, bounds.high):
            model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))
            built = optimizer_class(entry.name).build(entry.config({option: value}), model, 1e-2)
            before = copies(model)
            model(torch.randn(8, 4)).square().mean().backward()
            built.step()
            for name, p in model.named_parameters():
                assert p.isfinite().all(), (option, value)
                assert not torch.equal(p, before[name]), (option, value)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adamw", {"beta1": 1.0}),
        ("adamw", {"eps": 0.0}),
        ("adamw", {"weight_decay": -0.1}),
        ("adamw", {"decayed": "some"}),
        ("muon", {"newton_schulz": "cubic"}),
        ("muon", {"momentum": 1.0}),
        ("muon", {"update_rms": 0.0}),
        ("muon", {"beta2": -0.1}),
        ("lion", {"lr_scale": 0.0}),
        ("lion", {"beta1": 1.5}),
        ("lion", {"decayed": "none"}),
    ],
)
def test_options_that_cannot_work_are_refused(name: str, options: dict[str, Any]) -> None:
    (key,) = options
    with pytest.raises(ValueError, match=key):
        registry.get("optimizer", name).config(options)


def test_options_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        MuonConfig().momentum = 0.5  # type: ignore[misc]
