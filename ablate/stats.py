"""Statistics of verdicts: paired contrasts, power, multiplicity, and the optimum of a learning-rate curve.

Methodology §C. Losses are nats per token, and negative differences are improvements.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

ENUMERATED = 16
"""Most pairs for which every pattern of signs is tried."""

RESAMPLES = 99_999
"""Random patterns of signs for more pairs than that."""

_CERTAIN = 1e5
"""Largest noncentrality that power is computed for: SciPy's series ends near it, and power is 1 before."""


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A paired difference `a - b`.

    What one pair cannot tell is infinite: `sd` and the interval; every p is then 1. Where all differences are
    equal the interval is that one point, and each p is 0 or 1, the limit of vanishing noise.

    Attributes:
        low, high: t-interval of the mean difference at the asked confidence.
        sd: standard deviation of the differences.
        rho: correlation of the two arms over seeds; 0 below three pairs or where an arm does not vary.
        p_t: paired t, two-sided.
        p_flip: sign-flip permutation, two-sided; exact up to 16 pairs.
        p_tost: difference not within the margin, the larger of two one-sided t.
        p_noninferior: `a` worse than `b` by the margin or more, one-sided t.
    """

    n: int
    delta: float
    low: float
    high: float
    sd: float
    rho: float
    p_t: float
    p_flip: float
    p_tost: float
    p_noninferior: float


def contrast(a: ArrayLike, b: ArrayLike, margin: float, confidence: float = 0.95) -> Contrast:
    """Compare losses of the same seeds, in the same order.

    Args:
        margin: nats within which a difference does not matter.

    Raises:
        ValueError: no pairs, or not as many of one as of the other.
    """
    from scipy import stats

    x, y = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if x.shape != y.shape or x.ndim != 1 or not x.size:
        raise ValueError(f"pairs needed, got {x.size} and {y.size} losses")
    d = x - y
    n, delta = d.size, float(d.mean())
    if n == 1:
        return Contrast(
            n=1,
            delta=delta,
            low=-math.inf,
            high=math.inf,
            sd=math.inf,
            rho=0.0,
            p_t=1.0,
            p_flip=1.0,
            p_tost=1.0,
            p_noninferior=1.0,
        )
    sd = float(d.std(ddof=1))
    if sd <= 1e-12 * max(np.abs(x).max(), np.abs(y).max()):  # rounding of equal differences
        sd, half = 0.0, 0.0
        p_t = float(math.isclose(delta, 0, abs_tol=1e-12))
        p_better, p_worse = float(delta >= margin), float(delta <= -margin)
    else:
        half = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * sd / math.sqrt(n)
        p_t = float(stats.ttest_rel(x, y).pvalue)
        below: Any = stats.ttest_1samp(d, margin, alternative="less")
        above: Any = stats.ttest_1samp(d, -margin, alternative="greater")
        p_better, p_worse = float(below.pvalue), float(above.pvalue)
    return Contrast(
        n=n,
        delta=delta,
        low=delta - half,
        high=delta + half,
        sd=sd,
        rho=_correlation(x, y),
        p_t=p_t,
        p_flip=_sign_flip(d),
        p_tost=max(p_better, p_worse),
        p_noninferior=p_better,
    )


def _correlation(x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    if x.size < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def _sign_flip(d: NDArray[np.float64]) -> float:
    """Share of sign patterns whose mean is at least as far from zero as the one observed."""
    n = d.size
    if n > ENUMERATED:
        from scipy.stats import permutation_test

        found = permutation_test(
            (d,),
            lambda x, axis: x.mean(axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=RESAMPLES // 10,
            rng=np.random.default_rng(0),
        )
        return float(found.pvalue)
    patterns = np.arange(2 ** (n - 1))  # the other half mirrors these, so the last sign stays
    signs = 1 - 2 * ((patterns[:, None] >> np.arange(n)) & 1)
    slack = 1e-9 * np.abs(d).sum()
    return float(np.mean(np.abs(signs @ d) >= abs(d.sum()) - slack))


def power(effect: float, n: int, alpha: float) -> float:
    """Chance that a two-sided paired t-test finds an effect.

    Args:
        effect: true mean difference in standard deviations of paired differences.
        n: pairs, at least 2.
    """
    from scipy import stats

    critical = stats.t.ppf(1 - alpha / 2, n - 1)
    shift = min(abs(effect) * math.sqrt(n), _CERTAIN)
    found = stats.nct.sf(critical, n - 1, shift)
    if shift < 40:  # else the far tail is zero; it is mirrored because `nct.cdf` of it is NaN at some shifts
        found += stats.nct.sf(critical, n - 1, -shift)
    return float(found)


@functools.cache
def mde(n: int, alpha: float, chance: float = 0.8) -> float:
    """Minimal detectable effect: what `n` pairs find with that power, in SD of paired differences.

    Infinite for fewer than two pairs.
    """
    from scipy.optimize import brentq

    if n < 2:
        return math.inf

    def missing(effect: float) -> float:
        return power(effect, n, alpha) - chance

    high = 1.0
    while missing(high) < 0:
        high *= 2
    root: Any = brentq(missing, 0.0, high, xtol=1e-9) if missing(0.0) < 0 else 0.0
    return float(root)


def seeds_needed(effect_over_sd: float, alpha: float, chance: float = 0.8, most: int = 10_000) -> int | None:
    """Fewest pairs that find an effect with that power; None where even `most` do not."""
    low, high = 1, 2
    while power(effect_over_sd, high, alpha) < chance:
        if high >= most:
            return None
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(effect_over_sd, middle, alpha) >= chance else (middle, high)
    return high


def holm(pvalues: Sequence[float]) -> list[float]:
    """P-values adjusted by Holm's step-down procedure, in the order given.

    Not by `statsmodels`, whose `multipletests` collects the garbage of the whole process on every call.
    """
    p = np.asarray(pvalues, dtype=float)
    order = np.argsort(p)
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(p.size, 0, -1)))
    return [float(value) for value in adjusted]


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """Vertex of a convex quadratic.

    Attributes:
        x: where it is, and `standard_error` of that by the delta method, None without spare points.
        curvature: second derivative.
    """

    x: float
    value: float
    curvature: float
    standard_error: float | None


def quadratic_optimum(x: ArrayLike, y: ArrayLike) -> Optimum | None:
    """Least-squares quadratic through at least three points; None where it is not convex."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if np.unique(x).size < 3:
        return None
    centre = x.mean()
    design = np.vander(x - centre, 3)
    coefficients, *_ = np.linalg.lstsq(design, y, rcond=None)
    a, b, c = (float(v) for v in coefficients)
    if a * np.ptp(x) ** 2 <= 1e-12 * np.abs(y).max():  # flat up to rounding
        return None
    vertex = -b / (2 * a)
    error = None
    if (spare := x.size - 3) > 0:
        residual = y - design @ coefficients
        covariance = float(residual @ residual) / spare * np.linalg.inv(design.T @ design)
        gradient = np.array([b / (2 * a * a), -1 / (2 * a), 0.0])
        error = math.sqrt(float(gradient @ covariance @ gradient))
    return Optimum(x=float(centre) + vertex, value=c - b * b / (4 * a), curvature=2 * a, standard_error=error)


def proportion_interval(count: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper–Pearson interval of a rate."""
    from scipy.stats import binomtest

    interval = binomtest(count, n).proportion_ci(confidence, method="exact")
    return float(interval.low), float(interval.high)


def rates_differ(count_a: int, n_a: int, count_b: int, n_b: int) -> float:
    """P-value of two equal rates, by Boschloo's exact test: at few trials Fisher's is too blunt."""
    from scipy.stats import boschloo_exact

    table = [[count_a, count_b], [n_a - count_a, n_b - count_b]]
    if count_a + count_b in (0, n_a + n_b):
        return 1.0
    return float(boschloo_exact(table).pvalue)
