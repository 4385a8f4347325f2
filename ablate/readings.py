"""The second reading of a study: arms at equal tokens where FLOPs are equal, and the other way round.

The same runs give it where the learning rate is constant: there, and only there, a loss along a curve is that of
a model trained so far, whatever the run's length. Once the rate decays, a loss belongs to the run's own end.
Source: methodology §A4, §A5.
"""

import math
from collections.abc import Sequence

import numpy as np

from ablate import matching, stats
from ablate.division import trials_of
from ablate.records import Plan, TrialRow
from ablate.schema import Optimizer
from ablate.second_reading import Foreseen, Reading

AXES = {"tokens": "tokens", "flops": "mflop"}
"""Currency to the field of a curve's points."""


def other(match: str) -> str:
    """The currency of the second reading."""
    return "flops" if match == "tokens" else "tokens"


def foreseen(plan: Plan) -> Foreseen | None:
    """The second reading that a plan's evaluations allow; None where a search is still to find the arms."""
    if plan.run.sweep.searches:
        return None
    currency, optimizer = other(plan.run.budget.match), plan.run.optimizer
    per_step = plan.run.trainer.seq_len * plan.run.trainer.batch_size
    curves = []
    for arm in plan.arms:
        steps = [s for s, _ in arm.evaluations if _constant(arm.charge(s) / arm.mflop, optimizer)]
        curves.append([per_step * s if currency == "tokens" else arm.charge(s) for s in steps])
    mflop = {arm.name: -(-arm.mflop // arm.steps) for arm in plan.arms}
    again = matching.steps(currency, plan.trial_mflop, mflop, {})
    per_arm = sum(trials_of(plan.run.sweep).values()) // len(plan.arms)
    return Foreseen(
        currency=currency,
        amount=round(where) if (where := _common(curves)) is not None else None,
        cost_mflop=sum(
            per_arm * (again[arm.name] * mflop[arm.name] + arm.evaluation_mflop)
            for arm in plan.arms
            if again[arm.name] != arm.steps
        ),
    )


def second(plan: Plan, pairs: Sequence[tuple[TrialRow, TrialRow]], confidence: float) -> Reading | None:
    """The paired difference at equal amounts of the currency that the budget leaves open."""
    currency = other(plan.run.budget.match)
    found = before_decay(pairs, plan.run.optimizer, currency)
    if found is None:
        return None
    amount, own, base = found
    contrast = stats.contrast(own, base, plan.run.sweep.confirm.margin, confidence)
    return Reading(
        currency=currency,
        amount=round(amount),
        n=contrast.n,
        delta=contrast.delta,
        low=contrast.low,
        high=contrast.high,
    )


def before_decay(
    pairs: Sequence[tuple[TrialRow, TrialRow]], optimizer: Optimizer, currency: str
) -> tuple[float, list[float], list[float]] | None:
    """Held-out losses of all pairs at the last amount of a currency that all trials reach at a constant rate.

    Between two evaluations losses are taken as linear in the logarithm of the amount. None where some trial
    diverged, or has no evaluation there.
    """
    curves = []
    for row in (row for pair in pairs for row in pair):
        if row.result is None or row.state == "diverged":
            return None
        curves.append(
            [
                (getattr(point, AXES[currency]), point.val_loss)
                for point in row.result.curve
                if point.val_loss is not None
                and _constant(row.spec.charge(point.step) / row.spec.mflop, optimizer)
            ]
        )
    where = _common([[amount for amount, _ in curve] for curve in curves])
    if where is None:
        return None
    values = [float(np.interp(math.log(where), np.log([x for x, _ in c]), [y for _, y in c])) for c in curves]
    return where, values[::2], values[1::2]


def _constant(progress: float, optimizer: Optimizer) -> bool:
    """Whether the learning rate is at its peak after that share of a run."""
    return optimizer.warmup <= progress <= 1 - optimizer.decay + 1e-9


def _common(curves: Sequence[Sequence[float]]) -> float | None:
    """The last amount that lies within all curves."""
    if not curves or not all(curves):
        return None
    where = min(curve[-1] for curve in curves)
    return where if where >= max(curve[0] for curve in curves) else None
