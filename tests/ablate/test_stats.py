"""Statistics against SciPy, statsmodels, exact enumeration and simulation."""

import itertools
import math
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, permutation_test
from scipy.stats import t as student
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import DescrStatsW, ttost_paired

from ablate import stats

MARGIN = 0.01
losses = st.floats(1.0, 6.0).map(lambda v: round(v, 6))
pairs = st.lists(st.tuples(losses, losses), min_size=2, max_size=9)


def noisy(n: int, seed: int = 0, effect: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    common = rng.normal(3.4, 0.02, n)
    return common + effect + rng.normal(0, 0.01, n), common + rng.normal(0, 0.01, n)


@pytest.mark.parametrize("n", [2, 3, 6, 12, 40])
def test_contrast_agrees_with_statsmodels(n: int) -> None:
    a, b = noisy(n, seed=n, effect=-0.006)
    found = stats.contrast(a, b, MARGIN)
    other = DescrStatsW(a - b)
    assert (found.low, found.high) == pytest.approx(other.tconfint_mean(0.05))
    assert found.p_t == pytest.approx(other.ttest_mean(0)[1])
    assert found.sd == pytest.approx(np.sqrt(other.var * n / (n - 1)))
    p_tost, _, (_, p_upper, _) = ttost_paired(a, b, -MARGIN, MARGIN)
    assert found.p_tost == pytest.approx(p_tost)
    assert found.p_noninferior == pytest.approx(p_upper)


def test_confidence_widens_the_interval() -> None:
    a, b = noisy(6)
    wide, narrow = stats.contrast(a, b, MARGIN, 0.99), stats.contrast(a, b, MARGIN, 0.9)
    assert wide.low < narrow.low < narrow.delta < narrow.high < wide.high
    assert (wide.low, wide.high) == pytest.approx(DescrStatsW(a - b).tconfint_mean(0.01))


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_sign_flip_is_the_share_of_all_patterns(n: int) -> None:
    a, b = noisy(n, seed=7 * n, effect=0.007)
    d = a - b
    patterns = [
        abs(sum(s * x for s, x in zip(signs, d, strict=True)))
        for signs in itertools.product((1, -1), repeat=n)
    ]
    expected = sum(p >= abs(d.sum()) - 1e-12 for p in patterns) / len(patterns)
    assert stats.contrast(a, b, MARGIN).p_flip == pytest.approx(expected)


def test_sign_flip_counts_ties() -> None:
    a, b = np.array([3.1, 3.3, 3.2, 3.4]), np.array([3.0, 3.2, 3.1, 3.5])
    d = np.round(a - b, 1)
    means = [abs(np.mean(s * d)) for s in itertools.product((1, -1), repeat=4)]
    assert stats.contrast(a, b, MARGIN).p_flip == np.mean(np.array(means) >= abs(d.mean()) - 1e-9)


def test_sign_flip_of_many_pairs_is_random_but_repeatable_and_near_the_exact_one() -> None:
    a, b = noisy(17, seed=3, effect=0.004)
    exact = permutation_test(
        (a - b,), np.mean, permutation_type="samples", n_resamples=2**17, vectorized=False
    )
    found = stats.contrast(a, b, MARGIN).p_flip
    assert found == stats.contrast(a, b, MARGIN).p_flip
    assert found == pytest.approx(exact.pvalue, abs=0.006)


@given(pairs)
def test_contrast_properties(values: list[tuple[float, float]]) -> None:
    a, b = np.array([v[0] for v in values]), np.array([v[1] for v in values])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, mirrored = stats.contrast(a, b, MARGIN), stats.contrast(b, a, MARGIN)
    assert found.low <= found.delta <= found.high
    assert mirrored.delta == pytest.approx(-found.delta)
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))
    for name in ("p_t", "p_flip", "p_tost"):
        assert getattr(mirrored, name) == pytest.approx(getattr(found, name), abs=1e-9)
        assert 0 <= getattr(found, name) <= 1
    assert found.p_flip >= 2 / 2 ** len(values)
    assert -1 - 1e-9 <= found.rho <= 1 + 1e-9
    common = np.linspace(0, 0.5, len(values))
    shifted = stats.contrast(a + common, b + common, MARGIN)
    assert (shifted.delta, shifted.sd) == pytest.approx((found.delta, found.sd), abs=1e-9)
    order = np.random.default_rng(0).permutation(len(values))
    shuffled = stats.contrast(a[order], b[order], MARGIN)
    assert (shuffled.p_t, shuffled.p_flip) == pytest.approx((found.p_t, found.p_flip), abs=1e-9)


