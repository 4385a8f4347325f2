"""Where a study stands, from one reading of it: what pages and terminal say alike.

No statistics: verdicts come from the study.
"""

import math
import statistics
import time
from dataclasses import dataclass, replace
from typing import Any

from ablate import units
from ablate.records import Plan, StudyView, TrialRow, Verdict
from ablate.specs import Phase
from ablate.stages import EVALUATION


@dataclass(frozen=True, kw_only=True)
class ArmStanding:
    """One line of the ranking.

    Attributes:
        loss, bpb: means over the confirm seeds done so far.
        n: those seeds.
        delta: mean paired difference to the baseline over seeds that both have done; later the verdict's.
        search_loss: lowest loss of the search phase, which is never evidence.
    """

    rank: int
    name: str
    is_baseline: bool
    schedule: str
    loss: float | None
    bpb: float | None
    n: int
    planned: int
    delta: float | None
    low: float | None
    high: float | None
    search_loss: float | None
    lr: float | None
    verdict: Verdict | None


def arms(view: StudyView) -> tuple[list[ArmStanding], str]:
    """Arms, best first, and in words what they are ranked by."""
    done = _confirmed(view)
    base = done[view.plan.baseline.name]
    verdicts = {verdict.arm: verdict for verdict in view.verdicts}
    lines = []
    for arm in view.plan.arms:
        own = done[arm.name]
        pairs = [own[seed][0] - base[seed][0] for seed in own.keys() & base.keys()]
        verdict = verdicts.get(arm.name)
        bounded = verdict is not None and math.isfinite(verdict.high - verdict.low)  # not with one pair
        search = [r.result.val_loss for r in view.trials if _searched(r, arm.name) and r.result]
        curve = next((curve for curve in view.lr_curves if curve.arm == arm.name), None)
        lines.append(
            ArmStanding(
                rank=0,
                name=arm.name,
                is_baseline=arm.is_baseline,
                schedule=arm.variant.schedule,
                loss=statistics.fmean(v[0] for v in own.values()) if own else None,
                bpb=_mean([v[1] for v in own.values()]),
                n=len(own),
                planned=len(view.plan.confirm_seeds),
                delta=verdict.delta if verdict else statistics.fmean(pairs) if pairs else None,
                low=verdict.low if verdict and bounded else None,
                high=verdict.high if verdict and bounded else None,
                search_loss=min((v for v in search if v is not None), default=None),
                lr=verdict.lr if verdict else curve.best if curve else None,
                verdict=verdict,
            )
        )
    if all(line.delta is not None for line in lines):
        basis = "paired difference to the baseline on fresh seeds"
        lines.sort(key=lambda line: line.delta or 0.0)
    else:
        basis = "lowest loss of the search so far, which decides nothing: verdicts rest on fresh seeds"
        lines.sort(key=lambda line: math.inf if line.search_loss is None else line.search_loss)
    return [replace(line, rank=i) for i, line in enumerate(lines, 1)], basis


def _confirmed(view: StudyView) -> dict[str, dict[int, tuple[float, float | None]]]:
    """Arm to seed to (loss, bits per byte) of the confirm trials that are complete."""
    done: dict[str, dict[int, tuple[float, float | None]]] = {arm.name: {} for arm in view.plan.arms}
    for row in view.trials:
        if row.spec.phase == "confirm" and row.state == "complete" and row.result and row.result.val_loss:
            done[row.spec.arm][row.spec.seed] = (row.result.val_loss, row.result.val_bpb)
    return done


def _searched(row: TrialRow, arm: str) -> bool:
    return row.spec.arm == arm and row.spec.phase == "search" and row.state == "complete"


def _mean(values: list[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.fmean(known) if known else None


def axis(lines: list[ArmStanding]) -> float:
    """Half width in nats of the axis that holds all intervals; zero where there is none."""
    ends = [abs(v) for line in lines for v in (line.delta, line.low, line.high) if v is not None]
    return 1.1 * max(ends, default=0.0)


def counts(view: StudyView) -> dict[str, int]:
    """Trials by state, those that are there."""
    states = [row.state for row in view.trials]
    order = ("running", "queued", "complete", "diverged", "failed", "cancelled")
    return {state: states.count(state) for state in order if state in states}


def spent(view: StudyView) -> int:
    """MFLOP spent in all phases."""
    return sum(account.spent for account in view.accounts)


def seconds_left(view: StudyView) -> float | None:
    """Time for all that may still be spent, at the speed of the trials so far.

    None where nothing is known or nothing is left.
    """
    if view.state != "running":
        return None
    own = [row for row in view.trials if row.started_at and row.reused_from is None]
    ended = [row for row in own if row.ended_at and row.result]
    busy = sum((row.ended_at or 0) - (row.started_at or 0) for row in ended)
    work = sum(row.charged_mflop - row.evaluation_mflop for row in ended)
    if not ended:
        points = [row.progress for row in own if row.progress]
        busy, work = sum(point.seconds for point in points), sum(point.mflop for point in points)
    if busy <= 0 or work <= 0:
        return view.plan.estimated_seconds
    workers = max(1, len(view.workers) or view.plan.workers)
    return _unspent(view) * busy / work / workers


def phase(view: StudyView) -> Phase:
    """What is under way or comes next; once fresh seeds are trained, the search does not go on."""
    searching = any(row.spec.phase == "search" and row.state in ("queued", "running") for row in view.trials)
    confirming = any(row.spec.phase == "confirm" for row in view.trials)
    return "confirm" if confirming and not searching else "search"


def _unspent(view: StudyView) -> int:
    """MFLOP that training may still cost."""
    over = ("calibrate", EVALUATION, "contingency", *(("search",) if phase(view) == "confirm" else ()))
    return sum(account.cap - account.spent for account in view.accounts if account.phase not in over)


def running(view: StudyView) -> list[TrialRow]:
    """Trials under way."""
    return [row for row in view.trials if row.state == "running"]


def ended(row: TrialRow) -> bool:
    """Whether a trial has come to its end, good or bad."""
    return row.state in ("complete", "diverged", "failed")


def share(row: TrialRow) -> float:
    """Part of its compute that a trial has done."""
    step = row.result.steps if row.result is not None else row.progress.step if row.progress else 0
    return row.spec.charge(step) / max(1, row.spec.allowance_mflop)


def age(then: float, now: float | None = None) -> str:
    """How long ago, in words."""
    seconds = max(0.0, (time.time() if now is None else now) - then)
    return f"{seconds / 86400:.0f} days ago" if seconds > 2 * 86400 else f"{units.duration(seconds)} ago"


def arm_facts(plan: Plan) -> list[dict[str, Any]]:
    """What arms cost, with what the budget leaves unequal."""
    return [
        {
            "arm": arm.name,
            "schedule": arm.variant.schedule,
            "params": arm.params,
            "flops": arm.train_flops_per_token,
            "kv": arm.kv_bytes_per_token,
            "tokens": arm.tokens,
            "mismatch": arm.mismatch,
        }
        for arm in plan.arms
    ]
