"""Group-sequential confirmation: error rates, agreement with the fixed design, and what it saves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm

from ablate import sequential, stats
from ablate.sequential import LOOKS, Decision

ALPHA, MARGIN = 0.05, 0.01


def play(
    differences: dict[str, np.ndarray], margin: float = MARGIN, futility: float = sequential.FUTILITY
) -> dict[str, tuple[Decision, int]]:
    """Decision and pairs used by arm, when arms that are decided get no further pairs."""
    seen: dict[str, list[stats.Contrast]] = {name: [] for name in differences}
    ended: dict[str, tuple[Decision, int]] = {}
    for n in LOOKS:
        for name, d in differences.items():
            if name not in ended:
                seen[name].append(stats.contrast(d[:n], np.zeros(n), margin))
        for name, decision in sequential.decide(seen, ALPHA, margin, futility=futility).items():
            if name not in ended and decision != "continue":
                ended[name] = decision, n
    return ended


def test_shares_of_the_error_rate() -> None:
    shares = sequential.levels(ALPHA)
    assert sum(shares) == pytest.approx(ALPHA)
    assert list(shares) == sorted(shares)
    assert sequential.spent(ALPHA, 1.0) == pytest.approx(ALPHA)
    # the first look of O'Brien and Fleming is crossed by |Z| > z(alpha/2) / sqrt(share)
    assert norm.isf(shares[0] / 2) == pytest.approx(norm.isf(ALPHA / 2) / np.sqrt(3 / 8))
    assert sequential.levels(ALPHA, (8,)) == pytest.approx((ALPHA,))


@given(st.lists(st.floats(1e-9, 1), min_size=1, max_size=3), st.floats(0.001, 0.2))
def test_one_p_value_rejects_when_a_look_does(p: list[float], alpha: float) -> None:
    whole = sequential.over_looks(p)
    if abs(whole - alpha) < 1e-6 * alpha:
        return
    crossed = any(value < level for value, level in zip(p, sequential.levels(alpha), strict=False))
    assert (whole < alpha) == crossed


def test_equal_arms_are_rarely_told_apart_over_all_looks_and_arms() -> None:
    rng, studies, wrong = np.random.default_rng(8), 150, 0
    for _ in range(studies):
        shared = rng.normal(0, 0.02, 8)  # noise of the baseline is in every contrast
        arms = {name: shared + rng.normal(0, 0.02, 8) for name in "abc"}
        wrong += any(d == "difference" for d, _ in play(arms, futility=0.0).values())
    assert wrong <= binom.ppf(0.995, studies, ALPHA)


def test_a_single_contrast_uses_most_of_its_error_rate() -> None:
    rng, studies = np.random.default_rng(9), 500
    wrong = sum(
        play({"a": rng.normal(0, 0.02, 8)}, futility=0.0)["a"][0] == "difference" for _ in range(studies)
    )
    assert 0.6 * ALPHA * studies <= wrong <= binom.ppf(0.995, studies, ALPHA)


def test_a_difference_at_the_margin_is_rarely_called_equivalent() -> None:
    rng, studies = np.random.default_rng(10), 150
    found = [play({"a": rng.normal(MARGIN, 0.004, 8)})["a"][0] for _ in range(studies)]
    assert found.count("equivalent") <= binom.ppf(0.995, studies, ALPHA)


@pytest.mark.parametrize(("effect", "sd", "saved"), [(0.0, 0.02, 0.2), (0.06, 0.02, 0.25), (0.0, 0.004, 0.2)])
def test_decisions_are_those_of_the_fixed_design_for_less(effect: float, sd: float, saved: float) -> None:
    rng, studies, same, used = np.random.default_rng(11), 150, 0, 0
    for _ in range(studies):
        d = rng.normal(effect, sd, 8)
        whole = stats.contrast(d, np.zeros(8), MARGIN)
        fixed = "difference" if whole.p_t < ALPHA else "equivalent" if whole.p_tost < ALPHA else "nothing"
        decision, n = play({"a": d})["a"]
        same += fixed == ("nothing" if decision in ("futile", "open") else decision)
        used += n
    assert same / studies >= 0.9
    assert used <= (1 - saved) * 8 * studies


def test_giving_up_costs_little_power() -> None:
    rng, studies = np.random.default_rng(12), 250
    effect = 0.02 * stats.mde(8, ALPHA)
    data = [rng.normal(effect, 0.02, 8) for _ in range(studies)]
    found = {
        f: np.mean([play({"a": d}, futility=f)["a"][0] == "difference" for d in data]) for f in (0.0, 0.05)
    }
    assert found[0.0] == pytest.approx(0.75, abs=0.07)
    assert found[0.05] >= found[0.0] - 0.05


def test_noise_too_small_to_matter_is_not_given_up() -> None:
    d = np.array([0.002, -0.001, 0.0005, -0.002, 0.001, 0.0, -0.001, 0.002])
    assert play({"a": d})["a"][0] == "equivalent"
