"""Compute multipliers: how much compute an arm is worth, from studies of the same arms at several sizes.

Methodology §C5. Loss falls with compute C as E + A (γ C)^-α, with E, A and α shared by all arms and γ = 1 for
the baseline: an arm with γ = 1.2 reaches the baseline's loss with 1/1.2 of its compute. Where exponents
differ there is no such number, and the difference at each size is all there is to say.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ablate import units
from ablate.caveats import loss
from ablate.errors import BadInputError
from ablate.records import StudyView

SIZES = 3
"""Fewest amounts of compute that a curve is fitted to."""

CONFIDENCE = 0.95

_HUBER = 1.345
"""Residual in robust standard deviations from which on a run counts linearly and not squared.

Of normal noise that keeps 95 % of the efficiency. A fixed small residual would make the fit one of medians,
whose error leaving out one cluster at a time does not tell.
"""

_ROUNDS = 3
"""Times that the scale of residuals is estimated anew."""

_NO_FLOOR = 1e-9
"""Nats that stand for a floor of zero, whose logarithm the fit holds."""

_QUIET = 1e-6
"""Relative residuals below this are no noise."""

Trend = Literal["steady", "crossed", "closing", "widening"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One confirm trial. Trials of one `cluster`, a size and seed, share their noise."""

    arm: str
    compute: float
    loss: float
    cluster: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Size:
    """An arm's difference to the baseline at one size, over paired seeds."""

    study: str
    compute: float
    delta: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, kw_only=True)
class Multiplier:
    """What an arm is worth over sizes.

    Attributes:
        gamma, low, high: the multiplier and its interval; None where exponents differ.
        exponent: difference of the arm's exponent to the baseline's, with its interval.
        trend: of the difference in loss with compute: `crossed` was seen, `closing` was not, and may never.
        level: L3 where a multiplier stands on sizes none of which has a blocker.
    """

    arm: str
    baseline: str
    gamma: float | None
    low: float | None
    high: float | None
    exponent: tuple[float, float, float]
    sizes: tuple[Size, ...]
    trend: Trend
    level: str
    sentence: str


@dataclass(frozen=True)
class Curve:
    """Shared constants of the fit, each arm's multiplier (log) and exponent, and the scale of residuals."""

    floor: float
    scale: float
    log_gamma: dict[str, float]
    exponent: dict[str, float]
    noise: float


def fit(runs: Sequence[Run], baseline: str, own_exponents: bool = False, start: Curve | None = None) -> Curve:
    """The curve through all runs, robust against a few of them.

    Args:
        own_exponents: let every arm have an exponent, and not only a multiplier.
        start: a nearby solution, which saves trying several starts.
    """
    from scipy.optimize import least_squares

    arms = [baseline, *sorted({run.arm for run in runs} - {baseline})]
    index = np.array([arms.index(run.arm) for run in runs])
    log_c = np.log([run.compute for run in runs])
    middle = float(log_c.mean())
    observed = np.log([run.loss for run in runs])
    extra = len(arms) - 1

    def residual(theta: NDArray[np.float64]) -> NDArray[np.float64]:
        gammas = np.concatenate([[0.0], theta[3 : 3 + extra]])
        exponents = theta[2] + np.concatenate(
            [[0.0], theta[3 + extra :] if own_exponents else np.zeros(extra)]
        )
        power = theta[1] - exponents[index] * (log_c - middle + gammas[index])
        return np.logaddexp(theta[0], power) - observed

    least, mean = math.exp(observed.min()), math.exp(observed.mean())
    zeros = np.zeros(extra * (2 if own_exponents else 1))
    starts = [
        np.concatenate([[math.log(part * least), math.log((1 - part) * mean), alpha], zeros])
        for part in (0.2, 0.5, 0.8)
        for alpha in (0.05, 0.15, 0.3)
    ]
    if start is not None:
        shared = start.exponent[baseline]
        starts = [
            np.array(
                [
                    math.log(start.floor),
                    math.log(start.scale) - shared * middle,
                    shared,
                    *(start.log_gamma[arm] for arm in arms[1:]),
                    *((start.exponent[arm] - shared for arm in arms[1:]) if own_exponents else ()),
                ]
            )
        ]
    noise, solved = (start.noise, starts[0]) if start is not None else (0.0, starts[0])
    if start is None:
        found = min((least_squares(residual, x0, x_scale="jac") for x0 in starts), key=lambda one: one.cost)
        for _ in range(_ROUNDS):  # a wild run inflates the first scale, and less the next
            noise, solved = max(_QUIET, 1.4826 * float(np.median(np.abs(found.fun)))), found.x
            found = least_squares(residual, solved, loss="huber", f_scale=_HUBER * noise, x_scale="jac")
    solved = least_squares(residual, solved, loss="huber", f_scale=_HUBER * noise, x_scale="jac").x
    own = solved[3 + extra :] if own_exponents else np.zeros(extra)
    return Curve(
        floor=max(math.exp(solved[0]), _NO_FLOOR),
        scale=math.exp(solved[1] + solved[2] * middle),
        log_gamma=dict(zip(arms, [0.0, *map(float, solved[3 : 3 + extra])], strict=True)),
        exponent=dict(zip(arms, map(float, solved[2] + np.concatenate([[0.0], own])), strict=True)),
        noise=noise,
    )


