"""Effects of a design's factors: main effects, interactions and Shapley values, each with an interval.

One additive fit, loss = arm + seed, gives the mean of every arm with its covariance; every effect is a linear
contrast of these means, so its error is what arms of one seed scatter by and no model of the factors enters
it. Methodology §C1. Leaving out and adding in compare two arms each: there the verdicts are the effects.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ablate import designs, stats
from ablate.caveats import loss
from ablate.records import Effect, Effects, Plan, TrialRow, Verdict, VerdictKind
from ablate.schema import Sweep

Losses = Mapping[str, Mapping[int, float]]
"""Arm to seed to loss."""

EXACT = 5
"""Most factors of a full factorial whose Shapley values are listed."""

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Fit:
    """Means of arms, seeds taken out, and how they covary. `df` is 0 where nothing tells the noise."""

    arms: tuple[str, ...]
    means: NDArray[np.float64]
    covariance: NDArray[np.float64]
    df: int

    def estimate(self, weights: NDArray[np.float64]) -> tuple[float, float]:
        """A contrast and its standard error."""
        variance = float(weights @ self.covariance @ weights)
        return float(weights @ self.means), math.sqrt(max(variance, 0.0)) if self.df else math.inf


def fit(losses: Losses) -> Fit:
    """Least squares of `loss = arm + seed`; seeds are blocks, and need not be complete."""
    arms = tuple(losses)
    seeds = sorted({seed for own in losses.values() for seed in own})
    rows, y = [], []
    for i, arm in enumerate(arms):
        for seed, value in losses[arm].items():
            row = np.zeros(len(arms) + len(seeds) - 1)
            row[i] = 1.0
            block = seeds.index(seed)
            row[len(arms) :] = -1.0 if block == len(seeds) - 1 else np.eye(len(seeds) - 1)[block]
            rows.append(row)
            y.append(value)
    design, observed = np.array(rows), np.array(y)
    inverse = np.linalg.pinv(design.T @ design)
    solved = inverse @ design.T @ observed
    df = len(observed) - int(np.linalg.matrix_rank(design))
    residual = observed - design @ solved
    variance = float(residual @ residual) / df if df else 0.0
    k = len(arms)
    return Fit(arms, solved[:k], variance * inverse[:k, :k], df)


def weights(named: designs.Levels) -> dict[tuple[int, ...], NDArray[np.float64]]:
    """Weights of the arms in each main effect and two-way interaction, by the factors' indices.

    A main effect is the mean over the other factors of loss(on) - loss(off). An interaction is by how much
    the effect of one changes when the other is switched on. Both are the coefficients of the regression on
    levels of 0 and 1 around the middle of the design. Of aliased terms only the first has weights.
    """
    signs = 2.0 * np.array(list(named.values())) - 1.0
    kept = list(designs.aliases(named))
    matrix = np.column_stack([np.ones(len(signs)), *(signs[:, list(term)].prod(axis=1) for term in kept)])
    rows = np.linalg.pinv(matrix)[1:]
    return {term: 2.0 ** len(term) * row for term, row in zip(kept, rows, strict=True)}


def shapley_weights(named: designs.Levels) -> NDArray[np.float64]:
    """Weights of the arms, all combinations of the factors, in each factor's Shapley value; one row each."""
    cells = list(named.values())
    k = len(cells[0])
    made = np.zeros((k, len(cells)))
    for column, on in enumerate(cells):
        size = sum(on)
        for i in range(k):
            others = size - on[i]
            weight = math.factorial(others) * math.factorial(k - others - 1) / math.factorial(k)
            made[i, column] = weight if on[i] else -weight
    return made


def effects(plan: Plan, rows: Sequence[TrialRow], verdicts: Sequence[Verdict]) -> Effects | None:
    """What the design says so far; None where it has no factors, or no verdict yet."""
    sweep = plan.run.sweep
    named = designs.levels(sweep)
    if not named or not verdicts:
        return None
    if sweep.design not in designs.CROSSED:
        return _one_by_one(plan, verdicts)
    losses: dict[str, dict[int, float]] = {arm: {} for arm in named}
    for row in rows:
        value = loss(row)
        if row.spec.phase == "confirm" and row.spec.arm in losses and value is not None:
            losses[row.spec.arm][row.spec.replicate] = value
    missing = [arm for arm, own in losses.items() if not own]
    if missing:
        text = f"no effects can be estimated without a loss of {', '.join(missing)}"
        return Effects(design=designs.describe(sweep), basis="", mains=(), doubts=(text,))
    return crossed(sweep, losses, _doubts(verdicts, set(named)))


def detectable(sweep: Sweep, sd: float) -> float | None:
    """Main effect that a crossed design finds with 80 % power at Holm's strictest step; None for others.

    Args:
        sd: standard deviation of paired differences of two arms.
    """
    from scipy.optimize import brentq
    from scipy.stats import nct, t

    if sweep.design not in designs.CROSSED:
        return None
    arms, seeds = len(designs.levels(sweep)), sweep.confirm.seeds
    df = (arms - 1) * (seeds - 1)
    critical = float(t.isf(sweep.confirm.alpha / len(sweep.factors) / 2, df))
    shift = brentq(lambda s: nct.sf(critical, df, s) + nct.sf(critical, df, -s) - 0.8, 0.0, 40.0)
    return float(shift) * sd * math.sqrt(2 / (arms * seeds))  # type: ignore[arg-type]