def test_one_pair_says_nothing() -> None:
    found = stats.contrast([3.0], [3.5], MARGIN)
    assert found.delta == -0.5
    assert (found.low, found.high, found.sd) == (-math.inf, math.inf, math.inf)
    assert {found.p_t, found.p_flip, found.p_tost, found.p_noninferior} == {1.0}


def test_equal_differences_are_certain() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same = stats.contrast([3.0, 3.1, 3.2], [3.0, 3.1, 3.2], MARGIN)
        close = stats.contrast([3.005, 3.105, 3.205], [3.0, 3.1, 3.2], MARGIN)
        worse = stats.contrast([3.1, 3.2, 3.3], [3.0, 3.1, 3.2], MARGIN)
    assert (same.low, same.high, same.sd, same.p_t, same.p_flip, same.p_tost) == (0, 0, 0, 1, 1, 0)
    assert close.low == close.high == pytest.approx(0.005)
    assert (close.p_t, close.p_tost, close.p_noninferior) == (0, 0, 0)
    assert (worse.p_t, worse.p_tost, worse.p_noninferior) == (0, 1, 1)


@pytest.mark.parametrize(("a", "b"), [([], []), ([1.0, 2.0], [1.0])])
def test_contrast_wants_pairs(a: list[float], b: list[float]) -> None:
    with pytest.raises(ValueError, match="pairs"):
        stats.contrast(a, b, MARGIN)


@pytest.mark.parametrize("n", [3, 6, 20])
@pytest.mark.parametrize("alpha", [0.05, 0.01])
def test_power_agrees_with_statsmodels(n: int, alpha: float) -> None:
    for effect in (0.1, 0.5, 1.0, 1.5):
        assert stats.power(effect, n, alpha) == pytest.approx(
            TTestPower().power(effect, n, alpha), abs=1e-9
        ), effect


@pytest.mark.parametrize("n", [2, 3, 5, 8, 16, 500])
def test_power_never_breaks_and_never_falls(n: int) -> None:
    for alpha in (0.2, 0.05, 0.0125, 1e-4):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            values = [stats.power(e, n, alpha) for e in (0, *np.geomspace(1e-3, 1e8, 80))]
        assert values[0] == pytest.approx(alpha)
        assert all(b >= a - 1e-9 for a, b in itertools.pairwise(values))
        assert 0.9 < values[-1] <= 1


@pytest.mark.parametrize("n", [2, 3, 6, 50])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 9])
def test_mde_is_found_with_the_power_asked_for(n: int, alpha: float) -> None:
    for chance in (0.5, 0.8, 0.95):
        assert stats.power(stats.mde(n, alpha, chance), n, alpha) == pytest.approx(chance, abs=1e-6)
    assert stats.mde(n, alpha) > stats.mde(n + 1, alpha)


def test_mde_of_one_pair_is_infinite() -> None:
    assert stats.mde(1, 0.05, 0.8) == math.inf


def test_planted_effect_is_found_as_often_as_planned() -> None:
    n, studies = 6, 4000
    d = np.random.default_rng(5).normal(stats.mde(n, 0.05, 0.8), 1, (studies, n))
    t = np.abs(d.mean(1)) / d.std(1, ddof=1) * math.sqrt(n)
    p = [stats.contrast(row, np.zeros(n), 0.5).p_t for row in d[:200]]
    assert p == pytest.approx(2 * student.sf(t[:200], n - 1))
    assert np.mean(2 * student.sf(t, n - 1) < 0.05) == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("effect", [0.3, 0.5, 1.0, 2.0, 5.0])
