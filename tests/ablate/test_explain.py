"""What is said of every entry: where it is from, what can be set and means what, what it costs in a model."""

import dataclasses
import json
from typing import Any

import pytest
import torch
from typer.testing import CliRunner
from variants import make_run

from ablate import config, explain, pricing
from ablate.cli import app
from ablate.model import LanguageModel
from ablate.schema import Run, Slot
from ablate.variant import Variant
from components import registry
from components.registry import Entry
from components.slots import Component
from components.spec import search_space

ENTRIES = registry.entries()


def _instances(model: LanguageModel, entry: Entry) -> list[Component]:
    """Those of the slot; an indexer has a compressor of its own, which is part of it."""
    inside = ".indexer." if entry.slot == "compressor" else " "
    return [m for name, m in model.named_modules() if type(m) is entry.cls and inside not in name]


def _own_parameters(instance: Component) -> int:
    """Without those of the parts that it uses."""
    parts = [getattr(instance, slot) for slot in instance.uses]
    used = sum(p.numel() for part in parts for p in part.parameters())
    return sum(p.numel() for p in instance.parameters()) - used


@pytest.mark.parametrize(
    "entry",
    [entry for entry in ENTRIES if entry.slot not in ("optimizer", "mtp", "norm", "probe")],
    ids=lambda entry: f"{entry.slot}/{entry.name}",
)
def test_the_price_is_that_of_the_instances_in_a_model_that_has_the_entry_everywhere(entry: Entry) -> None:
    run = make_run()
    price = pricing.price(entry, run, 24)
    assert price is not None
    with torch.device("meta"):
        model = LanguageModel(Variant.from_run(pricing.with_entry(entry, run, 31)))
    ends = sum(p.numel() for p in model.collapse.parameters()) if entry.slot == "residual" else 0
    instances = _instances(model, entry)
    assert price.instances == len(instances) > 0
    assert price.params == sum(map(_own_parameters, instances)) + ends


def test_prices_of_a_slot_differ_by_what_the_models_differ_by() -> None:
    """Norms inside other parts and the final one included; prediction layers with their blocks."""
    run = make_run()
    for slot, changes in {"norm": {}, "mtp": {"num_nextn_predict_layers": 1}}.items():
        for entry in registry.entries(slot):
            price = pricing.price(entry, run, 24)
            variant = Variant.from_run(make_run(**{slot: Slot(entry.name), **changes}))
            total = variant.costs(24).total
            first = registry.entries(slot)[0]
            against = pricing.price(first, run, 24)
            base = Variant.from_run(make_run(**{slot: Slot(first.name), **changes})).costs(24).total
            assert price is not None
            assert against is not None
            assert price.params - against.params == total.params - base.params
            flops = total.train_flops - base.train_flops
            assert 24 * (price.train_flops_per_token - against.train_flops_per_token) == pytest.approx(flops)


def test_a_model_without_a_place_for_an_entry_has_no_price() -> None:
    windows = make_run(compress_ratios="swa*5")
    assert pricing.price(registry.get("indexer", "lightning"), windows, 24) is None
    dense = make_run(ffn=Slot("swiglu"))
    assert pricing.price(registry.get("router", "learned"), dense, 24) is None


def test_an_optimizers_work_is_spread_over_the_tokens_of_a_step() -> None:
    run = make_run()
    run = dataclasses.replace(run, trainer=dataclasses.replace(run.trainer, seq_len=10, batch_size=3))
    muon = pricing.price(registry.get("optimizer", "muon"), run, 10)
    twice = dataclasses.replace(run, trainer=dataclasses.replace(run.trainer, batch_size=6))
    half = pricing.price(registry.get("optimizer", "muon"), twice, 10)
    assert muon is not None
    assert half is not None
    assert muon.train_flops_per_token == 2 * half.train_flops_per_token > 0


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.slot}/{entry.name}")
def test_every_entry_says_what_it_is_where_it_is_from_and_what_its_options_mean(entry: Entry) -> None:
    assert entry.summary.endswith(".")
    assert len(entry.source) > 10
    options = [field.name for field in dataclasses.fields(entry.cls.Config)]
    assert set(explain.option_texts(entry.cls.Config)) >= set(options)
    assert set(search_space(entry.cls.Config)) <= set(options)