def crossed(sweep: Sweep, losses: Losses, doubts: tuple[str, ...] = ()) -> Effects:
    """Effects of a factorial design, whole or a fraction, from the losses of all of its arms."""
    factors, named = list(sweep.factors), designs.levels(sweep)
    fitted = fit({arm: losses[arm] for arm in named})
    terms, same = weights(named), designs.aliases(named)
    alpha, margin = sweep.confirm.alpha, sweep.confirm.margin

    def family(chosen: list[tuple[int, ...]]) -> tuple[Effect, ...]:
        found = [_test(fitted, terms[term]) for term in chosen]
        adjusted = stats.holm([p for *_, p in found]) if found else []
        return tuple(
            Effect(
                name=designs.term_name(term, factors),
                aliases=tuple(designs.term_name(other, factors) for other in same[term]),
                estimate=value,
                low=low,
                high=high,
                p=p,
                p_holm=p_holm,
                kind="inconclusive" if doubts else _kind(fitted, terms[term], p_holm, alpha, margin),
            )
            for term, (value, low, high, p), p_holm in zip(chosen, found, adjusted, strict=True)
        )

    shares = _shapley(sweep.design, designs.resolution(sweep), named, terms)
    total = None
    if len(shares):
        value, low, high, _ = _test(fitted, np.sum(list(shares), axis=0))
        total = (value, low, high)
    seeds = len({seed for own in losses.values() for seed in own})
    return Effects(
        design=designs.describe(sweep),
        basis=(
            "mean over the levels of all other factors; "
            f"{CONFIDENCE:.0%} intervals from {len(named)} arms on {seeds} seeds as blocks ({fitted.df} degrees "
            "of freedom)"
        ),
        mains=family([term for term in terms if len(term) == 1]),
        interactions=family([term for term in terms if len(term) == 2]),
        shapley=tuple(
            Effect(
                name=name,
                aliases=(),
                estimate=value,
                low=low,
                high=high,
                p=p,
                p_holm=1.0,
                kind="inconclusive",
            )
            for name, share in zip(factors, shares, strict=False)
            for value, low, high, p in [_test(fitted, share)]
        ),
        total=total,
        doubts=doubts,
    )


def _shapley(
    design: str,
    resolution: int | None,
    named: designs.Levels,
    terms: Mapping[tuple[int, ...], NDArray[np.float64]],
) -> Sequence[NDArray[np.float64]]:
    """Weights of every factor's Shapley value: exact, or by regression from a fraction of resolution V.

    Without interactions of three factors or more, a Shapley value is b_i + ½ Σ_j b_ij in levels of 0 and 1,
    which is the main effect.
    """
    k = len(next(iter(named.values())))
    if len(named) == 2**k:
        return list(shapley_weights(named)) if k <= EXACT else []
    if resolution is not None and resolution >= 5:
        return [terms[(i,)] for i in range(k)]
    return []


def _test(fitted: Fit, contrast: NDArray[np.float64]) -> tuple[float, float, float, float]:
    """Estimate, t-interval and two-sided p of a contrast of arms."""
    from scipy.stats import t

    value, error = fitted.estimate(contrast)
    if not math.isfinite(error):
        return value, -math.inf, math.inf, 1.0
    half = float(t.ppf(0.5 + CONFIDENCE / 2, fitted.df)) * error
    if error == 0:
        return value, value, value, float(math.isclose(value, 0, abs_tol=1e-12))
    return value, value - half, value + half, float(2 * t.sf(abs(value) / error, fitted.df))


def _kind(
    fitted: Fit, contrast: NDArray[np.float64], p_holm: float, alpha: float, margin: float
) -> VerdictKind:
    from scipy.stats import t

    value, error = fitted.estimate(contrast)
    if p_holm < alpha:
        return "helps" if value < 0 else "hurts"
    within = 0 < error < math.inf and float(t.sf((margin - abs(value)) / error, fitted.df)) < alpha
    return "equivalent" if within else "inconclusive"


def _one_by_one(plan: Plan, verdicts: Sequence[Verdict]) -> Effects | None:
    """Effects of leaving out or adding in: the verdicts, seen from the factor."""
    sweep = plan.run.sweep
    named = designs.levels(sweep)
    out = sweep.design == "leave_one_out"
    reference = designs.FULL if out else designs.BASE
    if plan.baseline.name != reference:
        return None
    swapped: dict[VerdictKind, VerdictKind] = {"helps": "hurts", "hurts": "helps"}
    found = {verdict.arm: verdict for verdict in verdicts}
    mains = []
    for arm, on in named.items():
        if arm not in found:
            continue
        verdict = found[arm]
        factor = list(sweep.factors)[on.index(not out)]
        low, high = (-verdict.high, -verdict.low) if out else (verdict.low, verdict.high)
        mains.append(
            Effect(
                name=factor,
                aliases=(),
                estimate=-verdict.delta if out else verdict.delta,
                low=low,
                high=high,
                p=verdict.p_t,
                p_holm=verdict.p_holm,
                kind=swapped.get(verdict.kind, verdict.kind) if out else verdict.kind,
            )
        )
    state = "on" if out else "off"
    return Effects(
        design=designs.describe(sweep),
        basis=f"with all other factors {state}; intervals are those of the verdicts",
        mains=tuple(mains),
        doubts=_doubts(verdicts, set(named)),
    )


def _doubts(verdicts: Sequence[Verdict], arms: set[str]) -> tuple[str, ...]:
    """Texts of everything that blocks a verdict on one of these arms: effects rest on all of them."""
    found = [
        caveat.text
        for verdict in verdicts
        if verdict.arm in arms
        for caveat in verdict.caveats
        if caveat.blocks
    ]
    return tuple(dict.fromkeys(found))
