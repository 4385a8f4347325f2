"""What an open search has come to, from its proposals and the trials of its study. Pure functions."""

import json
import math
import statistics
from collections import Counter
from collections.abc import Sequence

from ablate import db, pareto
from ablate.records import Plan, TrialRow
from ablate.searched import Finalist, Proposal, Searched

_REFUSED = ("duplicate", "infeasible", "invalid")


def searched(plan: Plan, rows: Sequence[db.Found], trials: Sequence[TrialRow]) -> Searched:
    """The search as it stands.

    Args:
        rows: recorded proposals, in their order.
    """
    by_number = {row.number: row for row in trials}
    found = tuple(_proposal(row, by_number.get(row.trial_number)) for row in rows)
    done = [proposal for proposal in found if proposal.trained]
    objectives = tuple(plan.run.sweep.search.objectives)
    points = [
        (proposal.value or 0.0, *(proposal.costs[name] for name in objectives[1:])) for proposal in done
    ]
    front = [p.number for p, rank in zip(done, pareto.ranks(points), strict=True) if rank == 0]
    base = plan.baseline.name
    base_tuned, base_confirmed = _tuned(trials, base), _confirmed(trials, base)[0]
    return Searched(
        objectives=objectives,
        proposals=found,
        front=tuple(front),
        curve=_curve(found),
        finalists=tuple(
            _finalist(arm, found[number], trials) for arm, number in (plan.finalists or {}).items()
        ),
        baseline_shrinkage=_difference(base_confirmed, base_tuned),
        counts=dict(Counter(proposal.state for proposal in found)),
    )


def _proposal(row: db.Found, trial: TrialRow | None) -> Proposal:
    own = row.kind == "new"
    result = trial.result if trial else None
    return Proposal(
        number=row.number,
        sampler=row.sampler,
        params=json.loads(row.params),
        overrides=json.loads(row.overrides),
        lr=row.lr,
        schedule=row.schedule,
        state=row.kind if not own else trial.state if trial else "queued",  # type: ignore[arg-type]
        reason=row.reason or (result.reason if result else ""),
        value=result.val_loss if result else None,
        costs=json.loads(row.costs),
        mflop=trial.charged_mflop if own and trial else 0,
        trial=row.trial_number,
    )


def _curve(proposals: Sequence[Proposal]) -> tuple[tuple[int, float], ...]:
    """Compute charged so far and lowest loss so far, failures and all, in the order of proposals."""
    spent, best, points = 0, math.inf, []
    for proposal in proposals:
        if proposal.state in _REFUSED or proposal.state in ("queued", "running"):
            continue
        spent += proposal.mflop
        if proposal.trained and proposal.value is not None:
            best = min(best, proposal.value)
        if math.isfinite(best):
            points.append((spent, best))
    return tuple(points)


def _finalist(arm: str, proposal: Proposal, trials: Sequence[TrialRow]) -> Finalist:
    confirmed, seeds = _confirmed(trials, arm)
    tuned = _tuned(trials, arm)
    return Finalist(
        arm=arm,
        proposal=proposal.number,
        search=math.nan if proposal.value is None else proposal.value,
        tuned=tuned,
        confirmed=confirmed,
        seeds=seeds,
        shrinkage=_difference(confirmed, tuned),
    )


def _tuned(trials: Sequence[TrialRow], arm: str) -> float | None:
    """Lowest loss of an arm's learning rates."""
    return min(_losses(trials, arm, "search"), default=None)


def _confirmed(trials: Sequence[TrialRow], arm: str) -> tuple[float | None, int]:
    """Mean loss over an arm's fresh seeds, and their number."""
    losses = _losses(trials, arm, "confirm")
    return (statistics.fmean(losses) if losses else None), len(losses)


def _losses(trials: Sequence[TrialRow], arm: str, phase: str) -> list[float]:
    own = [row for row in trials if row.spec.arm == arm and row.spec.phase == phase]
    values = [row.result.val_loss for row in own if row.state == "complete" and row.result]
    return [value for value in values if value is not None]


def _difference(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b
