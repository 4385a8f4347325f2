"""Group-sequential confirmation: look after a few pairs of seeds, and stop arms that are decided.

Pure functions; methodology §C3. The error rate is split over the looks as O'Brien and Fleming's boundaries
spend it (Lan and DeMets), and each look tests at its own share. That holds the rate whatever joins the looks,
where boundaries of jointly normal statistics exceed it with t-tests of so few pairs (0.054 instead of 0.05).
The price, at the effect that the fixed design finds with a power of 0.80, is a power of 0.75.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from ablate import stats
from ablate.stats import Contrast

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LOOKS = (3, 5, 8)
"""Pairs at which arms are looked at."""

FUTILITY = 0.05
"""Chance of a difference at the last look, if the present trend is true, below which an arm is given up."""

_MONOTONE = 0.2
"""Error rates up to which every look's share grows with the rate; larger ones are not used."""

_STUDIES = 1000
"""Studies that an expected cost is the mean of."""

_LEAST = 1e-12
"""Lowest error rate that is told apart from zero."""

Decision = Literal["difference", "equivalent", "futile", "continue", "open"]
"""`open` is the last look's: nothing was established."""


def spent(alpha: float, share: float) -> float:
    """Error rate that may be used up when that share of the pairs has been seen."""
    from scipy.special import ndtr, ndtri

    return float(2 * ndtr(ndtri(alpha / 2) / math.sqrt(share)))


def levels(alpha: float, looks: Sequence[int] = LOOKS) -> tuple[float, ...]:
    """What each look tests at; together they are `alpha`."""
    totals = [0.0, *(spent(alpha, n / looks[-1]) for n in looks)]
    return tuple(after - before for before, after in itertools.pairwise(totals))


def over_looks(pvalues: Sequence[float], looks: Sequence[int] = LOOKS) -> float:
    """Smallest error rate at which one of the looks so far rejects; 1 if it would have to be above 0.2.

    A p-value of the whole sequence, which Holm's procedure takes like any other.
    """
    from scipy.optimize import brentq

    best = 1.0
    for i, p in enumerate(pvalues):
        if p >= levels(_MONOTONE, looks)[i]:
            continue
        if p <= levels(_LEAST, looks)[i]:
            return _LEAST
        root = brentq(
            lambda log, i=i, p=p: levels(math.exp(log), looks)[i] - p, math.log(_LEAST), math.log(_MONOTONE)
        )
        best = min(best, math.exp(float(root)))  # type: ignore[arg-type]
    return best


def decide(
    seen: Mapping[str, Sequence[Contrast]],
    alpha: float,
    margin: float,
    looks: Sequence[int] = LOOKS,
    futility: float = FUTILITY,
) -> dict[str, Decision]:
    """What is to become of every arm after the looks that it has had.

    Args:
        seen: contrasts with the baseline at the looks so far, by arm; all arms of the sweep, also those that
            have stopped.
        alpha: family-wise error rate over arms and looks. Giving up costs nothing of it.
    """
    differs = stats.holm([over_looks([c.p_t for c in past], looks) for past in seen.values()])
    decisions: dict[str, Decision] = {}
    for (name, past), p in zip(seen.items(), differs, strict=True):
        if p < alpha:
            decisions[name] = "difference"
        elif over_looks([c.p_tost for c in past], looks) < alpha:
            decisions[name] = "equivalent"
        elif len(past) == len(looks):
            decisions[name] = "open"
        elif past and _hopeless(past[-1], alpha / len(seen), margin, looks, futility):
            decisions[name] = "futile"
        else:
            decisions[name] = "continue"
    return decisions


def _hopeless(now: Contrast, alpha: float, margin: float, looks: Sequence[int], futility: float) -> bool:
    """Whether the last look will hardly find a difference or equivalence, if the estimates are true."""
    from scipy.stats import t

    level = levels(alpha, looks)[-1]
    last = looks[-1]
    half = float(t.isf(level, last - 1)) * now.sd / math.sqrt(last)
    return _chance(now, level, last) < futility and abs(now.delta) + half >= margin


