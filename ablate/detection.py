"""How many seeds an effect takes to be found, and what they cost: the design of a study turned around."""

import dataclasses
import math
from dataclasses import dataclass

from ablate import curriculum, ranges, units
from ablate.division import divide, evaluations
from ablate.errors import BadInputError
from ablate.records import Plan


@dataclass(frozen=True, kw_only=True)
class Detection:
    """Seeds per arm that find `effect` nats with 80 % power under the plan's noise.

    Attributes:
        seeds: None where even the most that a sweep may have do not.
        total_mflop: budget of the study with that many, allowance and search as planned.
    """

    effect: float
    seeds: int | None
    total_mflop: int | None


def detection(plan: Plan, effect: float) -> Detection:
    """The design that finds `effect` nats, at the strictest step of Holm's procedure.

    Raises:
        BadInputError: `effect` is no positive number.
    """
    if not (math.isfinite(effect) and effect > 0):
        raise BadInputError(f"--detect {effect:g} is no difference in nats. Allowed: a number above 0.")
    from ablate import stats

    plan = plan.registered
    confirm, most = plan.run.sweep.confirm, int(ranges.BOUNDS["sweep.confirm.replicates"].high)
    alpha = confirm.alpha / max(1, plan.planned_arms - 1)
    seeds = stats.seeds_needed(effect / plan.noise_sd, alpha, most=most)
    if seeds is None:
        return Detection(effect=effect, seeds=None, total_mflop=None)
    run = dataclasses.replace(
        plan.run,
        sweep=dataclasses.replace(
            plan.run.sweep, confirm=dataclasses.replace(confirm, replicates=seeds, looks=[])
        ),
        budget=dataclasses.replace(plan.run.budget, per_trial=plan.trial_mflop * units.MFLOP, total=None),
    )
    each = {arm.name: curriculum.evaluations_at_most(arm.run, arm.variant) for arm in plan.arms}
    _, total, _ = divide(
        run,
        max(arm.step_mflop for arm in plan.arms),
        sum(speed.mflop for speed in plan.speeds),
        evaluations(run.sweep, each),
    )
    return Detection(effect=effect, seeds=seeds, total_mflop=total)