def intervals(
    runs: Sequence[Run], baseline: str, own_exponents: bool = False
) -> dict[str, tuple[float, float, float]]:
    """By arm, log γ with its interval, or with own exponents their difference to the baseline's.

    The interval is the jackknife's: every cluster is left out once. Few clusters make a bootstrap too narrow.
    """
    from scipy.stats import t

    def of(curve: Curve) -> dict[str, float]:
        if not own_exponents:
            return curve.log_gamma
        return {arm: value - curve.exponent[baseline] for arm, value in curve.exponent.items()}

    whole = fit(runs, baseline, own_exponents)
    clusters = sorted({run.cluster for run in runs})
    without = [
        of(fit([run for run in runs if run.cluster != left], baseline, own_exponents, whole))
        for left in clusters
    ]
    n = len(clusters)
    free = max(1, n - len({run.compute for run in runs if run.arm == baseline}))
    critical = float(t.ppf(0.5 + CONFIDENCE / 2, free))
    found = {}
    for arm, value in of(whole).items():
        values = np.array([left[arm] for left in without])
        half = critical * math.sqrt((n - 1) / n * float(((values - values.mean()) ** 2).sum()))
        found[arm] = (value, value - half, value + half)
    return found


def multipliers(views: Sequence[StudyView]) -> tuple[Multiplier, ...]:
    """What every arm that all studies have is worth, by finished studies of different compute per trial.

    Raises:
        BadInputError: fewer than three sizes, other arms or another baseline at one of them.
    """
    views = sorted(views, key=lambda view: view.plan.trial_mflop)
    _check(views)
    baseline = views[0].plan.baseline.name
    runs = [run for i, view in enumerate(views) for run in _runs(view, i)]
    gammas, exponents = intervals(runs, baseline), intervals(runs, baseline, own_exponents=True)
    arms = [arm.name for arm in views[-1].plan.arms if not arm.is_baseline]
    return tuple(_multiplier(arm, baseline, gammas[arm], exponents[arm], views) for arm in arms)


def _check(views: Sequence[StudyView]) -> None:
    if len({view.plan.trial_mflop for view in views}) < SIZES:
        raise BadInputError(
            f"{len(views)} studies with {len({v.plan.trial_mflop for v in views})} amounts of compute per trial: "
            f"a compute multiplier takes at least {SIZES}."
        )
    names = {tuple(sorted(arm.name for arm in view.plan.arms)) for view in views}
    bases = {view.plan.baseline.name for view in views}
    if len(names) > 1 or len(bases) > 1:
        told = "; ".join(f"{view.name}: {', '.join(arm.name for arm in view.plan.arms)}" for view in views)
        raise BadInputError(f"studies of a compute multiplier have the same arms and baseline. Here: {told}.")
    for view in views:
        missing = {arm.name for arm in view.plan.arms if not arm.is_baseline} - {v.arm for v in view.verdicts}
        if missing:
            raise BadInputError(
                f"study {view.name} has no verdict on {', '.join(sorted(missing))} yet. "
                f"Go on with: ablate resume {view.name}"
            )


