"""What is chosen is what runs: methods called, streams kept apart between blocks, experts used, options that act."""

from collections import Counter
from typing import Any

import pytest
import torch
from test_every_entry import CORNERS, ENTRIES, ids, randomised, title, total_loss, variant_with
from torch import Tensor
from variants import make_variant

from ablate.model import LanguageModel, build_model
from ablate.schema import Slot
from components import native, registry
from components.registry import Entry
from components.slots import Component, Residual, Router
from components.spec import search_space

STATIC = {"cost", "streams", "collapse", "collapse_cost"}
"""Abstract methods that a forward pass does not call."""

LATER = {
    "bias_update_speed": "acts after a step",
    "decay_weight": "acts while the learning rate decays",
}
"""Options that show in no first forward pass, and why."""


@pytest.mark.parametrize("entry", ENTRIES, ids=title)
def test_the_declared_class_is_the_one_that_runs(entry: Entry, monkeypatch: pytest.MonkeyPatch) -> None:
    model = LanguageModel(variant_with(entry))
    base = next(cls for cls in entry.cls.__mro__ if Component in cls.__bases__)
    calls: Counter[str] = Counter()

    def counting(name: str, method: Any) -> Any:
        def called(self: Any, *args: Any, **options: Any) -> Any:
            calls[name] += type(self) is entry.cls
            return method(self, *args, **options)

        return called

    names = base.__abstractmethods__ - STATIC
    for name in names:
        monkeypatch.setattr(entry.cls, name, counting(name, getattr(entry.cls, name)))
    with native.switched_off(), torch.no_grad():
        model(ids(24), ids(24))
    instances = sum(type(module) is entry.cls for module in model.modules())
    assert set(calls) == set(names)
    assert all(calls[name] >= instances for name in names)


@pytest.mark.parametrize("entry", registry.entries("residual"), ids=title)
def test_streams_persist_from_block_to_block(entry: Entry) -> None:
    """A stack that collapsed or averaged its streams on the way would treat those that it gets alike."""
    variant = make_variant(residual=Slot(entry.name), num_hidden_layers=3, compress_ratios="swa*3")
    model = randomised(variant)
    states: list[Tensor] = []
    for block in model.layers:
        block.register_forward_hook(lambda _module, _inputs, output: states.append(output[0]))
    logits = model(ids(12, batch=2)).logits
    for depth, state in enumerate(states, start=1):
        assert state.shape[2] == variant.streams(depth)
        gradient = torch.autograd.grad(logits.square().sum(), state, retain_graph=True)[0]
        for j in range(state.shape[2]):
            assert gradient[:, :, j].abs().max() > 0
            for k in range(j):
                assert (state[:, :, j] - state[:, :, k]).abs().max() > 1e-3
                if depth < len(states):  # after the last block their sum may be all that is wanted
                    assert (gradient[:, :, j] - gradient[:, :, k]).abs().max() > 1e-6
    assert issubclass(entry.cls, Residual)


@pytest.mark.parametrize("entry", registry.entries("router"), ids=title)
def test_routing_is_not_degenerate_from_the_start(entry: Entry) -> None:
    """Every expert has tokens, none has nearly all of them, and weights differ between tokens."""
    model = build_model(
        make_variant(router=Slot(entry.name), num_hash_layers=5 if entry.name == "hash" else 0)
    )
    seen: list[tuple[Tensor, Tensor]] = []
    for module in model.modules():
        if isinstance(module, Router):
            module.register_forward_hook(lambda _module, _inputs, output: seen.append(output[:2]))
    with torch.no_grad():
        model(ids(60, batch=8))
    experts, k = model.variant.dims.n_routed_experts, model.variant.dims.num_experts_per_tok
    assert len(seen) == len(model.layers)
    for weights, chosen in seen:
        counts = torch.bincount(chosen[chosen < experts].flatten(), minlength=experts)
        assert counts.min() > 0.02 * counts.sum()
        assert counts.max() < 0.6 * counts.sum()
        assert counts.sum() == 60 * 8 * k
        real = chosen < experts
        assert weights[real].std() > 1e-4
        for row in chosen:
            here = row[row < experts]
            assert len(here.unique()) == len(here)


@pytest.mark.parametrize(
    ("entry", "option"), [(e, o) for e in ENTRIES for o in search_space(e.cls.Config)], ids=title
)
def test_no_searchable_option_is_silently_without_effect(entry: Entry, option: str) -> None:
    """Over its range it changes what a model starts with, computes or loses, or warns that it does not."""
    if option in LATER:
        return
    variants = [
        variant_with(entry, **{option: value})
        for other, name, value in CORNERS
        if (other, name) == (entry, option)
    ]
    models = [
        [build_model(variant).double(), randomised(variant), _loud(randomised(variant))]
        for variant in variants
    ]
    seen = [[_signature(model) for model in made] for made in models]
    moved = any(one != seen[0] for one in seen[1:])
    assert moved or any(variant.warnings(24) for variant in variants)


def _loud(model: LanguageModel) -> LanguageModel:
    """With values that reach every limit."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)
    return model


def _signature(model: LanguageModel) -> tuple[float, float, float]:
    """Numbers that nothing the model computes, loses or learns leaves alone."""
    output = model(ids(24, batch=2), ids(24, batch=2, seed=1))
    loss = total_loss(output)
    loss.backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return _mixed(output.logits.flatten()), loss.item(), _mixed(torch.cat(gradients))


def _mixed(values: Tensor) -> float:
    return float(values.detach() @ torch.arange(len(values), dtype=values.dtype).sin())
