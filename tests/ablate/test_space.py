"""Spaces of an open search: conditional options, schedules of every family, and mistakes that are named."""

import dataclasses
import itertools
import random
from typing import Any

import pytest

from ablate import config, open_search, pareto, schedule_space, space
from ablate.errors import BadInputError
from ablate.parameters import Parameter, every
from ablate.schedule_space import FAMILIES, Schedules
from ablate.schema import Run
from ablate.tree import apply_arm
from ablate.variant import Variant
from components import registry
from components.spec import search_space

TOKENS = ("swa", "csa@4", "hca@16")
EXHAUSTED = {"constant": 3, "first_k": 3 + 6 * 3, "ramp": 6 + 6}
"""Different schedules of four layers, by hand: k of 1 to 3 of two different tokens; two or three levels in order."""


@pytest.fixture(scope="module")
def base() -> Run:
    return config.load(["sweep=schedule_search"])


def with_space(base: Run, **keys: Any) -> Run:
    given = {key.replace("__", "."): value for key, value in keys.items()}
    return dataclasses.replace(base, sweep=dataclasses.replace(base.sweep, space=given))


def draws(found: space.Space, count: int = 300):
    rng = random.Random(0)
    return [found.draw(lambda parameter: parameter.random(rng)) for _ in range(count)]


def variant(run: Run, draw: space.Draw) -> Variant:
    return Variant.from_run(apply_arm(run, draw.overrides), vocab_size=64)


def test_every_combination_is_drawn_once_and_conditions_hold(base) -> None:
    run = with_space(
        base,
        residual=["prenorm", "mhc"],
        residual__mhc__hc_mult=[2, 4],
        residual__mhc__hc_sinkhorn_iters={"low": 3, "high": 5},
        model__index_topk=[4, 8, 16],
    )
    points = [draw.params for draw in every(space.read(run).draw)]
    expected = [{"residual": "prenorm", "model.index_topk": k} for k in (4, 8, 16)] + [
        {
            "residual": "mhc",
            "residual.mhc.hc_mult": n,
            "residual.mhc.hc_sinkhorn_iters": t,
            "model.index_topk": k,
        }
        for n, t, k in itertools.product((2, 4), (3, 4, 5), (4, 8, 16))
    ]
    assert sorted(map(str, map(sorted, map(dict.items, points)))) == sorted(
        map(str, map(sorted, map(dict.items, expected)))
    )
    assert space.read(run).size() == len(expected) == 21


def test_what_entries_declare_is_searched_with_the_entry_and_only_then(base) -> None:
    run = with_space(base, residual={"choices": "all", "options": "declared"})
    found = space.read(run)
    seen = set()
    for draw in draws(found, 100):
        chosen = draw.params["residual"]
        declared = set(search_space(registry.get("residual", chosen).cls.Config))
        assert set(draw.params) == {"residual", *(f"residual.{chosen}.{name}" for name in declared)}
        _, config_ = variant(run, draw).config("residual")
        assert {name: getattr(config_, name) for name in declared} == {
            name: draw.params[f"residual.{chosen}.{name}"] for name in declared
        }
        seen.add(chosen)
    assert seen == {entry.name for entry in registry.entries("residual")}


def test_options_of_attention_are_drawn_where_a_layer_has_it(base) -> None:
    run = with_space(
        base, model__compress_ratios=["dense*4", "mla*4", "swa*3,mla"], attention__mla__kv_lora_rank=[16, 32]
    )
    for draw in draws(space.read(run), 60):
        has = "mla" in draw.overrides["model.compress_ratios"]
        assert ("attention.mla.kv_lora_rank" in draw.params) == has
        assert ("attention.mla.kv_lora_rank" in draw.overrides) == has


def test_learning_rates_are_no_override(base) -> None:
    run = with_space(base, optimizer__lr={"low": 1e-3, "high": 1e-2, "log": True}, sink=["none", "per_head"])
    for draw in draws(space.read(run), 50):
        assert draw.lr is not None
        assert 1e-3 <= draw.lr <= 1e-2
        assert set(draw.overrides) == {"sink"}
    assert space.read(run).size() is None


@pytest.mark.parametrize("family", FAMILIES)
def test_every_schedule_of_a_family_is_as_long_as_the_model_and_uses_its_tokens(base, family) -> None:
    spec = {"tokens": list(TOKENS), "families": [family]}
    run = with_space(base, model__compress_ratios=spec)
    found = space.read(run)
    allowed = {("sliding_window", 0), ("csa", 4), ("hca", 16)}
    schedules = set()
    for draw in every(found.draw) if family in EXHAUSTED else draws(found, 40):
        layers = variant(run, draw).layers
        assert len(layers) == run.model.num_hidden_layers
        assert {(layer.attention, layer.ratio) for layer in layers} <= allowed
        schedules.add(variant(run, draw).schedule)
    assert len(schedules) == EXHAUSTED[family] if family in EXHAUSTED else len(schedules) > 5


