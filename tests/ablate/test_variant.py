"""Variants: what they keep, refuse, warn about and cost; published parameter counts without a tensor."""

import dataclasses
from typing import Any

import pytest
from variants import make_run, make_variant

from ablate.errors import BadInputError
from ablate.schema import Run, Slot
from ablate.variant import Variant

MINI = {
    "vocab_size": 129280,
    "hidden_size": 1536,
    "num_hidden_layers": 28,
    "num_attention_heads": 24,
    "head_dim": 64,
    "qk_rope_head_dim": 32,
    "q_lora_rank": 512,
    "o_groups": 4,
    "o_lora_rank": 512,
    "sliding_window": 64,
    "compress_ratios": "swa*2,(csa@4,hca@112)*12,csa@4,swa",
    "index_n_heads": 16,
    "index_head_dim": 96,
    "index_topk": 192,
    "moe_intermediate_size": 768,
    "n_routed_experts": 24,
    "num_experts_per_tok": 4,
    "num_hash_layers": 2,
    "max_position_embeddings": 1048576,
}
FLASH = {
    **MINI,
    "hidden_size": 4096,
    "num_hidden_layers": 43,
    "num_attention_heads": 64,
    "head_dim": 512,
    "qk_rope_head_dim": 64,
    "q_lora_rank": 1024,
    "o_groups": 8,
    "o_lora_rank": 1024,
    "sliding_window": 128,
    "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0],
    "num_nextn_predict_layers": 1,
    "index_n_heads": 64,
    "index_head_dim": 128,
    "index_topk": 512,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "num_experts_per_tok": 6,
    "num_hash_layers": 3,
}
PRO = {
    **FLASH,
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "o_groups": 16,
    "compress_ratios": [128, 128, *[4, 128] * 29, 4, 0],
    "index_topk": 1024,
    "moe_intermediate_size": 3072,
    "n_routed_experts": 384,
}


@pytest.mark.parametrize(
    ("sizes", "total", "active"),
    [
        (MINI, 3_066_509_741, 1_084_701_101),
        (FLASH, 284_332_230_231, 13_799_622_231),
        (PRO, 1_572_997_179_491, 49_779_058_787),
    ],
    ids=["mini", "flash", "pro"],
)
def test_published_parameter_counts(sizes: dict[str, Any], total: int, active: int) -> None:
    cost = make_variant(**sizes).costs(4096).backbone
    assert (cost.params, cost.active_params) == (total, active)


def test_published_parameter_counts_with_a_prediction_layer() -> None:
    mini, flash, pro = (
        make_variant(**sizes | {"num_nextn_predict_layers": 1}).costs(4096) for sizes in (MINI, FLASH, PRO)
    )
    assert mini.backbone == make_variant(**MINI).costs(4096).total
    assert (mini.total.params, mini.total.active_params) == (3_165_669_952, 1_113_082_432)
    assert flash.prediction.params == 6_610_048_635
    assert pro.prediction.params == 25_840_145_595


def test_mini_breakdown_and_flops() -> None:
    variant = make_variant(**MINI)
    assert variant.schedule == MINI["compress_ratios"]
    rows = {label: (count, cost) for label, count, cost in variant.costs(4096).rows}
    assert rows["embedding"][1].params == rows["head"][1].params == 198_574_080
    assert rows["router/learned"][0] + rows["router/hash"][0] == 28
    assert rows["residual/mhc"][0] == 56
    assert round(rows["residual/mhc"][1].params / 1e6 + rows["collapse"][1].params / 1e6, 2) == 8.28
    total = variant.costs(4096).total
    assert total.forward_flops / 4096 == pytest.approx(1.823e9, abs=5e5)
    assert total.detached_flops / 4096 == pytest.approx(36.4e6, abs=5e4)
    assert total.train_flops == 3 * total.forward_flops - total.detached_flops
    untrained = make_variant(**MINI, indexer=Slot("lightning", {"train": "none"})).costs(4096).total
    assert untrained.forward_flops == total.forward_flops
    assert untrained.frozen_flops / 4096 == pytest.approx((36.4 + 20.4) * 1e6, abs=1e5)


