"""The assembled model: causality, exact costs, shared starts, living parameters."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from variants import make_variant

from ablate.errors import BadInputError
from ablate.model import LanguageModel, build_model, initialise
from ablate.schema import Slot
from components import native

# One change each; that every entry of every slot does is in `tests/components/test_every_entry.py`.
VARIANTS: dict[str, dict[str, Any]] = {
    "v4": {},
    "prenorm": {"residual": Slot("prenorm")},
    "hyper_connections": {"residual": Slot("hyper_connections", {"hc_mult": 3})},
    "two_streams": {"residual": Slot("mhc", {"hc_mult": 2, "hc_init": "identity"})},
    "one_stream": {"residual": Slot("mhc", {"hc_mult": 1})},
    "dense": {"compress_ratios": "dense*5", "num_hash_layers": 0},
    "dense_gqa": {"compress_ratios": "dense*5", "num_key_value_heads": 2},
    "dense_swiglu": {"compress_ratios": "dense*2,swa*3", "ffn": Slot("swiglu")},
    "window": {"compress_ratios": "swa*5", "num_hash_layers": 5},
    "csa": {"compress_ratios": "csa@4*2,csa@4:no_overlap,csa@2:k1,csa@8:k99"},
    "hca": {"compress_ratios": "hca@8*4,hca@3"},
    "no_shared_expert": {"n_shared_experts": 0},
    "two_shared_experts": {"n_shared_experts": 2, "num_experts_per_tok": 1},
    "untrained_indexer": {"indexer": Slot("lightning", {"train": "none"})},
    "dense_warm_up": {"indexer": Slot("lightning", {"train": "dense"})},
    "mtp": {"num_nextn_predict_layers": 1},
    "mtp_v3": {"num_nextn_predict_layers": 1, "mtp": Slot("v3")},
    "mtp_twice": {"num_nextn_predict_layers": 2},
    "mtp_prenorm": {"num_nextn_predict_layers": 1, "residual": Slot("prenorm")},
    "mtp_dense": {"num_nextn_predict_layers": 1, "ffn": Slot("swiglu"), "compress_ratios": "dense*5"},
}


def randomise(model: LanguageModel, seed: int = 0) -> LanguageModel:
    """Every parameter and balancing bias away from its special starting value, in double precision."""
    generator = torch.Generator().manual_seed(seed)
    model.double()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and (tensor.requires_grad or name.endswith("correction_bias")):
            scale = 0.3 if tensor.ndim == 1 else tensor.shape[-1] ** -0.5
            scale = 0.01 if "correction" in name else scale
            tensor.data.copy_(scale * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
            if "norm" in name:
                tensor.data.add_(1.0)
    return model


def ids(length: int, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.randint(31, (batch, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", VARIANTS)
def test_costs_are_what_is_built_and_run(name: str) -> None:
    """Parameters equal `numel`, kernel FLOPs equal PyTorch's counter.

    The counter sees matrix products only. Of what it does not see, the convention counts reading from
    streams; all else (norms, rotation, softmax, pooling, Sinkhorn, SwiGLU, top-k, gathering) it leaves out.
    """
    variant = make_variant(**VARIANTS[name])
    model = LanguageModel(variant)
    for length in (24, 21):
        table = variant.costs(length)
        assert table.total.params == sum(parameter.numel() for parameter in model.parameters())
        with native.switched_off(), FlopCounterMode(display=False) as counter, torch.no_grad():
            model(ids(length), ids(length))
        assert table.total.kernel_flops == counter.get_total_flops()
        assert table.total.flops > 0
        assert table.total.active_params <= table.total.params


@pytest.mark.parametrize("name", VARIANTS)
def test_no_logit_depends_on_later_tokens(name: str) -> None:
    model = randomise(LanguageModel(make_variant(**VARIANTS[name]))).eval()
    tokens = ids(26)
    with torch.no_grad():
        before = model(tokens).logits
        for t in (0, 3, 7, 8, 15, 25):
            changed = tokens.clone()
            changed[0, t] = (changed[0, t] + 1) % 31
            after = model(changed).logits
            assert torch.allclose(before[:, :t], after[:, :t], rtol=0, atol=1e-11)
            assert (before[:, t:] - after[:, t:]).abs().max() > 1e-6


@pytest.mark.parametrize("name", VARIANTS)
def test_every_element_of_every_parameter_is_alive(name: str) -> None:
    """All but the indexer's, because no language-model gradient passes through its choice. The loss of
    prediction layers is theirs alone to live from."""
    model = randomise(LanguageModel(make_variant(**VARIANTS[name])))
    tokens = torch.stack([torch.randperm(31, generator=torch.Generator().manual_seed(i)) for i in range(12)])
    targets = ids(31, batch=12, seed=1)
    output = model(tokens, targets)
    further = [value for key, value in output.aux.items() if key.startswith("loss/mtp/")]
    sum(further, output.loss).backward()
    for key, parameter in model.named_parameters():
        if "indexer" in key:
            assert parameter.grad is None, key
        else:
            assert parameter.grad is not None, key
            # One stream has nothing to mix: only the mapping's rows for reading and writing can live.
            alone = name == "one_stream" and "residual." in key
            dead = (parameter.grad[:2] == 0 if alone else parameter.grad == 0).sum().item()
            assert dead == 0, f"{key}: {dead} of {parameter.numel()} elements"


def test_variants_start_from_the_same_values_in_common_tensors() -> None:
    models = [LanguageModel(make_variant(**change)) for change in VARIANTS.values()]
    for model in models:
        initialise(model, seed=3)
    reference = dict(models[0].named_parameters())
    for model in models[1:]:
        common = [
            (name, parameter)
            for name, parameter in model.named_parameters()
            if name in reference and reference[name].shape == parameter.shape
        ]
        assert "embedding" in dict(common)
        for name, parameter in common:
            if "residual" not in name and "collapse" not in name:
                assert torch.equal(parameter, reference[name]), name


def test_start_is_a_function_of_the_seed() -> None:
    one, two = LanguageModel(make_variant()), LanguageModel(make_variant())
    initialise(one, 5)
    initialise(two, 5)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    initialise(two, 6)
    assert not torch.equal(one.embedding, two.embedding)
    values = dict(one.named_parameters())
    for name, parameter in values.items():
        if name.endswith("norm.weight"):
            assert torch.equal(parameter, torch.ones_like(parameter)), name
        if parameter.ndim > 1 and parameter.numel() > 300 and parameter.std() > 0:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.2), name
    assert one.embedding.std().item() == pytest.approx(0.02, rel=0.1)
    assert not torch.equal(one.embedding, one.head)


def test_loss_is_mean_nats_and_aux_is_named_by_layer() -> None:
    model = build_model(make_variant())
    tokens, labels = ids(12, 2), ids(12, 2, seed=1)
    labels[0, :3] = -100
    output = model(tokens, labels)
    picked = output.logits.log_softmax(-1).flatten(0, 1)[torch.arange(24), labels.flatten().clamp(min=0)]
    assert output.loss.item() == pytest.approx(-picked[labels.flatten() >= 0].mean().item(), rel=1e-5)
    assert output.loss.item() == pytest.approx(3.434, abs=0.1)
    assert "diag/layers.4/ffn/max_vio" in output.aux
    assert model(tokens).loss is None


@pytest.mark.parametrize("init", ["small_gate", "hf", "identity"])
def test_streams_are_apart_after_one_step(init: str) -> None:
    """They start as copies of each other, and copies would get copies of each other's gradients."""
    model = build_model(make_variant(residual=Slot("mhc", {"hc_init": init})))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(ids(24), ids(24, seed=1)).loss.backward()
    optimizer.step()
    last: list[Tensor] = []
    model.collapse.register_forward_pre_hook(lambda _, arguments: last.append(arguments[0]))
    model(ids(24))
    assert last[0].std(2).max() > 1e-4 * last[0].std()


