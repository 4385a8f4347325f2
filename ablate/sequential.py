"""Group-sequential confirmation: look after a few pairs of seeds, and stop arms that are decided.

Pure functions; methodology §C3. The error rate is split over the looks as O'Brien and Fleming's boundaries
spend it (Lan and DeMets), and each look tests at its own share. That holds the rate whatever joins the looks,
where boundaries of jointly normal statistics exceed it with t-tests of so few pairs (0.054 instead of 0.05).
The price, at the effect that the fixed design finds with a power of 0.80, is a power of 0.75.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Literal

from ablate import stats
from ablate.stats import Contrast

LOOKS = (3, 5, 8)
"""Pairs at which arms are looked at."""

FUTILITY = 0.05
"""Chance of a difference at the last look, if the present trend is true, below which an arm is given up."""

_MONOTONE = 0.2
"""Error rates up to which every look's share grows with the rate; larger ones are not used."""

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
        if p <= levels(1e-12, looks)[i]:
            return 1e-12
        root = brentq(
            lambda log, i=i, p=p: levels(math.exp(log), looks)[i] - p, math.log(1e-12), math.log(_MONOTONE)
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
