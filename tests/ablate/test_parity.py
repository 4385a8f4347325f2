"""Random configurations: logits, gradients and weights of transformers' DeepSeek-V4, in double precision.

Transformers casts to single precision within a double model. Here these casts lead to double precision, and
of equal scores its top-k takes the first, which is one of the orders that `torch.topk` leaves open. So only
rounding in the sixteenth digit is left between the two models, and any difference of mathematics stands out.
"""

import random
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import DeepseekV4ForCausalLM
from transformers.models.deepseek_v4.modeling_deepseek_v4 import DeepseekV4Indexer, DeepseekV4TopKRouter
from variants import make_variant

from ablate.interop.hf import from_transformers, to_transformers
from ablate.model import LanguageModel
from ablate.schema import Slot
from components.indexer.lightning import Lightning
from components.router.learned import LearnedRouter

FAST = 12
ALL = 220
TOLERANCE = 1e-9
"""Of logits between 1 and 100, and of gradients against the largest of their tensor."""

Choice = list[set[tuple[int, ...]]]


class Double(TorchFunctionMode):
    """Single precision is double, and top-k takes the first of equals."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            return args[0].double()
        if func in (Tensor.topk, torch.topk):
            count = args[1] if len(args) > 1 else kwargs["k"]
            values, indices = args[0].sort(dim=-1, descending=True, stable=True)
            return torch.return_types.topk((values[..., :count], indices[..., :count]))
        args = tuple(torch.float64 if arg is torch.float32 else arg for arg in args)
        kwargs = {key: torch.float64 if arg is torch.float32 else arg for key, arg in (kwargs or {}).items()}
        return func(*args, **kwargs)


@dataclass(frozen=True)
class Draw:
    """One configuration: what to change of `make_variant`, and lengths of sequences."""

    changes: dict[str, Any]
    long: int
    short: int
    batch: int


def draw(number: int) -> Draw:
    """A function of `number` alone; the first ones reach every mechanism (see below)."""
    rng = random.Random(number)
    pick = rng.choice
    csa, hca = pick([1, 2, 3, 4, 4, 5, 6, 7, 9]), pick([2, 3, 5, 7, 8, 11, 14, 28])
    layers = rng.randint(1, 5)
    kinds = [pick(["swa", f"csa@{csa}", f"csa@{csa}", f"hca@{hca}"]) for _ in range(layers)]
    long = rng.randint(3, 75)
    if rng.random() < 0.1:
        kinds[-1], long = "hca@112", rng.randint(112, 230)
        kinds = [kind.replace(f"hca@{hca}", "hca@112") for kind in kinds]
    heads = pick([1, 2, 3, 4, 6, 8])
    width = pick([4, 6, 10, 16, 22])
    rotary = pick(list(range(2, width + 1, 2)))
    experts = rng.randint(1, 9)
    position: dict[str, Any] = {
        "rope_theta": pick([100.0, 1e4, 5e5]),
        "compress_rope_theta": pick([200.0, 1.6e5]),
    }
    if rng.random() < 0.6:
        position |= {
            "yarn_factor": pick([2.0, 4.0, 16.0, 40.0]),
            "yarn_original": pick([16, 64, 4096, 65536]),
            "yarn_beta_fast": pick([8.0, 32.0]),
            "yarn_beta_slow": pick([0.5, 1.0]),
        }
    changes = {
        "num_hidden_layers": layers,
        "compress_ratios": ",".join(kinds),
        "num_hash_layers": rng.randint(0, layers),
        "vocab_size": rng.randint(5, 60),
        "hidden_size": pick([8, 15, 24, 33]),
        "num_attention_heads": heads,
        "head_dim": width,
        "qk_rope_head_dim": rotary,
        "q_lora_rank": rng.randint(3, 20),
        "o_groups": pick([g for g in range(1, heads + 1) if heads % g == 0]),
        "o_lora_rank": rng.randint(1, 30),
        "sliding_window": pick([1, 2, 5, 6, 16, 100]),
        "index_n_heads": rng.randint(1, 8),
        "index_head_dim": rotary + pick([0, 2, 8]),
        "index_topk": pick([1, 2, 3, 5, 8, 99]),
        "moe_intermediate_size": rng.randint(3, 20),
        "n_routed_experts": experts,
        "num_experts_per_tok": rng.randint(1, min(4, experts)),
        "routed_scaling_factor": pick([1.0, 1.5, 2.5]),
        "rms_norm_eps": pick([1e-6, 1e-5, 1e-2]),
        "residual": Slot(
            "mhc",
            {
                "hc_mult": pick([1, 2, 4, 4]),
                "hc_sinkhorn_iters": pick([1, 2, 3, 20]),
                "hc_eps": pick([1e-6, 1e-3]),
            },
        ),
        "position": Slot("rope", position),
        "ffn": Slot("moe", {"swiglu_limit": pick([0.0, 0.3, 1.0, 10.0])}),
    }
    return Draw(changes, long, short=rng.randint(1, max(csa, 3)), batch=rng.randint(1, 3))


def randomise(model: nn.Module, seed: int) -> None:
    """Every tensor: matrices, norms, sinks, biases, gates, tables of positions and of experts."""
    generator = torch.Generator().manual_seed(seed)
    config: Any = model.config
    experts, chosen = config.n_routed_experts, config.num_experts_per_tok
    size = 1.0 + torch.rand(1, generator=generator).item()
    for name, tensor in model.state_dict().items():
        if name.endswith("tid2eid"):
            rows = [torch.randperm(experts, generator=generator)[:chosen] for _ in tensor]
            tensor.copy_(torch.stack(rows))
            continue
        scale = 0.5 if tensor.ndim == 1 else size * tensor.shape[-1] ** -0.5
        values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        tensor.copy_(scale * values + ("norm" in name))


def chosen_sets(ours: LanguageModel, theirs: DeepseekV4ForCausalLM, ids: Tensor) -> tuple[Choice, Choice]:
    """What indexers and learned routers choose, one set of (token, choice) per module, in order of layers."""
    found: tuple[Choice, Choice] = [], []

    def entries(mask: Tensor) -> None:
        found[0].append(set(map(tuple, mask.expand(len(ids), -1, -1).nonzero().tolist())))

    def indices(number: int, chosen: Tensor) -> None:
        pairs = [(*at, int(chosen[tuple(at)])) for at in (chosen >= 0).nonzero().tolist()]
        found[number].append({(*place[:-2], place[-1]) for place in pairs})

    hooks = []
    for module in ours.modules():
        if isinstance(module, Lightning):
            hooks.append(module.register_forward_hook(lambda *call: entries(call[2][0])))
        if isinstance(module, LearnedRouter):
            hooks.append(module.register_forward_hook(lambda *call: indices(0, call[2][1])))
    for module in theirs.modules():
        if isinstance(module, DeepseekV4Indexer):
            hooks.append(module.register_forward_hook(lambda *call: indices(1, call[2])))
        if isinstance(module, DeepseekV4TopKRouter):
            hooks.append(module.register_forward_hook(lambda *call: indices(1, call[2][2])))
    with torch.no_grad():
        ours(ids)
        theirs(input_ids=ids, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def gradients(theirs: DeepseekV4ForCausalLM) -> dict[str, Tensor]:
    """Those of `theirs` under our names, NaN where there is none. Overwrites its weights."""
    for parameter in theirs.parameters():
        gradient = parameter.grad
        parameter.data = torch.full_like(parameter, torch.nan) if gradient is None else gradient
    return dict(from_transformers(theirs).named_parameters())


def deviations(number: int) -> tuple[float, float]:
    """Of logits and of gradients, in configuration `number`; all that is exact is asserted."""
    case = draw(number)
    generator = torch.Generator().manual_seed(number)
    vocabulary = case.changes["vocab_size"]

    def tokens(length: int) -> Tensor:
        return torch.randint(vocabulary, (case.batch, length), generator=generator)

    with Double():
        theirs = to_transformers(LanguageModel(make_variant(**case.changes)).double()).eval()
        randomise(theirs, number)
    ours = from_transformers(theirs)
    assert ours.variant == make_variant(**case.changes)

    back = to_transformers(ours)
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor), name
    again = from_transformers(back).state_dict()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(again[name], tensor), name

    logit_error = 0.0
    for length in (case.short, case.long):
        ids = tokens(length)
        with Double():
            mine, wanted = chosen_sets(ours, theirs, ids)
            assert mine == wanted, f"choices differ at length {length}"
            expected = theirs(input_ids=ids, use_cache=False).logits
        found = ours(ids).logits
        assert expected.isfinite().all()
        assert expected.abs().max() > 0.5
        logit_error = max(logit_error, (found - expected).abs().max().item())

    probe = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    (found * probe).sum().backward()
    (expected * probe).sum().backward()
    gradient_error = 0.0
    counterparts = gradients(theirs)
    for name, parameter in ours.named_parameters():
        wanted = counterparts[name]
        if parameter.grad is None or wanted.isnan().all():
            assert parameter.grad is None or not parameter.grad.any(), name
            assert wanted.isnan().all() or not wanted.any(), name
            continue
        error = (parameter.grad - wanted).abs().max() / wanted.abs().max().clamp(min=1e-3)
        gradient_error = max(gradient_error, error.item())
    return logit_error, gradient_error


@pytest.mark.parametrize("number", range(FAST))
def test_logits_and_gradients_of_drawn_configurations(number: int) -> None:
    assert max(deviations(number)) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("number", range(FAST, ALL))
def test_logits_and_gradients_of_many_more(number: int) -> None:
    assert max(deviations(number)) < TOLERANCE


def test_draws_reach_what_they_should() -> None:
    """All of them, and the fast ones too but for the rarest."""
    for count, rare in ((FAST, False), (ALL, True)):
        cases = [draw(number) for number in range(count)]
        changes = [case.changes for case in cases]
        schedules = [change["compress_ratios"] for change in changes]
        for kind in ("swa", "csa", "hca"):
            assert any(kind in text for text in schedules)
        assert {change["residual"].args["hc_mult"] for change in changes} == {1, 2, 4}
        assert {change["ffn"].args["swiglu_limit"] for change in changes} == {0.0, 0.3, 1.0, 10.0}
        assert {"yarn_factor" in change["position"].args for change in changes} == {True, False}
        assert {change["num_hash_layers"] > 0 for change in changes} == {True, False}
        assert any(0 < change["num_hash_layers"] < change["num_hidden_layers"] for change in changes)
        assert any(change["o_groups"] > 1 for change in changes)
        assert any(case.long % 2 for case in cases)
        selecting = [
            case.long // int(case.changes["compress_ratios"].split("csa@")[1].split(",")[0])
            > case.changes["index_topk"]
            for case in cases
            if "csa@" in case.changes["compress_ratios"]
        ]
        assert set(selecting) == {True, False}
        if rare:
            assert any("hca@112" in text for text in schedules)
            for odd in ("csa@5", "csa@7", "hca@5", "hca@7"):
                assert any(odd in text for text in schedules)