def _shown(*args: str, columns: int = 400) -> str:
    done = CliRunner().invoke(app, args, env={"COLUMNS": str(columns)}, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    return done.stdout


def test_the_list_has_every_entry_with_slot_line_source_and_cost() -> None:
    text = _shown("list", "components")
    lines = text.splitlines()
    places = {entry.slot: lines.index(f" {entry.slot}".ljust(len(lines[0]))) for entry in ENTRIES}
    run = config.load(["model=micro"], require_sweep=False)
    for entry in ENTRIES:
        here = range(places[entry.slot] + 1, len(lines))
        at = next(i for i in here if lines[i].split()[:1] == [entry.name])
        assert entry.summary in lines[at]  # brackets of formulas too
        assert entry.source in lines[at + 1]
        price = pricing.price(entry, run, 256)
        if entry.slot == "probe":  # no part of a model
            assert price is None
            continue
        assert price is not None
        if price.instances:
            assert lines[at].split()[1] == f"{price.params:,}"
    assert "model=micro at 256 tokens" in text
    rows = {f"{row['slot']}/{row['name']}": row for row in json.loads(_shown("list", "components", "--json"))}
    assert set(rows) == {f"{entry.slot}/{entry.name}" for entry in ENTRIES}
    wanted = pricing.price(registry.get("residual", "mhc"), run, 256)
    assert wanted is not None
    assert rows["residual/mhc"]["cost"] == {"model": "micro", "seq_len": 256, **dataclasses.asdict(wanted)}


def test_narrow_terminals_cut_neither_names_nor_numbers() -> None:
    text = _shown("list", "components", "model=v4_mini_3b", columns=80)
    assert "2,477,260,800" in text
    assert "attention_residual" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "softmax([q" in text


def test_another_model_prices_the_list() -> None:
    rows: list[dict[str, Any]] = json.loads(_shown("list", "ffn", "model=v4_mini_3b", "--json"))
    (moe,) = [row["cost"] for row in rows if row["name"] == "moe"]
    # 28 layers of 25 experts, each three matrices of 1536 x 768
    assert moe["params"] == 28 * 25 * 3 * 1536 * 768
    assert moe["active_params"] == 28 * 5 * 3 * 1536 * 768
    refused = CliRunner().invoke(app, ["list", "models", "model=tiny"])
    assert "only matter to costs" in str(refused.exception)


def test_one_entry_is_explained_with_formula_options_defaults_ranges_meaning_and_cost() -> None:
    text = _shown("show", "residual/mhc")
    for words in ("X'_k = post_k F(norm(Σ_j pre_j X_j))", "2512.24880", "Number of residual streams n."):
        assert words in text
    (line,) = [line for line in text.splitlines() if line.split()[:1] == ["hc_sinkhorn_iters"]]
    assert line.split()[:7] == ["hc_sinkhorn_iters", "int", "20", "1", "…", "20", "(log)"]
    assert "model=micro" in text
    assert "model=tiny" in _shown("show", "residual/mhc", "model=tiny")
    assert "[q k^T / sqrt(c), sink]" in _shown("show", "attention/dense")


def test_configurations_of_a_run_are_kept_where_they_are_the_entrys_own() -> None:
    run: Run = make_run(residual=Slot("mhc", {"hc_mult": 2}))
    two, four = (pricing.price(registry.get("residual", "mhc"), r, 24) for r in (run, make_run()))
    assert two is not None
    assert four is not None
    assert two.params < four.params


@pytest.mark.parametrize("columns", [60, 200])
def test_the_picture_has_a_letter_per_layer_in_rows_that_fit_with_hash_marks_below(columns: int) -> None:
    schedule = "swa,dense,csa@4,csa@8,hca@16,hca@112,nsa@16,moba@64,mla,gated_deltanet,csa@4:k7,csa@4:no_overlap,swa*"
    lines = _shown(
        "show", "model=v4_mini_3b", f"model.compress_ratios={schedule}", columns=columns
    ).splitlines()
    legend_at = next(i for i, line in enumerate(lines) if line.startswith("  S sliding_window"))
    strips = [
        line.split()
        for line in lines[:legend_at]
        if line.strip() and all(len(word) == 1 for word in line.split())
    ]
    rows = [letter for strip in strips if not set(strip) & set("#·") for letter in strip]
    marks = [mark for strip in strips if set(strip) & set("#·") for mark in strip]
    assert len(rows) == 28
    assert marks[:3] == ["#", "#", "·"]
    assert len(set(rows[:12])) == 12  # each kind has its own
    assert rows[12:] == [rows[0]] * 16
    legend = {words[0]: words[1].rstrip(":,") for words in map(str.split, lines) if len(words) > 1}
    assert [legend[letter] for letter in rows[:4]] == ["sliding_window", "dense", "csa", "csa"]
    assert legend["#"] == "routed"
