"""Group-sequential confirmation: look after a few pairs of seeds, and stop arms that are decided.

Pure functions; methodology §C3. Every look tests at a level of its own. The levels are in the ratio in which
the squared share of the pairs grows (Kim and DeMets 1987, power family with exponent 2): early enough that an
arm which clearly differs costs few pairs, late enough that the last look keeps most of the power. Their common
factor is the one with which all looks together err at the asked rate: t statistics of equal arms at nested
looks have a joint distribution that does not depend on the noise, so it is simulated once for the numbers of
pairs at hand. `ablate.operating` has what such a design detects and costs.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from ablate import stats
from ablate.stats import Contrast

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LOOKS = (3, 4, 5, 6, 8)
"""Pairs at which arms are looked at."""

FUTILITY = 0.1
"""Chance of a difference at the last look, if the present trend is true, below which an arm is given up."""

_EXPONENT = 2.0
"""Of the share of the pairs by which the error rate is spent: 1 is nearly Pocock's rule, 3 O'Brien and Fleming's."""

_DRAWS = 200_000
"""Rows of differences of equal arms that the joint distribution is known from, and how many at a time."""
_CHUNK = 20_000

_RARE = 1e-3
"""Error rate below which the draws say too little: there the looks' shares are added up, which is safe."""

Decision = Literal["difference", "equivalent", "futile", "continue", "open"]
"""`open` is the last look's: nothing was established."""


def weights(looks: Sequence[int]) -> list[float]:
    """Share of each look in the error rate, were looks independent; together 1."""
    spent = [0.0, *((n / looks[-1]) ** _EXPONENT for n in looks)]
    return [after - before for before, after in itertools.pairwise(spent)]


@functools.cache
def _null(looks: tuple[int, ...]) -> "tuple[NDArray[np.float64], NDArray[np.float64]]":
    """The smallest p-value over its weight of all looks at equal arms: quantiles, and of which shares."""
    import numpy as np
    from scipy.special import stdtr

    shares = np.geomspace(_RARE, 0.9, 200)
    if len(looks) == 1:
        return shares, shares
    rng, least = np.random.default_rng(0), []
    for _ in range(_DRAWS // _CHUNK):
        d = rng.standard_normal((_CHUNK, looks[-1]))
        p = [
            2 * stdtr(n - 1, -np.abs(d[:, :n].mean(axis=1)) / d[:, :n].std(axis=1, ddof=1) * math.sqrt(n)) / w
            for n, w in zip(looks, weights(looks), strict=True)
        ]
        least.append(np.min(p, axis=0))
    return np.quantile(np.concatenate(least), shares), shares


def levels(alpha: float, looks: Sequence[int] = LOOKS) -> tuple[float, ...]:
    """What each look tests at, so that they err together at `alpha`."""
    import numpy as np

    at, shares = _null(tuple(looks))
    factor = alpha if alpha <= shares[0] else float(np.interp(alpha, shares, at))
    return tuple(factor * weight for weight in weights(looks))


def over_looks(pvalues: Sequence[float], looks: Sequence[int] = LOOKS) -> float:
    """Smallest error rate at which one of the looks so far rejects; 1 if it would have to be above 0.9.

    A p-value of the whole sequence, which Holm's procedure takes like any other. One-sided p-values are
    dealt with as if they were two-sided, which is a little too careful.
    """
    import numpy as np

    least = sum_of_shares(pvalues, looks)
    at, shares = _null(tuple(looks))
    if least < at[0]:
        return float(min(least, shares[0]))
    return 1.0 if least >= at[-1] else float(np.interp(least, at, shares))


def sum_of_shares(pvalues: Sequence[float], looks: Sequence[int] = LOOKS) -> float:
    """As `over_looks`, for p-values of any joint distribution: error rates of the looks just add up."""
    return min(1.0, min((p / w for p, w in zip(pvalues, weights(looks), strict=False)), default=1.0))


def decide(
    seen: Mapping[str, Sequence[Contrast]],
    alpha: float,
    margin: float,
    looks: Sequence[int] = LOOKS,
) -> dict[str, Decision]:
    """What is to become of every arm after the looks that it has had.

    A difference comes before equivalence, of which it is no contradiction where it is smaller than the margin:
    an arm stops as equivalent when a difference will hardly be found any more.

    Args:
        seen: contrasts with the baseline at the looks so far, by arm; all arms of the sweep, also those that
            have stopped.
        alpha: family-wise error rate over arms and looks. Giving up costs nothing of it.
    """
    differs = stats.holm([over_looks([c.p_t for c in past], looks) for past in seen.values()])
    level = levels(alpha / len(seen), looks)[-1]
    decisions: dict[str, Decision] = {}
    for (name, past), p in zip(seen.items(), differs, strict=True):
        last = len(past) == len(looks)
        hopeless = bool(past) and not last and _chance(past[-1], level, looks[-1]) < FUTILITY
        if p < alpha:
            decisions[name] = "difference"
        elif (last or hopeless) and over_looks([c.p_tost for c in past], looks) < alpha:
            decisions[name] = "equivalent"
        elif last:
            decisions[name] = "open"
        elif hopeless and not _may_be_equivalent(past[-1], level, margin, looks[-1]):
            decisions[name] = "futile"
        else:
            decisions[name] = "continue"
    return decisions


def _may_be_equivalent(now: Contrast, level: float, margin: float, last: int) -> bool:
    """Whether the last look will find equivalence, if the estimates are true."""
    from scipy.stats import t

    return abs(now.delta) + float(t.isf(level, last - 1)) * now.sd / math.sqrt(last) < margin


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
        p_flip=sum_of_shares([c.p_flip for c in past], looks),
        p_tost=over_looks([c.p_tost for c in past], looks),
        p_noninferior=over_looks([c.p_noninferior for c in past], looks),
    )
