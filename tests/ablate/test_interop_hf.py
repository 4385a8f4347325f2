"""Our logits and gradients are those of transformers' DeepSeek-V4, with every tensor randomised."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import DeepseekV4ForCausalLM
from variants import make_variant

from ablate.errors import BadInputError
from ablate.interop.hf import from_transformers, to_transformers
from ablate.model import LanguageModel
from ablate.schema import Slot
from ablate.variant import Variant

LENGTHS = (1, 3, 4, 6, 15, 40, 64)
YARN = {"yarn_factor": 16.0, "yarn_original": 64, "yarn_beta_fast": 8.0}
CASES: dict[str, dict[str, Any]] = {
    "sliding": {"compress_ratios": "swa*2", "num_hidden_layers": 2},
    "csa": {"compress_ratios": "csa@4*2", "num_hidden_layers": 2, "index_topk": 99},
    "csa_topk": {"compress_ratios": "csa@4*2", "num_hidden_layers": 2},
    "hca": {"compress_ratios": "hca@8*2", "num_hidden_layers": 2},
    "all": {},
    "all_hash": {"num_hash_layers": 5, "router": Slot("learned")},
    "all_yarn": {"position": Slot("rope", YARN)},
    "one_stream": {"residual": Slot("mhc", {"hc_mult": 1})},
    "two_streams": {"residual": Slot("mhc", {"hc_mult": 2, "hc_sinkhorn_iters": 3, "hc_eps": 1e-3})},
    "tight_clamp": {"ffn": Slot("moe", {"swiglu_limit": 0.5}), "routed_scaling_factor": 2.5},
    "rope_factor_rounded_down": {"head_dim": 44, "qk_rope_head_dim": 30, "index_head_dim": 32},
    "no_clamp": {"ffn": Slot("moe", {"swiglu_limit": 0.0})},
}


def randomise(model: nn.Module, vocabulary: int = 31, seed: int = 0) -> None:
    """Every tensor of a model, buffers and hash tables included."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("tid2eid"):
            rows = [torch.randperm(4, generator=generator)[:2] for _ in range(vocabulary)]
            tensor.data.copy_(torch.stack(rows))
        elif "inv_freq" not in name and tensor.is_floating_point():
            values = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            scale = 0.5 if tensor.ndim == 1 else 1.5 * tensor.shape[-1] ** -0.5
            tensor.data.copy_(scale * values + ("norm" in name))


def variant(case: dict[str, Any]) -> Variant:
    """Many indexer heads: few of them often leave scores at exactly 0, and ties may be broken either way."""
    return make_variant(index_n_heads=16, **case)


def pair(case: dict[str, Any]) -> tuple[LanguageModel, DeepseekV4ForCausalLM]:
    """Ours and transformers', both from the same random transformers' tensors."""
    theirs = to_transformers(LanguageModel(variant(case)).double()).eval()
    randomise(theirs)
    return from_transformers(theirs), theirs


def ids(length: int) -> Tensor:
    return torch.randint(31, (2, length), generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("name", CASES)
def test_same_logits(name: str) -> None:
    """To 2e-5: transformers computes norms and mappings in single precision even in a float64 model."""
    ours, theirs = pair(CASES[name])
    assert ours.variant == variant(CASES[name])
    with torch.no_grad():
        for length in LENGTHS:
            wanted = theirs(input_ids=ids(length), use_cache=False).logits
            assert wanted.abs().max() > 1
            assert (ours(ids(length)).logits - wanted).abs().max() < 2e-5, length


def test_same_gradients() -> None:
    ours, theirs = pair({})
    tokens, labels = ids(41)[:, :-1], ids(41)[:, 1:]
    ours(tokens, labels).loss.backward()
    logits = theirs(input_ids=tokens, use_cache=False).logits
    nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()).backward()
    gradients = LanguageModel(ours.variant).double()
    carrier = to_transformers(gradients)
    for target, source in zip(carrier.parameters(), theirs.parameters(), strict=True):
        target.data.copy_(torch.zeros_like(target) if source.grad is None else source.grad)
    wanted = dict(from_transformers(carrier).named_parameters())
    for name, parameter in ours.named_parameters():
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        error = (found - wanted[name]).abs().max() / wanted[name].abs().max().clamp(min=1e-4)
        assert error < 2e-3, f"{name}: {error}"


def test_there_and_back_keeps_every_tensor_and_buffer() -> None:
    ours, theirs = pair({"num_hash_layers": 2})
    back = to_transformers(ours).state_dict()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(back[name], tensor), name


def test_prediction_layers_stay_behind_and_change_no_logit() -> None:
    ours = LanguageModel(make_variant(num_nextn_predict_layers=1)).double()
    randomise(ours)
    with torch.no_grad():
        theirs = to_transformers(ours)(input_ids=ids(15), use_cache=False).logits
        assert (ours(ids(15)).logits - theirs).abs().max() < 2e-5


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"residual": Slot("prenorm")}, "residual=prenorm"),
        ({"compress_ratios": "dense*5"}, "model.compress_ratios=dense*5"),
        ({"compress_ratios": "csa@4*4,csa@8"}, "one ratio per kind"),
        ({"compress_ratios": "csa@4*4,csa@4:k1"}, "the same top-k"),
        ({"compress_ratios": "csa@4:no_overlap*5"}, "overlap"),
        ({"ffn": Slot("swiglu")}, "ffn=swiglu"),
        ({"sink": Slot("none")}, "sink=none"),
        ({"ffn": Slot("moe", {"activation": "relu2"})}, "ffn.args.activation=relu2"),
        ({"residual": Slot("mhc", {"hc_head": "mean"})}, "residual.args.hc_head=mean"),
        ({"n_shared_experts": 2}, "model.n_shared_experts=2"),
        ({"indexer": Slot("lightning", {"train": "dense"})}, "indexer.args.train=dense"),
    ],
)
def test_what_transformers_cannot_express_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInputError) as caught:
        to_transformers(LanguageModel(make_variant(**change)))
    assert said in str(caught.value)


def test_what_we_cannot_express_is_named() -> None:
    theirs = to_transformers(LanguageModel(make_variant()))
    theirs.config.mlp_layer_types = ["moe", "hash_moe", "moe", "moe", "moe"]
    with pytest.raises(BadInputError, match="first layers"):
        from_transformers(theirs)
    theirs.config.scoring_func = "softmax"
    with pytest.raises(BadInputError, match="scoring_func=softmax"):
        from_transformers(theirs)
