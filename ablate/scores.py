"""How much of a probe arms get right, and on how many seeds they have solved it."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ablate.records import Plan, TrialRow

ACCURACY = "probe/accuracy"
"""Metric of a trial on a probe: share of right answers on held-out sequences. `probe/accuracy/8` is that of answers
which stand at most 8 and more than 4 tokens back, and so on."""

SOLVED = 0.9
"""Accuracy above which a seed has solved its probe; outcomes are nearly all far above or far below."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What an arm gets right on fresh seeds, at its tuned learning rate.

    Attributes:
        accuracy: mean over the seeds; a trial that diverged has nothing right. None before the first has ended.
        solved: seeds that got more than `SOLVED` right, of `n`.
        low, high: Clopper-Pearson 95 % interval of the share of seeds that do; None without seeds.
        steps: median number of steps to the first evaluation above `SOLVED`, over the seeds that solved it.
        reach: mean accuracy by how far back answers stand: (at most so many tokens, more than half of it) to it.
        searched: highest accuracy at any learning rate of the search, which is never evidence.
    """

    arm: str
    accuracy: float | None
    solved: int
    n: int
    low: float | None
    high: float | None
    steps: float | None
    reach: tuple[tuple[int, float], ...]
    searched: float | None


def scores(plan: "Plan", rows: Sequence["TrialRow"]) -> tuple[Score, ...]:
    """A score for every arm that has an ended trial, in the order of the plan; none where arms read text."""
    if not plan.run.data.is_probe:
        return ()
    ended = [row for row in rows if row.state in ("complete", "diverged")]
    return tuple(
        _score(arm.name, own)
        for arm in plan.arms
        if (own := [row for row in ended if row.spec.arm == arm.name])
    )


def _score(arm: str, ended: Sequence["TrialRow"]) -> Score:
    from ablate import stats

    fresh = [row for row in ended if row.spec.phase == "confirm"]
    reached = [accuracy(row) for row in fresh]
    solving = [row for row in fresh if accuracy(row) > SOLVED]
    low, high = stats.proportion_interval(len(solving), len(fresh)) if fresh else (None, None)
    return Score(
        arm=arm,
        accuracy=statistics.fmean(reached) if reached else None,
        solved=len(solving),
        n=len(fresh),
        low=low,
        high=high,
        steps=statistics.median(map(_first_solved, solving)) if solving else None,
        reach=_reach([row.result.metrics for row in fresh if row.state == "complete" and row.result]),
        searched=max((accuracy(row) for row in ended if row.spec.phase == "search"), default=None),
    )


def ranked(found: Sequence[Score]) -> list[Score]:
    """Best first: by accuracy on fresh seeds, before there are any by that of the search."""
    return sorted(found, key=lambda score: (-(score.accuracy or 0.0), -(score.searched or 0.0)))


def accuracy(row: "TrialRow") -> float:
    """Share of right answers at the end of a trial, none of one that diverged."""
    if row.state != "complete" or row.result is None:
        return 0.0
    return row.result.metrics.get(ACCURACY, 0.0)


def _reach(metrics: Sequence[Mapping[str, float]]) -> tuple[tuple[int, float], ...]:
    prefix = f"{ACCURACY}/"
    bins = {int(key.removeprefix(prefix)) for found in metrics for key in found if key.startswith(prefix)}
    return tuple(
        (far, statistics.fmean(found[f"{prefix}{far}"] for found in metrics)) for far in sorted(bins)
    )


def _first_solved(row: "TrialRow") -> int:
    assert row.result is not None
    return next(point.step for point in row.result.curve if (point.accuracy or 0.0) > SOLVED)
