"""What needs 32 bits has them, whatever mixed precision or precision of the model surrounds it."""

from typing import Any

import pytest
import torch
from attention_sites import inputs, make_part, make_site, randomise
from variants import make_variant

from ablate.model import LanguageModel
from ablate.schema import Slot
from components import native, registry
from components.attention.core import joint_softmax
from components.functional import rms_norm
from components.slots import Component, Compressor, Position, Residual

SITE = make_site("csa")


def mixed(*, on: bool) -> Any:
    return torch.autocast("cpu", torch.bfloat16, enabled=on)


@pytest.mark.parametrize("name", [entry.name for entry in registry.entries("residual")])
def test_mixed_precision_changes_nothing_of_a_residual(name: str) -> None:
    """Also where the branch's output comes in half precision: streams stay in the embedding's."""
    entry = registry.get("residual", name)
    assert issubclass(entry.cls, Residual)
    config = entry.config()
    build: Any = entry.cls
    module: Residual = build(config, SITE)
    collapse = entry.cls.collapse(config, SITE)
    randomise(module)
    randomise(collapse)
    state = torch.randn(2, 5, entry.cls.streams(config, SITE.layer.index), SITE.dims.hidden_size)
    y = torch.randn(2, 5, SITE.dims.hidden_size).bfloat16()
    found = []
    for on in (False, True):
        with mixed(on=on), native.switched_off(), torch.no_grad():
            u, carry = module.read(state)
            after = module.write(state, y, carry)
            found.append((u, after, collapse(after)))
    for exact, ours in zip(*found, strict=True):
        assert torch.equal(exact, ours)
        assert ours.dtype == torch.float32


@pytest.mark.parametrize("name", ["hash", "learned"])
def test_mixed_precision_changes_no_score_of_a_router(name: str) -> None:
    entry = registry.get("router", name)
    build: Any = entry.cls
    router = build(entry.config(), SITE)
    randomise(router)
    x = torch.randn(40, SITE.dims.hidden_size)
    with mixed(on=True), torch.no_grad():
        ours = router.scores(x)
    assert torch.equal(ours, router.scores(x))


@pytest.mark.parametrize("name", ["gated", "mean_pool"])
def test_mixed_precision_changes_nothing_of_a_compressor(name: str) -> None:
    layer, rope = make_part("compressor", SITE, name), make_part("position", SITE)
    assert isinstance(layer, Compressor)
    assert isinstance(rope, Position)
    randomise(layer)
    x = inputs(SITE, 30).float()
    found = []
    for on in (False, True):
        with mixed(on=on), native.switched_off(), torch.no_grad():
            found.append(layer(x, rope))
    assert torch.equal(*found)


def test_softmax_and_norm_of_half_precision_are_computed_in_single() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(*shape, generator=generator).bfloat16() for shape in ((1, 9, 2, 8), (1, 30, 8)))
    seen, sink = torch.ones(1, 9, 30, dtype=torch.bool), torch.randn(1, 2, generator=generator)
    weights = joint_softmax(q, k, seen, sink)
    rows = (q * 8**-0.5).reshape(1, 18, 8)
    logits = (rows @ k.mT).view(1, 9, 2, 30).float()
    column = sink.view(1, 1, 2, 1).expand(1, 9, 2, 1)
    exact = torch.cat([logits, column], dim=-1).softmax(-1)[..., :-1]
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, exact, rtol=1e-5, atol=0)
    x, weight = torch.randn(40, 24, generator=generator).bfloat16(), torch.randn(24, generator=generator)
    wide = x.double()
    wanted = weight * wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    assert torch.equal(rms_norm(x, weight, 1e-6), wanted.float().bfloat16())


def test_fused_kernels_stand_back_under_mixed_precision() -> None:
    """Products between them would come in half precision, and kernels would read and write past their end."""
    x = torch.randn(4, 8)
    with mixed(on=True):
        assert not native.takes(x)
    assert native.takes(x) == native.available()


ALL = [entry for entry in registry.entries() if issubclass(entry.cls, Component)]
TOKENS = {"csa": "csa@4", "hca": "hca@8", "moba": "moba@4:k2", "nsa": "nsa@4:k2"}


@pytest.mark.parametrize("entry", ALL, ids=lambda entry: f"{entry.slot}/{entry.name}")
def test_a_model_in_half_precision_keeps_32_bits_where_small_updates_count(entry: registry.Entry) -> None:
    """Norms, biases, gates, sinks, mHC's mappings and positions of blocks; all else is cast, and the model runs."""
    changes: dict[str, Any] = {entry.slot: Slot(entry.name)}
    if entry.slot == "attention":
        changes = {"compress_ratios": f"{TOKENS.get(entry.name, entry.name)}*5"}
    model = LanguageModel(make_variant(**changes, num_nextn_predict_layers=int(entry.slot == "mtp")))
    exact = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert model.to(torch.bfloat16) is model
    wide = ("fn", "theta", "ape")
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.ndim < 2 or name.split(".")[-1] in wide:
            assert tensor.dtype in (torch.float32, torch.int64), name
            if name in exact:
                assert torch.equal(tensor, exact[name]), name
        elif tensor.is_floating_point():
            assert tensor.dtype == torch.bfloat16, name
    ids = torch.arange(40).view(2, 20) % 31
    out = model(ids[:, :-1], ids[:, 1:])
    out.loss.backward()
    assert bool(out.loss.isfinite())
    model.double()
    assert {t.dtype for t in model.parameters()} == {torch.float64}
