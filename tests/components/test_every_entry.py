"""What every registered entry keeps, whoever registers it: exact costs, causality, life in its weights."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from variants import make_run

from ablate.model import LanguageModel, Output, build_model
from ablate.schema import Slot
from ablate.variant import Variant
from components import native, registry
from components.registry import Entry
from components.slots import Attention, Component
from components.spec import search_space

ENTRIES = [entry for entry in registry.entries() if issubclass(entry.cls, Component)]
CORNERS = [
    (entry, option, value)
    for entry in ENTRIES
    for option, bounds in search_space(entry.cls.Config).items()
    for value in bounds.choices or (bounds.low, bounds.high)
]
# Before the first branch there is only the embedding to look at.
UNTOUCHED = {("residual", "attention_residual"): "layers.0.attention_residual.query"}
"""Parameters that cannot live where they are, by entry."""
VOCABULARY = 31


def title(value: Any) -> str | None:
    return f"{value.slot}={value.name}" if isinstance(value, Entry) else None


every_entry: Callable[[Any], Any] = pytest.mark.parametrize("entry", ENTRIES, ids=title)


def variant_with(entry: Entry, **options: Any) -> Variant:
    """A model of two layers that has the entry in it."""
    schedule = "csa@4,swa"
    if issubclass(entry.cls, Attention):
        blocks = "ratio" in entry.cls.default_layer() or "compressor" in entry.cls.uses
        schedule = f"{entry.name}@4*2" if blocks else f"{entry.name}*2"
    sizes: dict[str, Any] = {"num_hidden_layers": 2, "compress_ratios": schedule, "num_hash_layers": 0}
    if entry.slot == "mtp":
        sizes["num_nextn_predict_layers"] = 1
    if entry.slot == "attention":
        run = dataclasses.replace(make_run(**sizes), attention={entry.name: options})
    else:
        run = make_run(**sizes, **{entry.slot: Slot(entry.name, options)})
    variant = Variant.from_run(run)
    variant.check(21)
    return variant


def ids(length: int, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.randint(VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def randomised(variant: Variant) -> LanguageModel:
    """The variant's model in double precision, every parameter away from its special starting value."""
    model, generator = LanguageModel(variant).double(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            values = scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(values + ("norm" in name))
    return model


def own_parameters(model: LanguageModel, entry: Entry) -> dict[str, torch.nn.Parameter]:
    """Parameters of the entry's instances, without those of parts that they use."""
    found = {}
    for prefix, module in model.named_modules():
        if isinstance(module, entry.cls):
            parts = [name for name, child in module.named_children() if isinstance(child, Component)]
            for name, parameter in module.named_parameters():
                if name.partition(".")[0] not in parts:
                    found[f"{prefix}.{name}"] = parameter
    return found


def total_loss(output: Output) -> Tensor:
    """What training minimises."""
    assert output.loss is not None
    return sum((value for key, value in output.aux.items() if key.startswith("loss/")), output.loss)


@every_entry
def test_cost_is_what_is_built_and_run(entry: Entry) -> None:
    """Parameters equal `numel`, kernel FLOPs equal PyTorch's counter."""
    variant = variant_with(entry)
    model = LanguageModel(variant)
    assert any(isinstance(module, entry.cls) for module in model.modules())
    for length in (24, 21):
        total = variant.costs(length).total
        assert total.params == sum(parameter.numel() for parameter in model.parameters())
        with native.switched_off(), FlopCounterMode(display=False) as counter, torch.no_grad():
            model(ids(length), ids(length))
        assert total.kernel_flops == counter.get_total_flops()
        assert total.active_params <= total.params


@every_entry
def test_no_logit_depends_on_later_tokens(entry: Entry) -> None:
    """Entries that declare that theirs do are found out, and say so to the user."""
    variant = variant_with(entry)
    model, tokens = randomised(variant).eval(), ids(26)
    leaked = 0.0
    with torch.no_grad():
        before = model(tokens).logits
        for t in (3, 7, 16, 25):
            changed = tokens.clone()
            changed[0, t] = (changed[0, t] + 1) % VOCABULARY
            after = model(changed).logits
            leaked = max(leaked, (before[:, :t] - after[:, :t]).abs().max().item())
            assert (before[:, t:] - after[:, t:]).abs().max() > 1e-6
    if entry.cls.causal:
        assert leaked < 1e-11
    else:
        assert leaked > 1e-6
        assert any("not causal" in text for text in variant.warnings(26))


@every_entry
def test_every_element_of_every_parameter_is_alive(entry: Entry) -> None:
    """A path that is computed and then dropped keeps every shape and leaves gradients at zero."""
    model = randomised(variant_with(entry))
    tokens = torch.stack(
        [torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(i)) for i in range(12)]
    )
    total_loss(model(tokens, ids(31, batch=12, seed=1))).backward()
    own = own_parameters(model, entry)
    for name, parameter in own.items():
        if name == UNTOUCHED.get((entry.slot, entry.name)):
            assert parameter.grad is not None
            assert not parameter.grad.any(), name
            continue
        assert parameter.grad is not None, name
        dead = (parameter.grad == 0).sum().item()
        assert dead == 0, f"{name}: {dead} of {parameter.numel()} elements"


@every_entry
def test_every_parameter_changes_what_comes_out(entry: Entry) -> None:
    """Not only gradients: one may reach a tensor whose value nothing uses."""
    model = randomised(variant_with(entry))
    tokens, labels = ids(24, batch=2), ids(24, batch=2, seed=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        before = total_loss(model(tokens, labels))
        for name, parameter in own_parameters(model, entry).items():
            if name == UNTOUCHED.get((entry.slot, entry.name)):
                continue
            old = parameter.clone()
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
            assert (total_loss(model(tokens, labels)) - before).abs() > 1e-9, name
            parameter.copy_(old)
        assert torch.equal(total_loss(model(tokens, labels)), before)


@pytest.mark.parametrize(("entry", "option", "value"), CORNERS, ids=title)
def test_every_corner_of_every_search_range_costs_what_it_runs_and_trains(
    entry: Entry, option: str, value: Any
) -> None:
    variant = variant_with(entry, **{option: value})
    model, length = build_model(variant), 24
    with native.switched_off(), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(ids(length), ids(length))
    total = variant.costs(length).total
    assert total.params == sum(parameter.numel() for parameter in model.parameters())
    assert total.kernel_flops == counter.get_total_flops()
    loss = total_loss(model(ids(length), ids(length, seed=1)))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
