"""Operating characteristics of a confirmation with looks: what it detects and how many trials it takes.

Many studies at once, by the rule of `ablate.sequential` in arrays.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ablate import sequential, stats

_STUDIES = 1000
"""Studies that an expected cost is the mean of."""

_POWER_STUDIES = 10_000
"""Studies that power is the share of; its standard error is then 0.004."""

_NEAR = 1e-3
"""SD of paired differences within which a detectable effect is found."""


@dataclass(frozen=True)
class Played:
    """Studies that ended.

    Attributes:
        decisions: [studies, arms], each a `sequential.Decision`.
        pairs: [studies, arms], seeds that each arm took.
        baseline: [studies], seeds that the baseline took.
    """

    decisions: NDArray[np.str_]
    pairs: NDArray[np.int64]
    baseline: NDArray[np.int64]

    @property
    def trials(self) -> NDArray[np.int64]:
        """[studies], confirm trials, those of the baseline included."""
        return self.pairs.sum(axis=1) + self.baseline


def play(d: NDArray[np.float64], alpha: float, margin: float, looks: Sequence[int]) -> Played:
    """Let studies run, arms that are decided getting no further pairs.

    Args:
        d: [studies, arms, pairs], differences to the baseline that would be seen.
    """
    from scipy.special import ndtr, ndtri, stdtr, stdtrit

    studies, arms, _ = d.shape
    last = looks[-1]
    steps = [sequential.levels(alpha / (arms - i), looks) for i in range(arms)]
    shares, final = sequential.levels(alpha, looks), steps[0][-1]
    decisions = np.full((studies, arms), "continue", dtype="<U10")
    pairs, baseline = np.zeros((studies, arms), dtype=np.int64), np.zeros(studies, dtype=np.int64)
    crossed = np.zeros((arms, studies, arms), dtype=bool)
    close = np.zeros((studies, arms), dtype=bool)
    for i, n in enumerate(looks):
        live = decisions == "continue"
        pairs[live] = n
        baseline[live.any(axis=1)] = n
        mean, sd = d[:, :, :n].mean(axis=2), d[:, :, :n].std(axis=2, ddof=1)
        error = sd / math.sqrt(n)
        p = 2 * stdtr(n - 1, -np.abs(mean) / error)
        for step, own in zip(crossed, steps, strict=True):
            step |= live & (p < own[i])
        close |= live & (stdtr(n - 1, -(margin - np.abs(mean)) / error) < shares[i])
        decisions[_step_down(crossed)] = "difference"
        live = decisions == "continue"
        if n == last:
            decisions[live] = np.where(close[live], "equivalent", "open")
            break
        drift = -ndtri(p / 2) / math.sqrt(n / last)
        hopeless = live & (ndtr((drift + ndtri(final / 2)) / math.sqrt(1 - n / last)) < sequential.FUTILITY)
        half = -stdtrit(last - 1, final) * sd / math.sqrt(last)
        decisions[hopeless & (np.abs(mean) + half >= margin)] = "futile"
        decisions[hopeless & close] = "equivalent"
    return Played(decisions, pairs, baseline)


def _step_down(crossed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Arms that Holm's procedure rejects, by what crosses the boundary of each of its steps."""
    rejected, going = np.zeros_like(crossed[0]), np.ones(len(crossed[0]), dtype=bool)
    for step, at in enumerate(crossed):
        going &= at.sum(axis=1) > step
        rejected |= at & going[:, None]
    return rejected


def power(effect: float, alpha: float, looks: Sequence[int]) -> float:
    """Chance that an effect, in SD of paired differences, is found at some look before the arm is given up."""
    noise = np.random.default_rng(0).standard_normal((_POWER_STUDIES, 1, looks[-1]))
    return float((play(noise + effect, alpha, 0.0, looks).decisions == "difference").mean())


@functools.cache
def _detectable(alpha: float, looks: tuple[int, ...], chance: float) -> float:
    low, high = 0.0, stats.mde(looks[-1], alpha, chance)
    while power(high, alpha, looks) < chance:
        low, high = high, 2 * high
    while high - low > _NEAR:
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle, alpha, looks) >= chance else (middle, high)
    return high


def detectable(alpha: float, looks: Sequence[int], chance: float = 0.8) -> float:
    """Effect in SD of paired differences that is found with that power, over all looks."""
    return _detectable(alpha, tuple(looks), chance)


def expected_trials(
    effect: float, sd: float, arms: int, alpha: float, margin: float, looks: Sequence[int]
) -> float:
    """Confirm trials to be expected, those of the baseline included, where all arms differ from it by `effect`.

    Simulated with normal noise that each trial has for itself.
    """
    noise = np.random.default_rng(0).normal(0, sd / math.sqrt(2), (_STUDIES, arms + 1, looks[-1]))
    return float(play(noise[:, 1:] - noise[:, :1] + effect, alpha, margin, looks).trials.mean())