def test_hash_routing_follows_each_token_itself() -> None:
    """Other experts for one token id in the last layer move what its positions say, and nothing else."""
    change: dict[str, Any] = {"num_hash_layers": 5, "router": Slot("hash"), "num_nextn_predict_layers": 1}
    model = randomise(LanguageModel(make_variant(**change))).eval()
    tokens = torch.randperm(31, generator=torch.Generator().manual_seed(0))[None, :20]
    further: list[Tensor] = []
    model.mtp.register_forward_hook(lambda _, arguments, found: further.append(found[0][0]))
    with torch.no_grad():
        before = model(tokens, tokens).logits
        for router, shift in ((model.layers[-1].ffn.router, 0), (model.mtp[0].block.ffn.router, 1)):
            router.tid2eid[tokens[0, 7]] = (router.tid2eid[tokens[0, 7]] + 1) % 4
            after = model(tokens, tokens).logits
            pair = (before, after) if shift == 0 else further[-2:]
            moved = (pair[0] - pair[1]).abs().amax(-1)[0] > 1e-9
            assert moved.nonzero().flatten().tolist() == [7 - shift]
            before = after


def test_after_step_balances_learned_routers_only() -> None:
    model = build_model(make_variant())
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(ids(24)).logits.sum().backward()
    model.after_step()
    changed = {name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}
    assert changed == {f"layers.{i}.ffn.router.e_score_correction_bias" for i in range(1, 5)}


def test_training_lowers_the_loss() -> None:
    model = build_model(make_variant())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens = ids(25, 4)
    losses = []
    for _ in range(30):
        loss = model(tokens[:, :-1], tokens[:, 1:]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.after_step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_three_billion_parameters_on_the_meta_device() -> None:
    model = build_model("v4_mini_3b", device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_165_669_952
    assert sum(parameter.numel() for parameter in model.mtp.parameters()) == 3_165_669_952 - 3_066_509_741
    model = build_model("v4_mini_3b", device="meta", overrides=["model.num_nextn_predict_layers=0"])
    assert sum(parameter.numel() for parameter in model.parameters()) == 3_066_509_741


def test_presets_take_overrides_and_refuse_what_does_not_exist() -> None:
    model = build_model("micro", overrides=["model.hidden_size=32", "residual=prenorm"])
    assert model.variant.dims.hidden_size == 32
    assert model.streams == 1
    with pytest.raises(BadInputError, match="micro"):
        build_model("mirco")
    with pytest.raises(ValueError, match="overrides"):
        build_model(make_variant(), overrides=["residual=prenorm"])


def test_half_precision_keeps_mappings_and_router_wide() -> None:
    model = build_model(make_variant()).bfloat16()
    output = model(ids(16), ids(16))
    assert output.logits.dtype == torch.bfloat16
    assert output.loss.dtype == torch.float32
    assert torch.isfinite(output.loss)
