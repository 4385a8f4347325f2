"""How a budget is divided: the allowance of a trial, and caps per phase that sum to the total exactly."""

import math
from collections.abc import Iterable, Mapping

from ablate import schema, units
from ablate.errors import BadInputError
from ablate.stages import EVALUATION

ROOM = 2
"""Times what the dearest arm's evaluations take that those of a proposal may."""

SHORT_RUN = 300
"""Optimizer steps below which a trial carries no verdict (methodology §A5)."""


def divide(
    run: schema.Run, dearest_step: int, calibration: int = 0, evaluation: int = 0
) -> tuple[int, int, dict[str, int]]:
    """Allowance per trial, total, and caps per phase, all in MFLOP.

    An allowance is for training alone, so that arms whose evaluations cost more train for no less.

    Args:
        calibration: what measuring costs. evaluation: what evaluations cost, of all trials together.
    """
    beside = calibration + evaluation
    counts, share = trials_of(run.sweep), run.budget.contingency
    trials = sum(counts.values())
    per_trial, total = run.budget.per_trial, run.budget.total
    if per_trial is None and total is None:
        raise BadInputError(
            "budget.per_trial and budget.total are both null. Give one, such as budget.total=5e13."
        )
    if per_trial is None:
        bound = units.mflop(total, "budget.total")
        allowance = (bound - math.floor(bound * share) - beside) // trials
    else:
        allowance = units.mflop(per_trial, "budget.per_trial")
        bound = (
            units.mflop(total, "budget.total")
            if total is not None
            else with_contingency(trials * allowance + beside, share)
        )
    if allowance < dearest_step:
        key, given, times = ("per_trial", per_trial, 1) if per_trial is not None else ("total", total, trials)
        smallest, useful = times * dearest_step, times * dearest_step * SHORT_RUN
        if key == "total":
            smallest = with_contingency(smallest + beside, share)
            useful = with_contingency(useful + beside, share)
        raise BadInputError(
            f"budget.{key}={given} is too small: a trial is allowed {units.compute(allowance)}, but "
            f"one optimizer step of the costliest arm takes {units.compute(dearest_step)}. "
            f"Smallest that works: {_ceil(smallest)}; "
            f"smallest that allows a verdict ({SHORT_RUN} steps): {_ceil(useful)}."
        )
    planned = trials * allowance + beside
    contingency = math.floor(bound * share) if total is not None else bound - planned
    if planned + contingency > bound:
        fits = (bound - contingency - beside) // trials
        or_less = f"; or budget.per_trial={fits * units.MFLOP} for this total" if fits >= dearest_step else ""
        raise BadInputError(
            f"budget.total={total} is too small for {trials} trials of {units.compute(allowance)} "
            f"(budget.per_trial={per_trial}), {units.compute(evaluation)} of evaluations and {share:.0%} contingency. "
            f"Smallest that works: budget.total={_ceil(with_contingency(planned, share))}{or_less}."
        )
    caps = {phase: count * allowance for phase, count in counts.items()}
    caps |= {EVALUATION: evaluation, "contingency": contingency}
    return allowance, bound, {**({"calibrate": calibration} if calibration else {}), **caps}


def trials_of(sweep: schema.Sweep) -> dict[str, int]:
    """Trials by phase; of the search at most, and with the proposals of an open one."""
    search, arms = sweep.search, sweep.contrasts + 1
    proposed = search.trials if sweep.searches else 0
    return {
        "search": arms * (search.points + search.extensions) + proposed,
        "confirm": arms * sweep.confirm.seeds,
    }


def evaluations(sweep: schema.Sweep, each: Mapping[str, int]) -> int:
    """MFLOP for the evaluations of all trials.

    Args:
        each: what those of one trial take, by arm. An open search is to find the others.
    """
    own = sweep.search.points + sweep.search.extensions + sweep.confirm.seeds
    others = sum(trials_of(sweep).values()) - own * len(each)
    return own * sum(each.values()) + others * evaluations_allowed(each.values())


def evaluations_allowed(each: Iterable[int]) -> int:
    """MFLOP that the evaluations of a trial may take whose arm an open search proposes; `each` as those of arms."""
    return ROOM * max(each)


def with_contingency(mflop: int, share: float) -> int:
    """Smallest total of which `mflop` is left when `share` is set aside."""
    total = math.ceil(mflop / (1 - share))
    while total - math.floor(total * share) < mflop:
        total += 1
    return total


def _ceil(mflop: int) -> str:
    """An amount as a value that can be pasted into an override."""
    return f"{mflop * units.MFLOP} ({units.compute(mflop)})"
