"""Rounds of learning rates: equal for all arms, outward at an edge, ended where no optimum is at one."""

import math
from collections import Counter

import pytest
import small_studies
from hypothesis import given
from hypothesis import strategies as st

from ablate import rounds

GRID = [3e-3 * 2.0**i for i in range(-2, 3)]


def tried(optimum: float, rates=GRID) -> list[rounds.Tried]:
    return [(lr, 3 + math.log2(lr / optimum) ** 2, "complete") for lr in rates]


@pytest.mark.parametrize(
    ("optimum", "expected"),
    [
        (1e-5, GRID[0] / 2),  # at the lower edge: outward
        (1.0, GRID[-1] * 2),  # at the upper edge: outward
        (3.1e-3, 3e-3 * math.sqrt(2)),  # inside: towards the better neighbour
        (2.9e-3, 3e-3 / math.sqrt(2)),
    ],
)
def test_next_rate(optimum, expected):
    assert rounds.next_rate(tried(optimum), 2.0) == pytest.approx(expected, rel=1e-5)


def test_a_divergence_above_the_best_makes_it_interior():
    history = [(lr, 3.0 - i, "complete") for i, lr in enumerate(GRID[:4])] + [(GRID[4], 7.6, "diverged")]
    assert not rounds.at_edge(history)
    assert rounds.best_rate(history) == GRID[3]
    assert rounds.next_rate(history, 2.0) == pytest.approx(GRID[3] / math.sqrt(2), rel=1e-5)


def test_a_diverged_rate_is_never_the_best_and_failures_have_no_say():
    history = [(1e-3, 7.6, "diverged"), (2e-3, None, "failed")]
    assert rounds.best_rate(history) is None
    assert rounds.next_rate(history, 2.0) == pytest.approx(5e-4)
    assert rounds.next_rate([(1e-3, None, "failed")], 2.0) == pytest.approx(5e-4)


def test_arms_are_confirmed_at_the_optimum_and_not_at_the_luckiest_trial():
    lucky = [(lr, loss - 1.03 * (lr == GRID[3]), state) for lr, loss, state in tried(3e-3)]
    assert rounds.best_rate(lucky) == GRID[3]
    assert rounds.tuned_rate(lucky) == pytest.approx(3e-3, rel=0.35)
    assert rounds.tuned_rate(tried(3.4e-3)) == pytest.approx(3.4e-3, rel=0.02)


def test_without_an_optimum_inside_arms_are_confirmed_at_the_best_rate_tried():
    assert rounds.tuned_rate(tried(1.0)) == GRID[4], "the best is at the edge"
    bent = [(lr, loss, "complete") for lr, loss in zip(GRID, (3.0, 3.4, 2.9, 3.4, 3.0), strict=True)]
    assert rounds.quadratic(bent) is None, "not convex"
    assert rounds.tuned_rate(bent) == GRID[2]
    assert rounds.tuned_rate([(1e-3, 7.6, "diverged")]) is None


@given(st.floats(1e-5, 1), st.sampled_from([0.0, 0.005, 0.02]))
def test_the_rate_used_is_within_a_factor_of_two_of_the_best_and_inside_what_was_tried(optimum, noise):
    wild = [(lr, loss + noise * (-1) ** i, state) for i, (lr, loss, state) in enumerate(tried(optimum))]
    best, used = rounds.best_rate(wild), rounds.tuned_rate(wild)
    assert best is not None
    assert used is not None
    assert best / 2.1 <= used <= best * 2.1
    assert min(GRID) * 0.95 <= used <= max(GRID) * 1.05


@given(st.floats(1e-6, 10), st.integers(1, 6), st.sampled_from([1.5, 2.0, 4.0]))
def test_every_further_rate_is_new(optimum, more, factor):
    rates = list(GRID)
    for _ in range(more):
        rates.append(rounds.next_rate(tried(optimum, rates), factor))
    assert all(abs(math.log(a / b)) > 0.005 for i, a in enumerate(rates) for b in rates[:i])


def results(plan, optima: dict[str, float]) -> tuple[rounds.Rounds, dict[str, rounds.Tried]]:
    """Play a search to its end."""
    seen: dict[str, rounds.Tried] = {}
    while True:
        state = rounds.search(plan, seen)
        new = [slot for slot in state.slots if slot.key not in seen]
        if not new:
            return state, seen
        per_arm = Counter(slot.arm for slot in new)
        assert len(set(per_arm.values())) == 1, "every arm has the same share of a round"
        for i in range(len(new)):
            so_far = Counter(slot.arm for slot in new[: i + 1])
            assert max(so_far.values()) - min(so_far[arm.name] for arm in plan.arms) <= 1
        seen |= {slot.key: (*tried(optima[slot.arm], [slot.lr])[0],) for slot in new}


def test_search_stops_when_no_arm_is_at_an_edge():
    plan = small_studies.plan(extensions=3)
    state, seen = results(plan, {"dense": 3e-3, "csa": 3.5e-3})
    assert state.finished
    assert len(seen) == 2 * 5
    assert "inside" in state.reason


def test_one_arm_at_an_edge_gives_every_arm_one_more_point_per_round():
    plan = small_studies.plan(extensions=3)
    state, seen = results(plan, {"dense": 3e-3, "csa": 0.03})
    assert state.finished
    assert Counter(slot.arm for slot in state.slots) == {"dense": 7, "csa": 7}
    csa = sorted(seen[slot.key][0] for slot in state.slots if slot.arm == "csa")
    assert csa[-2:] == pytest.approx([0.024, 0.048])
    assert not rounds.at_edge([seen[s.key] for s in state.slots if s.arm == "csa"])


def test_extensions_are_bounded():
    plan = small_studies.plan(extensions=2)
    state, seen = results(plan, {"dense": 3e-3, "csa": 100.0})
    assert state.finished
    assert len(seen) == 2 * 7
    assert "used up" in state.reason


def test_confirm_keeps_the_arms_of_a_seed_together():
    plan = small_studies.plan(replicates=3)
    slots = rounds.confirm(plan, {"dense": 3e-3, "csa": 6e-3}, {})
    assert [(s.replicate, s.arm) for s in slots] == [(i, arm) for i in range(3) for arm in ("dense", "csa")]
    assert {s.seed for s in slots} == set(plan.confirm_seeds)
    assert plan.search_seed not in {s.seed for s in slots}
