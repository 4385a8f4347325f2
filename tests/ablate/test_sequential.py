"""Group-sequential confirmation: levels of the looks, and what they decide."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import binom
from scipy.stats import t as student

from ablate import operating, sequential, stats
from ablate.sequential import LOOKS, Decision, over_looks

ALPHA, MARGIN = 0.05, 0.01


def play(d: np.ndarray, margin: float = MARGIN) -> tuple[Decision, int]:
    """Decision on one arm and pairs used, look by look."""
    seen: dict[str, list[stats.Contrast]] = {"a": []}
    for n in LOOKS:
        seen["a"].append(stats.contrast(d[:n], np.zeros(n), margin))
        decision = sequential.decide(seen, ALPHA, margin)["a"]
        if decision != "continue":
            return decision, n
    raise AssertionError("the last look decides")


def decisions(studies: np.ndarray, margin: float = MARGIN) -> np.ndarray:
    """Of many studies, [studies, arms, pairs]; test_instrument shows that they are those of the program."""
    return operating.play(studies, ALPHA, margin, LOOKS).decisions


def test_levels_grow_with_the_rate_and_share_it() -> None:
    assert sum(sequential.weights(LOOKS)) == pytest.approx(1)
    assert sequential.weights((3, 5, 8)) == pytest.approx([9 / 64, 16 / 64, 39 / 64])
    for low, high in itertools.pairwise((1e-5, 9e-4, 1.1e-3, 0.01, 0.05, 0.2)):
        assert all(a < b for a, b in zip(sequential.levels(low), sequential.levels(high), strict=True))
    assert sum(sequential.levels(1e-4)) == pytest.approx(1e-4), "what is too rare for the draws is added up"
    assert 0.05 < sum(sequential.levels(0.05)) < 0.1, "looks that agree leave more for each"
    assert sequential.levels(ALPHA, (8,)) == pytest.approx((ALPHA,))


@pytest.mark.parametrize("alpha", [0.05, 0.01, 0.002])
def test_two_looks_at_equal_arms_err_at_the_rate_by_integration(alpha: float) -> None:
    """Sum over root of sum of squares, c, is a Markov chain: c' = (c + r) / sqrt(1 + r²), r = t(n) / sqrt(n)."""
    low, high = sequential.levels(alpha, (3, 4))

    def edge(level: float, n: int) -> float:
        x = float(student.isf(level / 2, n - 1)) ** 2
        return np.sqrt(n * x / (n - 1 + x))

    first, second = edge(low, 3), edge(high, 4)

    def kept(t: float) -> float:
        """Chance of the second look not to reject, when the first had this t."""
        c = t * np.sqrt(3 / (2 + t * t))
        # |c'| < second between the roots of (c + r)² = second² (1 + r²), which opens upward or downward
        roots = np.sort(np.roots([1 - second**2, 2 * c, c * c - second**2]).real)
        inside = float(student.cdf(roots[1] * 3**0.5, 3) - student.cdf(roots[0] * 3**0.5, 3))
        return 1 - inside if second > 1 else inside

    bound = float(student.isf(low / 2, 2))
    assert first < 3**0.5
    assert second < 2
    found, _ = quad(lambda t: kept(t) * float(student.pdf(t, 2)), -bound, bound, limit=400)
    assert 1 - found == pytest.approx(alpha, rel=0.05)


@given(st.lists(st.floats(1e-9, 1), min_size=1, max_size=5), st.floats(0.001, 0.2))
def test_one_p_value_rejects_when_a_look_does(p: list[float], alpha: float) -> None:
    whole = sequential.over_looks(p)
    if abs(whole - alpha) < 1e-6 * alpha or whole == pytest.approx(1e-3):  # where draws and sums meet
        return
    crossed = any(value < level for value, level in zip(p, sequential.levels(alpha), strict=False))
    assert (whole < alpha) == crossed


def test_without_giving_up_equal_arms_are_told_apart_at_exactly_the_error_rate(monkeypatch) -> None:
    monkeypatch.setattr(sequential, "FUTILITY", 0.0)
    d = np.random.default_rng(9).normal(0, 0.02, (20_000, 1, 8))
    wrong = int((decisions(d) == "difference").sum())
    assert binom.ppf(0.005, 20_000, ALPHA) <= wrong <= binom.ppf(0.995, 20_000, ALPHA)


def test_a_difference_at_the_margin_is_rarely_called_equivalent() -> None:
    d = np.random.default_rng(10).normal(MARGIN, 0.004, (4000, 1, 8))
    assert (decisions(d) == "equivalent").sum() <= binom.ppf(0.995, 4000, ALPHA)


def test_giving_up_costs_little_power(monkeypatch) -> None:
    d = np.random.default_rng(12).normal(stats.mde(8, ALPHA), 1, (4000, 1, 8))
    with_it = np.mean(decisions(d, 0.5) == "difference")
    monkeypatch.setattr(sequential, "FUTILITY", 0.0)
    assert with_it >= np.mean(decisions(d, 0.5) == "difference") - 0.06


def test_a_small_difference_that_can_still_be_found_is_not_ended_as_equivalent() -> None:
    close = np.array([-0.0010, -0.0014, -0.0006, -0.0012, -0.0009, -0.0011, -0.0010, -0.0008])
    assert over_looks([stats.contrast(close[:3], np.zeros(3), MARGIN).p_tost]) < ALPHA
    assert play(close)[0] == "difference"


def test_noise_too_small_to_matter_is_not_given_up() -> None:
    d = np.array([0.002, -0.001, 0.0005, -0.002, 0.001, 0.0, -0.001, 0.002])
    assert play(d)[0] == "equivalent"


def test_no_trend_ends_at_the_first_look() -> None:
    assert play(np.array([0.02, -0.03, 0.012, 0.0, 0.0, 0.0, 0.0, 0.0])) == ("futile", 3)