def _runs(view: StudyView, size: int) -> list[Run]:
    return [
        Run(
            arm=row.spec.arm,
            compute=float(view.plan.trial_mflop),
            loss=value,
            cluster=(size, row.spec.replicate),
        )
        for row in view.trials
        if row.spec.phase == "confirm" and (value := loss(row)) is not None
    ]


def _multiplier(
    arm: str,
    baseline: str,
    log_gamma: tuple[float, float, float],
    exponent: tuple[float, float, float],
    views: Sequence[StudyView],
) -> Multiplier:
    verdicts = [next(v for v in view.verdicts if v.arm == arm) for view in views]
    sizes = tuple(
        Size(study=view.name, compute=view.plan.trial_mflop, delta=v.delta, low=v.low, high=v.high, n=v.n)
        for view, v in zip(views, verdicts, strict=True)
    )
    differ = exponent[1] > 0 or exponent[2] < 0
    gamma, low, high = (None, None, None) if differ else (math.exp(value) for value in log_gamma)
    blocked = any(caveat.blocks for v in verdicts for caveat in v.caveats)
    level = "L3" if not differ and not blocked and verdicts[-1].level == "L2" else verdicts[-1].level
    trend = direction(sizes)
    return Multiplier(
        arm=arm,
        baseline=baseline,
        gamma=gamma,
        low=low,
        high=high,
        exponent=exponent,
        sizes=sizes,
        trend=trend,
        level=level,
        sentence=_sentence(arm, baseline, gamma, low, high, exponent, sizes, trend, level),
    )


def direction(sizes: Sequence[Size]) -> Trend:
    """How the difference moves with compute; it has crossed only where both signs were established.

    Otherwise by the slope over the logarithm of compute, where its interval leaves zero out.
    """
    from scipy.stats import t

    if any(size.low > 0 for size in sizes) and any(size.high < 0 for size in sizes):
        return "crossed"
    half = np.array([(size.high - size.low) / 2 for size in sizes])
    x, y = np.log([size.compute for size in sizes]), np.array([size.delta for size in sizes])
    if not np.isfinite(half).all() or not half.all():
        return "steady"
    errors = np.array(
        [h / float(t.ppf(0.5 + CONFIDENCE / 2, size.n - 1)) for h, size in zip(half, sizes, strict=True)]
    )
    inverse = 1 / errors**2
    centre = float(np.average(x, weights=inverse))
    spread = float((inverse * (x - centre) ** 2).sum())
    slope = float((inverse * (x - centre) * y).sum()) / spread
    free = sum(size.n - 1 for size in sizes)
    if abs(slope) <= float(t.ppf(0.5 + CONFIDENCE / 2, free)) / math.sqrt(spread):
        return "steady"
    return "closing" if slope * sizes[-1].delta < 0 else "widening"


def _sentence(
    arm: str,
    baseline: str,
    gamma: float | None,
    low: float | None,
    high: float | None,
    exponent: tuple[float, float, float],
    sizes: Sequence[Size],
    trend: Trend,
    level: str,
) -> str:
    span = f"{units.compute(round(sizes[0].compute))} to {units.compute(round(sizes[-1].compute))} per trial"
    if gamma is None:
        head = f"exponents differ by {exponent[0]:+.3f} [{exponent[1]:+.3f}, {exponent[2]:+.3f}], so no multiplier"
    else:
        head = f"{gamma:.2f}x compute [{low:.2f}, {high:.2f}]"
    steps = ", ".join(f"{size.delta:+.3f} at {units.compute(round(size.compute))}" for size in sizes)
    words = {
        "steady": "",
        "crossed": " CROSSED: better at one size and worse at another.",
        "closing": " CLOSING: the difference shrinks with compute; no crossing was seen.",
        "widening": " The difference grows with compute.",
    }
    return f"{arm} vs {baseline}: {head}, from {span}. Level {level}. Nats: {steps}.{words[trend]}"