def test_families_mean_what_they_say() -> None:
    made = Schedules(TOKENS, FAMILIES, 6)

    def draw(**params: Any) -> str:
        return made.draw(lambda parameter: params[parameter.name.removeprefix("schedule.").replace(".", "_")])

    assert draw(family="constant", constant_token="swa") == "swa*"
    assert draw(family="alternating", alternating_unit="swa,csa@4") == "(swa,csa@4)*"
    assert draw(family="ramp", ramp_levels="swa,csa@4,hca@16") == "ramp(swa,csa@4,hca@16)*"
    assert draw(family="first_k", first_k_first="swa", first_k_k=2, first_k_then="csa@4") == "swa*2,csa@4*"
    weights = {"composition_swa": 1, "composition_csa@4": 2, "composition_hca@16": 0}
    assert draw(family="composition", composition_placement="front", **weights) == "swa*2,csa@4*4"
    assert draw(family="composition", composition_placement="back", **weights) == "csa@4*4,swa*2"
    nothing = dict.fromkeys(weights, 0)
    told = draw(family="composition", composition_placement="interleave", **nothing)
    assert told == "interleave(swa*2,csa@4*2,hca@16*2)"


def test_different_texts_of_the_same_layers_are_the_same_model(base) -> None:
    texts = ("swa*", "(swa,swa)*", "swa*1,swa*", "swa,swa,swa,swa")
    found = {
        Variant.from_run(apply_arm(base, {schedule_space.KEY: text}), vocab_size=64).fingerprint
        for text in texts
    }
    assert len(found) == 1


def test_integers_are_drawn_uniformly_from_end_to_end() -> None:
    rng, parameter = random.Random(0), Parameter("n", low=1, high=4, integer=True)
    drawn = [parameter.random(rng) for _ in range(4000)]
    assert set(drawn) == set(parameter.values()) == {1, 2, 3, 4}
    assert all(900 < drawn.count(n) < 1100 for n in (1, 2, 3, 4))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "sweep.space is empty"),
        ({"model__index_topkk": [1, 2]}, "Did you mean 'model.index_topk'"),
        ({"model__index_topk": {"low": 8, "high": 4}}, "low below high"),
        ({"model__index_topk": {"low": 1.5, "high": 4}}, "is an integer"),
        ({"model__index_topk": 4}, "is no range"),
        ({"model__index_topk": [4, 4]}, "one of them twice"),
        ({"model__sliding_window": [0, 8]}, "at least 1"),
        ({"optimizer__grad_clip": "declared"}, "no range is declared"),
        ({"residual": ["mhcc"]}, "Did you mean 'mhc'"),
        ({"residual__mhc__hc_mul": [2]}, "Did you mean 'hc_mult'"),
        ({"residual__mhc__hc_mult": [0, 2]}, "hc_mult"),
        ({"trainer__seq_len": [64, 128]}, "no key to search named 'trainer.seq_len'"),
        ({"model__compress_ratios": {"tokens": ["swa"]}}, "no set of layers"),
        ({"model__compress_ratios": {"tokens": ["swa", "cssa@4"]}}, "names no attention"),
        (
            {"model__compress_ratios": {"tokens": ["swa", "csa@4"], "families": ["rmap"]}},
            "Did you mean 'ramp'",
        ),
        (
            {
                "model__compress_ratios": {"tokens": ["swa", "csa@4"], "families": ["first_k"]},
                "model__num_hidden_layers": [2, 4],
            },
            "num_hidden_layers is searched too",
        ),
    ],
)
def test_mistakes_are_named(base, keys, message) -> None:
    with pytest.raises(BadInputError, match=message):
        space.read(with_space(base, **keys))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sweep.search.constraints.kv_bytes=512", "Did you mean 'kv_bytes_per_token'"),
        ("sweep.search.constraints.params=none", "positive number"),
        ("sweep.search.objectives=[params]", "the first is loss"),
        ("sweep.search.objectives=[loss,kv_byte_per_token]", "Did you mean 'kv_bytes_per_token'"),
        ("sweep.search.sampler=tpee", "Allowed: tpe"),
        ("budget.match=tokens", "Allowed: flops"),
        ("sweep.ladder=[['budget.per_trial=1e9']]", "sweep.ladder is not possible"),
    ],
)
def test_settings_that_cannot_be_are_refused(override, message) -> None:
    with pytest.raises(BadInputError, match=message):
        config.load(["sweep=schedule_search", override])


def test_brute_force_needs_what_can_be_counted() -> None:
    overrides = ["sweep=schedule_search", "sweep.search.sampler=brute_force"]
    with pytest.raises(BadInputError, match=r"optimizer\.lr"):
        config.load([*overrides, "sweep.space.optimizer.lr={low: 0.001, high: 0.01}"])
    assert open_search.check(config.load(overrides)).ranges() == []


def test_fronts_by_definition() -> None:
    rng = random.Random(1)
    points = [tuple(rng.randint(0, 5) for _ in range(3)) for _ in range(60)]
    ranks = pareto.ranks(points)
    for i, point in enumerate(points):
        better = [
            ranks[j]
            for j, other in enumerate(points)
            if all(a <= b for a, b in zip(other, point, strict=True)) and other != point
        ]
        assert ranks[i] == (max(better) + 1 if better else 0)
    chosen = pareto.best(points, 10)
    assert [ranks[i] for i in chosen] == sorted(ranks)[:10]
