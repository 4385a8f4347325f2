"""The verdicts as an instrument: error rates, power, cost, and effects of factors, by simulation.

`make instrument` prints the figures for many more studies.
"""

import instrument
import judged_studies as studies
import numpy as np
import pytest
from instrument import ALPHA, FIXED, HEAVY, ISSUE, NORMAL, PAIRS, RATIOS, UNEQUAL

from ablate import config, designs, effects, operating, planning, rounds, sequential, verdict
from ablate.home import Home
from ablate.records import Verdict
from ablate.schema import Confirm, Sweep

LOOKS = sequential.LOOKS
DESIGNS = (FIXED, ISSUE, LOOKS)


@pytest.mark.parametrize("looks", DESIGNS)
def test_studies_played_in_arrays_end_as_those_of_the_program(looks: tuple[int, ...]) -> None:
    rng = np.random.default_rng(4)
    losses = HEAVY.losses(rng, 14, 3, PAIRS)
    losses[:, 1:] += rng.choice([0.0, 0.01, -0.06, 0.1], (14, 3, 1))
    d = instrument.differences(losses)
    played = operating.play(d, ALPHA, 0.03, looks)
    claims, ends = instrument.claims(d, played), instrument.intervals(d, played, looks)
    for i, own in enumerate(losses):
        found, trials = instrument.judged(own, looks, 0.03)
        assert [v.kind for v in found] == list(claims[i])
        assert [v.n for v in found] == list(played.pairs[i])
        assert trials == played.trials[i]
        for j, v in enumerate(found):
            assert (v.low, v.high) == pytest.approx(tuple(ends[:, i, j]))
    assert len(set(claims.ravel())) == 4, "every kind of verdict was compared"


# --- equal arms


@pytest.mark.parametrize("looks", DESIGNS)
def test_one_equal_arm_is_told_apart_at_the_error_rate_and_covered_by_its_interval(looks) -> None:
    found = instrument.equal_arms_played(NORMAL, looks, 4000, arms=1)
    assert 0.8 * ALPHA * found.studies <= found.wrong <= found.binomial[1]  # giving up costs a little of it
    assert 0.93 <= found.covered <= 0.97


@pytest.mark.parametrize("noise", [NORMAL, UNEQUAL, HEAVY], ids=lambda noise: noise.name)
@pytest.mark.parametrize("looks", DESIGNS)
def test_equal_arms_are_not_told_apart_more_often_than_the_family_wise_rate(looks, noise) -> None:
    found = instrument.equal_arms_played(noise, looks, 4000)
    assert found.wrong <= found.binomial[1]
    assert 0.93 <= found.covered <= 0.97


@pytest.mark.slow
@pytest.mark.parametrize("looks", DESIGNS)
def test_error_rate_and_coverage_of_a_thousand_studies_by_the_program(looks) -> None:
    found = instrument.equal_arms(UNEQUAL, looks, 1000)
    print(f"looks {looks}: claimed {found.wrong} of 1000 {found.binomial}; coverage {found.covered:.3f}")
    assert found.binomial[0] <= found.wrong <= found.binomial[1]
    assert 0.93 <= found.covered <= 0.97


@pytest.mark.parametrize("steepness", [0.4, 1.0, 2.5])
def test_equal_arms_that_are_tuned_on_one_seed_are_hardly_told_apart_more_often(steepness: float) -> None:
    """By rates that are the best of single trials they would be in every fifth study."""
    found, at_best = (
        instrument.tuned_apart(rule, 300, ratio=0.35, steepness=steepness)
        for rule in (rounds.tuned_rate, rounds.best_rate)
    )
    assert found <= 0.1
    assert found < at_best - 0.03


# --- planted effects


@pytest.mark.parametrize("looks", DESIGNS)
@pytest.mark.parametrize("arms", [1, 3])
def test_the_detectable_effect_is_found_in_four_studies_of_five(looks, arms: int) -> None:
    for ratio in RATIOS:
        assert instrument.found(looks, 4000, arms, ratio) == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("looks", ["[]", "[3,5,8]", "[3,4,5,6,8]"])
def test_the_effect_that_a_plan_prints_is_found_as_often_as_it_says(looks: str, tmp_path) -> None:
    run = config.load(["sweep=smoke", f"sweep.confirm.looks={looks}", "sweep.confirm.replicates=8"])
    plan = planning.make_plan(run, Home.at(str(tmp_path)))
    confirm, contrasts = run.sweep.confirm, len(plan.arms) - 1
    noise = np.random.default_rng(0).normal(0, plan.noise_sd, (4000, contrasts, PAIRS))
    noise[:, 0] += plan.detectable_effect
    played = operating.play(noise, confirm.alpha, confirm.margin, confirm.looks or FIXED)
    assert np.mean(played.decisions[:, 0] == "difference") == pytest.approx(0.8, abs=0.05)


