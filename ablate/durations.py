"""Budgets in units of time: what they are in FLOPs, given how long a step of each arm takes."""

import bisect
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ablate import matching, schema, units
from ablate.division import trials_of, with_contingency
from ablate.errors import BadInputError
from ablate.records import Speed

OVERHEAD = 1.2
"""Wall time of a study over its trials' training time: evaluations, checkpoints, start-up."""


@dataclass(frozen=True)
class _Pace:
    """How fast arms are, by name, and on how much of a machine.

    Attributes:
        workers: trials at a time.
    """

    step_mflop: Mapping[str, int]
    step_seconds: Mapping[str, float]
    workers: int


def asked(budget: schema.Budget) -> dict[str, Any]:
    """Amounts of the budget that are times, by their keys."""
    amounts = {"total": budget.total, "per_trial": budget.per_trial}
    return {key: value for key, value in amounts.items() if units.time(value) is not None}


def told(speeds: Sequence[Speed]) -> str:
    """Times of a step for people: `dense 36 ms, csa 44 ms`."""
    return ", ".join(f"{speed.arm} {1e3 * speed.step_seconds:.3g} ms" for speed in speeds)


def in_flops(
    run: schema.Run, step_mflop: Mapping[str, int], speeds: Sequence[Speed], workers: int, evaluation: int
) -> schema.Run:
    """The run with times in its budget replaced by the FLOPs that fit into them.

    A time per trial bounds the training of the slowest arm. A time in total is that of all trials, as many at
    once as there are workers, with `OVERHEAD`; what an open search proposes is taken to last as long as arms do.

    Args:
        evaluation: MFLOP that the evaluations of all trials take.

    Raises:
        BadInputError: a time in which no arm can do a step, or of a device that is not in use.
    """
    if not asked(run.budget):
        return run
    budget, count = run.budget, sum(trials_of(run.sweep).values())
    step_seconds = {speed.arm: speed.step_seconds for speed in speeds}
    measuring = sum(speed.mflop / step_mflop[speed.arm] * speed.step_seconds for speed in speeds)
    pace = _Pace(step_mflop, step_seconds, workers)
    amounts: dict[str, int] = {}

    def seconds(allowance: int) -> list[float]:
        steps = matching.steps(budget.match, allowance, pace.step_mflop, pace.step_seconds)
        return [number * pace.step_seconds[name] for name, number in steps.items()]

    if (each := units.time(budget.per_trial)) is not None:
        limit = _worker_seconds(run, "budget.per_trial", each, pace, each.seconds)
        allowance = _largest(lambda mflop: max(seconds(mflop)), limit, run, "budget.per_trial", pace)
        amounts["per_trial"] = allowance * units.MFLOP
    if (whole := units.time(budget.total)) is not None:
        atonce = min(pace.workers, count)
        limit = _worker_seconds(run, "budget.total", whole, pace, (whole.seconds - measuring) * atonce)
        allowance = _largest(
            lambda mflop: count * fmean(seconds(mflop)) * OVERHEAD, limit, run, "budget.total", pace
        )
        work = count * allowance + sum(speed.mflop for speed in speeds) + evaluation
        amounts["total"] = with_contingency(work, budget.contingency) * units.MFLOP
    return dataclasses.replace(run, budget=dataclasses.replace(budget, **amounts))


def _worker_seconds(run: schema.Run, key: str, given: units.Time, pace: _Pace, wall: float) -> float:
    """Training seconds of all workers together that a time allows: `wall` where it is of the clock on the wall."""
    device, value = run.trainer.device, getattr(run.budget, key.rpartition(".")[2])
    if given.device == "":
        return wall
    if given.device != ("cpu" if device == "cpu" else "gpu"):
        raise BadInputError(
            f"{key}={value} is time of a {given.device.upper()}, but trainer.device={device}. Allowed: "
            f"{'cpu' if device == 'cpu' else 'gpu'}-hours, wall-clock time such as '20 min', or FLOPs."
        )
    if given.device == "cpu":
        return given.seconds / run.launcher.threads
    return given.seconds * pace.workers / _accelerators(device, pace.workers)


def _largest(needs: Callable[[int], float], limit: float, run: schema.Run, key: str, pace: _Pace) -> int:
    """The largest allowance in MFLOP that needs no more than `limit` seconds.

    Raises:
        BadInputError: it does not pay for a step of every arm.
    """
    dearest = max(pace.step_mflop.values())
    high = dearest
    while needs(high) <= limit:
        high *= 2
    allowance = bisect.bisect_right(range(high), limit, key=needs) - 1
    if allowance < dearest:
        times = needs(dearest) / limit if limit > 0 else float("inf")
        raise BadInputError(
            f"{key}={getattr(run.budget, key.rpartition('.')[2])} is too small: one optimizer step of every arm "
            + (
                f"takes {times:.3g} times as long."
                if limit > 0
                else "comes after the calibration, which takes longer."
            )
            + " Give more time, or an amount of FLOPs."
        )
    return allowance


def _accelerators(device: str, workers: int) -> int:
    """How many the workers share."""
    if device != "cuda":
        return 1
    import torch

    return min(workers, torch.cuda.device_count())
