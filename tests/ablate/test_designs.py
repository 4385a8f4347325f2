"""Designs: arms from factors, orthogonality and aliases against the levels themselves, and what is refused."""

import itertools

import numpy as np
import pytest

from ablate import config, designs
from ablate.errors import BadInputError

OFF = {
    "mhc": "{without: {residual: prenorm}}",
    "sink": "{without: {sink: none}}",
    "hash": "{without: {model.num_hash_layers: 0}}",
    "grouped": "{without: {output_projection: dense}}",
    "muon": "{with: {optimizer: muon}, without: {optimizer: adamw}}",
    "moe": "{without: {ffn: swiglu}}",
}


TABLE = [(3, 3, 4, 3), (4, 4, 8, 4), (5, 3, 8, 3), (5, 5, 16, 5), (6, 4, 16, 4), (6, 5, 32, 6)]
TABLE += [(7, 4, 16, 4), (7, 5, 64, 7), (8, 4, 16, 4), (8, 5, 64, 5), (9, 4, 32, 4)]
TABLE += [(10, 5, 128, 5), (11, 5, 128, 5)]


def load(design: str, factors: int = 5, *more: str):
    named = [f"sweep.factors.{name}={OFF[name]}" for name in list(OFF)[:factors]]
    gone = ["~sweep.arms.sliding_window", "~sweep.arms.csa", "sweep.baseline=???"]
    return config.load(["sweep=smoke", *gone, f"sweep.design={design}", *named, *more])


def columns(sweep) -> np.ndarray:
    return 2.0 * np.array(list(designs.levels(sweep).values())) - 1


def test_leaving_out_and_adding_in_change_one_factor_each() -> None:
    out, added = load("leave_one_out").sweep, load("add_one_in").sweep
    assert out.baseline == "full"
    assert out.arms["full"] == {"optimizer": "muon"}
    assert out.arms["no_mhc"] == {"residual": "prenorm", "optimizer": "muon"}
    assert out.arms["no_muon"] == {"optimizer": "adamw"}
    assert added.baseline == "base"
    for i, name in enumerate(out.factors):
        full, base = designs.levels(out)["full"], designs.levels(added)["base"]
        assert [j for j in range(5) if designs.levels(out)[f"no_{name}"][j] != full[j]] == [i]
        assert [j for j in range(5) if designs.levels(added)[name][j] != base[j]] == [i]
    assert added.arms["sink"] == {
        "residual": "prenorm",
        "model.num_hash_layers": 0,
        "output_projection": "dense",
        "optimizer": "adamw",
    }


def test_a_full_factorial_has_every_combination_once() -> None:
    sweep = load("full_factorial", 4).sweep
    assert sorted(designs.levels(sweep).values()) == sorted(itertools.product((False, True), repeat=4))
    assert list(sweep.arms) == list(designs.levels(sweep))
    assert "nothing is aliased" in designs.describe(sweep)


@pytest.mark.parametrize(
    ("k", "wanted", "runs", "reached"),  # the fewest runs that Box, Hunter and Hunter's table lists
    TABLE,
)
def test_fractions_are_as_small_as_known_ones_and_as_clear_as_they_say(
    k: int, wanted: int, runs: int, reached: int
) -> None:
    found = designs.fraction(k, wanted)
    assert (found.runs, found.resolution) == (runs, reached)
    x = 2.0 * np.array(list(found.levels())) - 1
    assert len(np.unique(x, axis=0)) == runs
    assert (x[0] == 1).all()
    products = {
        term: x[:, list(term)].prod(axis=1)
        for size in range(1, reached)
        for term in itertools.combinations(range(k), size)
    }
    for a, b in itertools.combinations(products, 2):
        if len(a) + len(b) < reached:
            assert products[a] @ products[b] == 0, "terms below the resolution are orthogonal"
    words = (
        term
        for term in itertools.combinations(range(k), reached)
        if abs(x[:, list(term)].prod(axis=1).sum()) == runs
    )
    assert next(words, None) is not None, "and the resolution is not higher than said"


def test_aliases_are_the_terms_with_equal_columns() -> None:
    sweep = load("fractional_factorial", 6, "sweep.resolution=4").sweep
    x, told = columns(sweep), designs.aliases(designs.levels(sweep))
    assert sum(1 + len(rest) for rest in told.values()) == 6 + 15
    for first, rest in told.items():
        for other in rest:
            assert (x[:, list(first)].prod(axis=1) == x[:, list(other)].prod(axis=1)).all()
        assert len(first) == 2 or not rest, "main effects are clear"
    text = designs.describe(sweep)
    assert "16 of 64" in text
    assert "resolution IV" in text
    assert text.count(" = ") == 2 + sum(map(len, told.values())), "two generators, and every alias"


def test_levels_of_one_factor() -> None:
    start = ["sweep=smoke", "~sweep.arms.sliding_window", "~sweep.arms.csa", "sweep.baseline=???"]
    run = config.load([*start, "sweep.design=one_factor", "sweep.factors.model.index_topk=[4,8]"])
    assert run.sweep.arms == {
        "index_topk_4": {"model.index_topk": 4},
        "index_topk_8": {"model.index_topk": 8},
    }
    assert run.sweep.baseline == "index_topk_4"
    with pytest.raises(BadInputError, match=r"model\.index_topk has 1 level"):
        config.load([*start, "sweep.design=one_factor", "sweep.factors.model.index_topk=[4]"])


def test_arms_can_be_named_beside_a_design_and_a_snapshot_keeps_all() -> None:
    run = load("leave_one_out", 2, "sweep.arms.rezero={residual: rezero}")
    assert list(run.sweep.arms) == ["full", "no_mhc", "no_sink", "rezero"]
    assert config.restore(config.snapshot(run)) == run


@pytest.mark.parametrize(
    ("design", "more", "words"),
    [
        (
            "full_factorial",
            ["sweep.factors.x={without: {residual: rezero}}"],
            ["mhc", "x", "residual", "crossed"],
        ),
        ("leave_one_out", ["sweep.factors.x={}"], ["sweep.factors.x", "two levels"]),
        ("leave_one_out", ["sweep.factors.x={without: {data.seed: 1}}"], ["no_x", "data.seed"]),
        ("leave_one_out", ["sweep.factors.base={without: {sink: none}}"], ["base", "another"]),
        ("leave_one_out", ["sweep.arms.no_mhc={residual: rezero}"], ["no_mhc", "another name"]),
        ("leave_one_out", ["~sweep.factors.mch"], ["mch", "mhc"]),
        ("one_factor", [], ["5 factors", "1"]),
        ("arms", [], ["no effect", "leave_one_out"]),
        ("latin_square", [], ["latin_square", "full_factorial"]),
    ],
)
def test_what_makes_no_design_is_refused(design: str, more: list[str], words: list[str]) -> None:
    with pytest.raises(BadInputError) as caught:
        load(design, 5, *more)
    for word in words:
        assert word in str(caught.value)