def handicapped(by: float, extensions: int) -> tuple[Verdict, Verdict]:
    """Verdicts on an arm that trains with a share of the rate it is given, and on an equal one; no other noise."""
    names = ("dense", "csa", "hca")
    plan, rows = instrument.plan(FIXED, arms=names, extensions=extensions)

    def loss(arm: str, lr: float) -> float:
        return 3.4 + 0.02 * np.log2(lr * (by if arm == "csa" else 1.0) / studies.RATE) ** 2

    tried = instrument.search(plan, loss)
    templates = {r.spec.arm: r for r in rows if r.spec.phase == "search"}
    searched = tuple(
        studies.change(templates[arm], lr=lr, val_loss=value)
        for arm, own in tried.items()
        for lr, value, _ in own
    )
    rates = {arm: rounds.tuned_rate(own) or 1.0 for arm, own in tried.items()}
    noise = studies.noisy(0, sd=0.003)
    confirmed = tuple(
        studies.change(
            r,
            lr=rates[r.spec.arm],
            val_loss=noise(r.spec) + loss(r.spec.arm, rates[r.spec.arm]) - 3.4,
        )
        for r in rows
        if r.spec.phase == "confirm"
    )
    by_arm = {v.arm: v for v in verdict.verdicts(plan, searched + confirmed)}
    return by_arm["csa"], by_arm["hca"]


def test_a_handicapped_arm_is_at_the_edge_and_not_worse() -> None:
    for by, extensions in ((1 / 4, 0), (1 / 16, 0), (1 / 32, 2)):
        found, equal = handicapped(by, extensions)
        assert studies.blockers(found) == {"LR_EDGE"}
        assert found.kind == "inconclusive"
        assert (equal.kind, studies.blockers(equal)) == ("equivalent", set())
    assert found.low > 0, "its difference alone would have been called one"
    assert found.p_holm < ALPHA


def test_the_search_goes_on_until_a_handicap_of_four_is_tuned_away() -> None:
    found, _ = handicapped(1 / 4, extensions=2)
    assert (found.kind, studies.blockers(found)) == ("equivalent", set())
    assert found.lr == pytest.approx(4 * studies.RATE)


def coverage(design: str, k: int, count: int) -> tuple[dict[str, float], float]:
    """How often intervals cover planted effects, main, interacting and Shapley; and how often a × b is found."""
    factors = {name: {"without": {"x": name}} for name in "abcde"[:k]}
    sweep = Sweep(design=design, factors=factors, resolution=5, confirm=Confirm(margin=0.01))
    named, rng = designs.levels(sweep), np.random.default_rng(5)
    truth = {"a": -0.05, "b": 0.0, "c": 0.0, "a × b": -0.04, "b × c": 0.0}
    covered, recovered = dict.fromkeys([*truth, "Shapley a", "Shapley b", "total"], 0), 0
    for _ in range(count):
        shared = rng.normal(0, 0.05, 6)
        data = {
            arm: dict(
                enumerate(
                    3.4
                    - 0.03 * on[0]
                    + 0.02 * on[1]
                    - 0.04 * (on[0] and on[1])
                    + shared
                    + rng.normal(0, 0.015, 6)
                )
            )
            for arm, on in named.items()
        }
        found = effects.crossed(sweep, data)
        by_name = {e.name: e for e in (*found.mains, *found.interactions)}
        by_name |= {f"Shapley {e.name}": e for e in found.shapley}
        for name, value in {**truth, "Shapley a": -0.05, "Shapley b": 0.0}.items():
            covered[name] += by_name[name].low <= value <= by_name[name].high
        assert found.total is not None
        covered["total"] += found.total[1] <= -0.05 <= found.total[2]
        recovered += by_name["a × b"].kind == "helps"
    return {name: n / count for name, n in covered.items()}, recovered / count


@pytest.mark.slow
@pytest.mark.parametrize(("design", "k"), [("full_factorial", 3), ("fractional_factorial", 5)])
def test_a_planted_interaction_is_covered_over_a_thousand_studies(design: str, k: int) -> None:
    covered, recovered = coverage(design, k, 1000)
    print(design, covered, f"interaction found in {recovered:.1%}")
    assert recovered > 0.9
    assert all(0.93 <= share <= 0.97 for share in covered.values())


# --- racing


def test_looks_reach_the_verdicts_of_the_fixed_design_for_three_fifths() -> None:
    races = {
        (arms, ratio): instrument.race(LOOKS, 1000, arms, ratio) for arms in (1, 3, 7) for ratio in RATIOS
    }
    for (arms, _), found in races.items():
        assert found.opposite <= 0.002 * 1000 * arms
        assert found.same + found.both >= found.again - 0.01, (
            "as often as the fixed design agrees with itself"
        )
    assert np.mean([found.cost for found in races.values()]) <= 0.6
    assert max(found.cost for found in races.values()) <= 0.65


@pytest.mark.slow
def test_five_hundred_races_by_the_program() -> None:
    cost, same = instrument.raced(LOOKS, 500)
    print(f"{cost:.3f} of the confirm trials, same verdict {same:.3f}")
    assert cost <= 0.6
    assert same >= 0.9