def test_seeds_needed_are_the_fewest(effect: float) -> None:
    n = stats.seeds_needed(effect, 0.05, 0.8)
    assert n is not None
    assert stats.power(effect, n, 0.05) >= 0.8
    assert n == 2 or stats.power(effect, n - 1, 0.05) < 0.8


def test_seeds_needed_may_be_too_many() -> None:
    assert stats.seeds_needed(1e-6, 0.05) is None


@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_holm_is_closed_testing_with_bonferroni(p: list[float]) -> None:
    adjusted = stats.holm(p)
    for i in range(len(p)):
        families = [
            family
            for size in range(1, len(p) + 1)
            for family in itertools.combinations(range(len(p)), size)
            if i in family
        ]
        closed = max(min(1.0, len(f) * min(p[j] for j in f)) for f in families)
        assert adjusted[i] == pytest.approx(closed)
        assert adjusted[i] >= p[i] - 1e-12


def test_holm_agrees_with_statsmodels() -> None:
    p = np.random.default_rng(1).uniform(0, 0.2, 12)
    assert stats.holm(list(p)) == pytest.approx(multipletests(p, method="holm")[1])
    assert stats.holm([]) == []


@given(st.floats(-12, -6), st.floats(0.01, 0.5), st.floats(1, 5), st.integers(3, 7))
def test_quadratic_optimum_is_exact_on_a_parabola(x0: float, a: float, y0: float, n: int) -> None:
    x = -9 + np.arange(n) - n // 2
    found = stats.quadratic_optimum(x, y0 + a * (x - x0) ** 2)
    assert found is not None
    assert (found.x, found.value, found.curvature) == pytest.approx((x0, y0, 2 * a), rel=1e-5)
    assert (found.standard_error is None) == (n == 3)


def test_quadratic_optimum_needs_a_bowl() -> None:
    x = [0.0, 1.0, 2.0, 3.0]
    assert stats.quadratic_optimum(x, [1.0, 2.0, 3.0, 4.0]) is None
    assert stats.quadratic_optimum(x, [2.0, 2.0, 2.0, 2.0]) is None
    assert stats.quadratic_optimum(x, [1.0, 2.0, 2.0, 1.0]) is None
    assert stats.quadratic_optimum(x[:2], [1.0, 2.0]) is None
    assert stats.quadratic_optimum([], []) is None
    assert stats.quadratic_optimum([1.0, 1.0, 2.0], [1.0, 2.0, 3.0]) is None


def test_standard_error_of_the_optimum_is_what_repetition_shows() -> None:
    rng = np.random.default_rng(2)
    x = np.arange(-4.0, 5.0)
    fits = [stats.quadratic_optimum(x, 0.02 * x**2 + rng.normal(0, 0.01, x.size)) for _ in range(400)]
    vertices = np.array([f.x for f in fits if f])
    squares = [f.standard_error**2 for f in fits if f and f.standard_error]
    assert len(vertices) == len(squares) == 400
    assert math.sqrt(np.mean(squares)) == pytest.approx(vertices.std(), rel=0.1)


@pytest.mark.parametrize(("k", "n"), [(0, 6), (1, 6), (3, 8), (8, 8)])
def test_proportion_interval_is_clopper_pearson(k: int, n: int) -> None:
    low, high = stats.proportion_interval(k, n)
    assert low == pytest.approx(beta.ppf(0.025, k, n - k + 1) if k else 0.0)
    assert high == pytest.approx(beta.ppf(0.975, k + 1, n - k) if k < n else 1.0)


@pytest.mark.parametrize("n", [3, 6])
def test_equal_rates_are_rarely_told_apart(n: int) -> None:
    table = {(i, j): stats.rates_differ(i, n, j, n) for i in range(n + 1) for j in range(n + 1)}
    assert table[0, 0] == table[n, n] == 1.0
    assert table[n, 0] == pytest.approx(table[0, n])
    assert table[n, 0] < 0.05
    for rate in (0.1, 0.3, 0.5):
        chance = [math.comb(n, i) * rate**i * (1 - rate) ** (n - i) for i in range(n + 1)]
        assert sum(chance[i] * chance[j] for (i, j), p in table.items() if p < 0.1) <= 0.1