def _chance(now: Contrast, level: float, last: int) -> float:
    """Conditional power under the present trend, of a difference in its direction, with normal increments."""
    from scipy.stats import norm

    share = now.n / last
    z = float(norm.isf(now.p_t / 2))
    drift = z / math.sqrt(share)  # expected at the last look
    return float(norm.sf((norm.isf(level / 2) - drift) / math.sqrt(1 - share)))


def whole(past: Sequence[Contrast], confidence: float, looks: Sequence[int] = LOOKS) -> Contrast:
    """The last look's contrast, with p-values and interval that hold for all looks together.

    The interval is what the repeated intervals of the looks have in common, each at the confidence that its
    look's share of the error rate leaves: it excludes zero exactly where a look rejected. Where they have
    nothing in common it is the last one.
    """
    from scipy.stats import t

    last = past[-1]
    ends = []
    for c, share in zip(past, levels(1 - confidence, looks), strict=False):
        half = math.inf if c.n < 2 else float(t.isf(share / 2, c.n - 1)) * c.sd / math.sqrt(c.n)
        ends.append((c.delta - half, c.delta + half))
    low, high = max(low for low, _ in ends), min(high for _, high in ends)
    low, high = (low, high) if low <= high else ends[-1]
    return dataclasses.replace(
        last,
        low=low,
        high=high,
        p_t=over_looks([c.p_t for c in past], looks),
        p_flip=over_looks([c.p_flip for c in past], looks),
        p_tost=over_looks([c.p_tost for c in past], looks),
        p_noninferior=over_looks([c.p_noninferior for c in past], looks),
    )


def detectable(alpha: float, looks: Sequence[int] = LOOKS) -> float:
    """Effect in SD of paired differences that the last look alone finds with 80 % power."""
    return stats.mde(looks[-1], levels(alpha, looks)[-1])


def expected_trials(
    effect: float, sd: float, arms: int, alpha: float, margin: float, looks: Sequence[int] = LOOKS
) -> float:
    """Confirm trials to be expected, those of the baseline included, where all arms differ from it by `effect`.

    Simulated with normal noise that each trial has for itself.
    """
    import numpy as np
    from scipy.stats import norm, t

    noise = np.random.default_rng(0).normal(0, sd / math.sqrt(2), (_STUDIES, arms + 1, looks[-1]))
    d = noise[:, 1:] - noise[:, :1] + effect
    live, used = np.ones((_STUDIES, arms), dtype=bool), np.zeros((_STUDIES, arms + 1))
    steps = [levels(alpha / (arms - i), looks) for i in range(arms)]
    crossed = np.zeros((arms, _STUDIES, arms), dtype=bool)
    last = looks[-1]
    for i, n in enumerate(looks):
        used[:, 1:][live] = n
        used[live.any(axis=1), 0] = n
        mean, error = d[:, :, :n].mean(axis=2), d[:, :, :n].std(axis=2, ddof=1) / math.sqrt(n)
        p = 2 * t.sf(np.abs(mean) / error, n - 1)
        stop = t.sf((margin - np.abs(mean)) / error, n - 1) < levels(alpha, looks)[i]
        if n < last:
            drift = norm.isf(p / 2) / math.sqrt(n / last)
            chance = norm.sf((norm.isf(steps[0][-1] / 2) - drift) / math.sqrt(1 - n / last))
            half = t.isf(steps[0][-1], last - 1) * error * math.sqrt(n / last)
            stop |= (chance < FUTILITY) & (np.abs(mean) + half >= margin)
        for step, own in zip(crossed, steps, strict=True):
            step |= live & (p < own[i])
        live &= ~(stop | _step_down(crossed))
    return float(used.sum(axis=1).mean())


def _step_down(crossed: "NDArray[np.bool_]") -> "NDArray[np.bool_]":
    """Arms that Holm's procedure rejects, by what crosses the boundary of each of its steps."""
    import numpy as np

    rejected, going = np.zeros_like(crossed[0]), np.ones(len(crossed[0]), dtype=bool)
    for step, at in enumerate(crossed):
        going &= at.sum(axis=1) > step
        rejected |= at & going[:, None]
    return rejected
