"""Language models whose layers are alternatives to DeepSeek-V4's attention."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from variants import make_variant

from ablate import completion, config
from ablate.errors import BadInputError
from ablate.model import LanguageModel, build_model
from ablate.schema import Slot
from ablate.variant import Variant
from components import native

MIXED = "mla,moba@16:k2,nsa@8:k2,gated_deltanet,csa@4:k2"
VARIANTS: dict[str, dict[str, Any]] = {
    "mixed": {"compress_ratios": MIXED},
    "shared_heads": {
        "compress_ratios": "moba@4:k2,nsa@8:k4,moba@5:k3,nsa@6:k1,mla",
        "num_key_value_heads": 2,
    },
    "oracle": {"compress_ratios": MIXED, "indexer": Slot("oracle")},
    "random": {"compress_ratios": MIXED, "indexer": Slot("random", {"seed": 3})},
}


def _ids(length: int, batch: int = 1, seed: int = 0) -> Tensor:
    return torch.randint(31, (batch, length), generator=torch.Generator().manual_seed(seed))


def _random(variant: Any) -> LanguageModel:
    model, generator = LanguageModel(variant).double(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.3 if parameter.ndim == 1 else parameter.shape[-1] ** -0.5
            values = scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(values + ("norm" in name))
    return model


@pytest.mark.parametrize("name", VARIANTS)
def test_costs_are_what_is_built_and_run(name: str) -> None:
    variant = make_variant(**VARIANTS[name])
    model = LanguageModel(variant)
    for length in (40, 21):
        total = variant.costs(length).total
        assert total.params == sum(parameter.numel() for parameter in model.parameters())
        with native.switched_off(), FlopCounterMode(display=False) as counter, torch.no_grad():
            model(_ids(length))
        assert total.kernel_flops == counter.get_total_flops()


@pytest.mark.parametrize("name", VARIANTS)
def test_no_logit_depends_on_later_tokens(name: str) -> None:
    model, tokens = _random(make_variant(**VARIANTS[name])).eval(), _ids(37)
    with torch.no_grad():
        before = model(tokens).logits
        for t in (0, 3, 7, 16, 24, 36):
            changed = tokens.clone()
            changed[0, t] = (changed[0, t] + 1) % 31
            after = model(changed).logits
            assert torch.allclose(before[:, :t], after[:, :t], rtol=0, atol=1e-11)
            assert (before[:, t:] - after[:, t:]).abs().max() > 1e-6


@pytest.mark.parametrize("name", ["mixed", "shared_heads"])
def test_training_lowers_the_loss(name: str) -> None:
    model = build_model(make_variant(**VARIANTS[name]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    tokens, losses = _ids(35, 4), []
    for _ in range(20):
        output = model(tokens[:, :-1], tokens[:, 1:])
        assert output.loss is not None
        (output.loss + sum(value for key, value in output.aux.items() if key.startswith("loss/"))).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.loss.item())
    assert losses[-1] < 0.85 * losses[0]


def test_a_start_is_a_function_of_the_seed() -> None:
    one, two = (build_model(make_variant(compress_ratios=MIXED), seed=4) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_tokens_of_the_schedule_survive() -> None:
    text = "mla,moba@16:k2,nsa@8:k4,gated_deltanet,moba@64"
    variant = make_variant(compress_ratios=text, index_topk=3)
    assert [layer.topk for layer in variant.layers] == [0, 2, 4, 0, 3]
    assert [layer.ratio for layer in variant.layers] == [0, 16, 8, 0, 64]
    assert variant.schedule == "mla,moba@16,nsa@8:k4,gated_deltanet,moba@64:k3"
    assert make_variant(compress_ratios=variant.schedule, index_topk=2).layers == variant.layers
    with pytest.raises(BadInputError, match="'moba' needs a ratio"):
        make_variant(compress_ratios="moba*5")
    with pytest.raises(BadInputError, match="mla does not compress"):
        make_variant(compress_ratios="mla@4*5")


MLA = ["model=micro", "model.compress_ratios=mla*4"]


def test_options_of_an_entry_reach_its_layers_and_the_fingerprint() -> None:
    plain, small = (
        config.load([*MLA, *more], require_sweep=False) for more in ([], ["attention.mla.kv_lora_rank=24"])
    )
    assert small.attention == {"mla": {"kv_lora_rank": 24}}
    assert config.restore(config.snapshot(small)) == small
    one, two = (Variant.from_run(run, 64) for run in (plain, small))
    assert one.diff(two) == {"attention.mla.kv_lora_rank": (0, 24)}
    assert one.fingerprint != two.fingerprint
    assert build_model(two).layers[0].attention.kv_b.shape == (4 * 2 * 16, 24)  # type: ignore[union-attr]
    arm = config.apply_arm(plain, {"attention.mla.kv_lora_rank": 24})
    assert Variant.from_run(arm, 64) == two
    nested = config.apply_arm(plain, {"attention": {"mla": {"kv_lora_rank": 24}}})
    assert nested == arm
    assert dataclasses.replace(arm, attention={}) == plain


def test_options_of_an_entry_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "latents.yaml").write_text(
        "# @package _global_\n"
        "attention: {mla: {kv_lora_rank: 24}}\n"
        "model: {compress_ratios: mla*4}\n"
        "sweep:\n"
        "  question: How small may a latent be?\n"
        "  baseline: base\n"
        "  arms:\n"
        "    base: {}\n"
        "    half: {attention.mla.kv_lora_rank: 12}\n",
        "utf-8",
    )
    run = config.load(["sweep=latents"], [tmp_path])
    assert run.attention["mla"]["kv_lora_rank"] == 24
    half = config.apply_arm(run, run.sweep.arms["half"])
    assert half.attention == {"mla": {"kv_lora_rank": 12}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("attention.mla.kv_lora_rang=3", r"Did you mean 'attention.mla.kv_lora_rank'\?"),
        ("attention.mlb.kv_lora_rank=3", r"no attention named 'mlb'\. Did you mean 'mla'\?"),
        ("attention.mla.kv_lora_rank=many", r"kv_lora_rank=many has the wrong type\. Allowed: an integer"),
        ("attention.nsa.local_blocks=0", r"attention.nsa.local_blocks=0: local_blocks=0 must be at least 1"),
        ("attention=mla", r"attention=mla is no option\. model.compress_ratios says"),
        ("attention.mla=3", r"attention.mla=3 is no option"),
    ],
)
def test_options_that_cannot_be_are_refused(override: str, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        config.load([*MLA, override], require_sweep=False)


def test_options_of_entries_are_offered() -> None:
    assert completion.complete("attention.mla.kv") == ["attention.mla.kv_lora_rank="]
