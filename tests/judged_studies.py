"""Healthy studies with losses as wanted, for tests of what is concluded from them."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import study_views

from ablate import verdict
from ablate.records import Plan, Point, TrialResult, TrialRow, TrialSpec, Verdict

STEPS = 2000
STEP_MFLOP = 1000
RATE = 3e-3
Loss = Callable[[TrialSpec], float]
Rows = tuple[TrialRow, ...]


@functools.cache
def study(arms: tuple[str, ...] = ("dense", "csa"), replicates: int = 6) -> tuple[Plan, Rows]:
    """Arms that cost the same, long enough, each tuned to the middle of its grid, without any difference."""
    made = study_views.plan(arms={arm: study_views.SCHEDULES[arm] for arm in arms}, replicates=replicates)
    plan = dataclasses.replace(
        made,
        arms=tuple(
            dataclasses.replace(
                arm, step_mflop=STEP_MFLOP, steps=STEPS, tokens=STEPS * 512, mismatch={"tokens": 0.0}
            )
            for arm in made.arms
        ),
        trial_mflop=STEPS * STEP_MFLOP,
    )
    rows = tuple(
        change(row, state="complete", outcome="complete", reason="", attempts=1)
        for row in study_views.rows(plan)
    )
    return plan, with_losses(rows, lambda spec: 3.4)


def change(row: TrialRow, **values: Any) -> TrialRow:
    """A trial with other values of its own, of its specification or of its result."""
    assert row.result is not None
    parts: dict[str, dict[str, Any]] = {"row": {}, "spec": {}, "result": {}}
    for key, value in values.items():
        where = next(
            name
            for name, cls in (("result", TrialResult), ("spec", TrialSpec), ("row", TrialRow))
            if key in {f.name for f in dataclasses.fields(cls)}
        )
        parts[where][key] = value
    return dataclasses.replace(
        row,
        **parts["row"],
        spec=dataclasses.replace(row.spec, **parts["spec"]),
        result=dataclasses.replace(row.result, **parts["result"]),
    )


def with_losses(rows: Rows, confirm: Loss) -> Rows:
    """The same trials, with a bowl around `RATE` for the search and these losses for confirm trials."""

    def final(spec: TrialSpec) -> float:
        return 3.4 + 0.02 * math.log2(spec.lr / RATE) ** 2 if spec.phase == "search" else confirm(spec)

    return tuple(
        change(row, val_loss=final(row.spec), val_bpb=final(row.spec) / math.log(2) / 3, curve=())
        for row in rows
    )


def noisy(
    seed: int, effects: Mapping[str, float] | None = None, sd: float = 0.005, common: float = 0.02
) -> Loss:
    """Losses with a part that arms of one seed share, one of their own, and an effect by arm.

    `sd` is that of paired differences.
    """
    rng = np.random.default_rng(seed)
    shared: dict[int, float] = {}
    own: dict[tuple[str, int], float] = {}

    def loss(spec: TrialSpec) -> float:
        if spec.seed not in shared:
            shared[spec.seed] = rng.normal(0, common)
        if (spec.arm, spec.seed) not in own:
            own[spec.arm, spec.seed] = rng.normal(0, sd / math.sqrt(2))
        return 3.4 + shared[spec.seed] + own[spec.arm, spec.seed] + (effects or {}).get(spec.arm, 0.0)

    return loss


def exact(effect: float, sd: float) -> Loss:
    """Paired differences whose mean and standard deviation over six seeds are these; seeds differ more."""
    noise = np.random.default_rng(1).normal(size=6)
    noise = (noise - noise.mean()) / noise.std(ddof=1)

    def loss(spec: TrialSpec) -> float:
        own = effect + sd * noise[spec.replicate % 6] if spec.arm == "csa" else 0.0
        return 3.4 + 0.03 * math.sin(spec.seed) + own

    return loss


def bowls(rows: Rows, tokens_per_step: Mapping[str, int], trunk: Callable[[str, float], float]) -> Rows:
    """The same trials with curves: before the decay, held-out loss is a function of arm and tokens."""
    made = []
    for row in rows:
        points = []
        for i in range(1, 9):
            step = STEPS * i // 8
            tokens = step * tokens_per_step[row.spec.arm]
            points.append(
                Point(
                    step=step,
                    tokens=tokens,
                    mflop=step * row.spec.step_mflop,
                    seconds=step * 0.02,
                    lr=RATE,
                    val_loss=trunk(row.spec.arm, tokens) + 0.001 * (row.spec.seed % 3),
                )
            )
        made.append(change(row, curve=tuple(points), tokens=points[-1].tokens))
    return tuple(made)


def judged(plan: Plan, rows: Rows) -> Verdict:
    (found,) = verdict.verdicts(plan, rows)
    return found


def ids(found: Verdict) -> set[str]:
    return {caveat.id for caveat in found.caveats}


def blockers(found: Verdict) -> set[str]:
    return {caveat.id for caveat in found.caveats if caveat.blocks}


def edit(rows: Rows, which: Callable[[TrialRow], bool], **values: object) -> Rows:
    assert any(which(row) for row in rows)
    return tuple(change(row, **values) if which(row) else row for row in rows)


def confirm(arm: str, *replicates: int) -> Callable[[TrialRow], bool]:
    return lambda row: (
        row.spec.phase == "confirm"
        and row.spec.arm == arm
        and (not replicates or row.spec.replicate in replicates)
    )


def search(arm: str) -> Callable[[TrialRow], bool]:
    return lambda row: row.spec.phase == "search" and row.spec.arm == arm


def healthy(effect: float = -0.03, sd: float = 0.005, replicates: int = 6) -> tuple[Plan, Rows]:
    plan, rows = study(replicates=replicates)
    return plan, promised(with_losses(rows, exact(effect, sd)), effect)


def promised(rows: Rows, effect: float) -> Rows:
    """Search losses of csa better by `-effect`."""
    return tuple(
        change(row, val_loss=row.result.val_loss + effect) if search("csa")(row) and row.result else row
        for row in rows
    )


def diverge(rows: Rows, arm: str, *replicates: int) -> Rows:
    cap = math.log(512)
    return edit(rows, confirm(arm, *replicates), state="diverged", outcome="diverged", val_loss=cap)