def test_table_adds_up_and_labels_are_unique() -> None:
    table = make_variant().costs(24)
    labels = [label for label, _, _ in table.rows]
    assert len(labels) == len(set(labels))
    assert sum(cost.params for _, _, cost in table.rows) == table.total.params


def test_equal_models_are_equal_whatever_their_spelling() -> None:
    text = make_variant(compress_ratios="swa,csa@4,hca@8,swa", num_hidden_layers=4)
    listed = make_variant(compress_ratios=["swa", 4, 8, 0], num_hidden_layers=4)
    assert text == listed
    assert hash(text) == hash(listed)
    assert text.fingerprint == listed.fingerprint
    assert len(text.fingerprint) == 16
    named = make_run(compress_ratios="swa,csa@4,hca@8,swa", num_hidden_layers=4, name="another")
    assert Variant.from_run(named).fingerprint == text.fingerprint


def test_options_of_unused_components_do_not_count() -> None:
    run = make_run(compress_ratios="swa*2", num_hidden_layers=2)
    other = dataclasses.replace(run, model=dataclasses.replace(run.model, index_topk=99))
    assert Variant.from_run(run) == Variant.from_run(other)
    other = dataclasses.replace(run, mtp=Slot("v3"))
    assert Variant.from_run(run) == Variant.from_run(other)
    assert {"indexer", "mtp"}.isdisjoint(slot for slot, _, _ in Variant.from_run(run).slots)


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": 48},
        {"compress_ratios": "swa,csa@4:k2,hca@8,csa@4,swa"},
        {"compress_ratios": "swa,csa@4:no_overlap,hca@8,csa@4,swa"},
        {"num_hash_layers": 0},
        {"index_topk": 5},
        {"rms_norm_eps": 1e-5},
        {"num_nextn_predict_layers": 1},
        {"indexer": Slot("lightning", {"train": "none"})},
    ],
)
def test_everything_that_decides_the_model_changes_the_fingerprint(change: dict[str, Any]) -> None:
    assert make_variant(**change).fingerprint != make_variant().fingerprint
    assert make_variant().diff(make_variant(**change))


def test_diff_names_keys() -> None:
    here, there = make_variant(), make_variant(residual=Slot("prenorm"), hidden_size=48)
    difference = here.diff(there)
    assert difference["dims.hidden_size"] == (32, 48)
    assert difference["residual.mhc.hc_mult"] == (4, None)
    assert here.diff(here) == {}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"hidden_size": 0}, "model.hidden_size=0"),
        ({"n_shared_experts": -1}, "model.n_shared_experts=-1"),
        ({"vocab_size": 0}, "model.vocab_size=0"),
        ({"num_hash_layers": 9}, "model.num_hash_layers=9 is more than model.num_hidden_layers=5"),
        ({"compress_ratios": "swa*4"}, "has 4 entries, expected 5"),
        ({"residual": Slot("mch")}, "Did you mean 'mhc'"),
        ({"residual": Slot("mhc", {"hc_mul": 2})}, "Did you mean 'hc_mult'"),
        ({"residual": Slot("mhc", {"hc_mult": 0})}, "hc_mult=0"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(BadInputError) as caught:
        make_variant(**change)
    assert said in str(caught.value)


def test_check_knows_the_sequence() -> None:
    variant = make_variant(compress_ratios="swa*4,hca@16")
    variant.check(16)
    with pytest.raises(BadInputError, match=r"model.compress_ratios=swa\*4,hca@16: layer 4 .*seq_len=15"):
        variant.check(15)
    with pytest.raises(BadInputError, match=r"num_nextn_predict_layers=2 .*seq_len=2"):
        make_variant(compress_ratios="swa*5", num_nextn_predict_layers=2).check(2)
    with pytest.raises(BadInputError, match="num_experts_per_tok=9"):
        make_variant(num_experts_per_tok=9).check(32)


def test_warnings_say_where() -> None:
    texts = make_variant(num_experts_per_tok=4).warnings(32)
    assert any("router" in text and "layers 1-4" in text for text in texts)


def test_vocabulary_of_the_tokenizer_and_description() -> None:
    run: Run = make_run(vocab_size=0)
    variant = Variant.from_run(run, 77)
    assert variant.dims.vocab_size == 77
    assert variant.dims.num_key_value_heads == variant.dims.num_attention_heads
    assert "5 layers of width 32" in variant.describe()
