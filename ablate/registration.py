"""What a study fixes before anything is spent, and what deviates from it later. Methodology §C3.

The hash of the registration is stored when the study is created; later it is made again from the plan that
the study runs by, so neither can change without the other.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from ablate import matching, stages
from ablate.jsonable import jsonable
from ablate.records import ArmPlan, Plan, StudyView
from ablate.schema import Sweep

HASH, AFTER = "registration", "registered_after"
"""Facts of a study's provenance: the hash, and studies of the same contrasts that were there before."""


def registered(plan: Plan) -> dict[str, Any]:
    """Question, contrasts, margin and stopping rule of a plan, JSON-able."""
    plan = plan.registered
    sweep = plan.run.sweep
    return {
        "question": plan.question,
        "design": sweep.design,
        "arms": {arm.name: _named(arm) for arm in plan.arms},
        "contrasts": [f"{arm.name} - {plan.baseline.name}" for arm in plan.arms if not arm.is_baseline],
        "equal": plan.run.budget.match,
        **({"resolved": resolved} if (resolved := _resolved(plan)) else {}),
        "compute_per_trial_mflop": plan.trial_mflop,
        "margin": sweep.confirm.margin,
        "alpha": sweep.confirm.alpha,
        "confirm_seeds": list(plan.confirm_seeds),
        "looks": list(sweep.confirm.looks),
        "stopping_rule": stopping_rule(sweep),
        **({"space": sweep.space, "search": dataclasses.asdict(sweep.search)} if sweep.searches else {}),
    }


def _resolved(plan: Plan) -> dict[str, list[str]]:
    """Sizes that the budget's currency changed, by arm."""
    return {arm.name: matching.told(arm.resolved) for arm in plan.arms if arm.resolved}


def digest(plan: Plan) -> str:
    """16 hex digits of the SHA-256 of what is registered."""
    text = json.dumps(registered(plan), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def facts(plan: Plan, others: Mapping[str, Plan]) -> dict[str, str]:
    """What is stored of a registration: its hash, and which studies had looked at its contrasts before.

    Args:
        others: plans of the studies that are there, by name.
    """
    before = [name for name, other in others.items() if _contrasts(plan) & _contrasts(other)]
    return {HASH: digest(plan), **({AFTER: ", ".join(sorted(before))} if before else {})}


def _contrasts(plan: Plan) -> set[tuple[str, str]]:
    base = _named(plan.baseline)
    return {(base, _named(arm)) for arm in plan.arms if not arm.is_baseline}


def _named(arm: ArmPlan) -> str:
    """What an arm is, whatever it is called: its model, and its curriculum where it has one."""
    return ", ".join(filter(None, [arm.variant.fingerprint, stages.text(arm.run.trainer)]))


def changes(old: Plan, new: Plan) -> str:
    """What a second run of a study asks for other than it registered, in words; empty where nothing."""
    was, now = registered(old), registered(new)
    told = (f"{key} {was[key]!r} is now {now.get(key)!r}" for key in was if was[key] != now.get(key))
    return "; ".join(told)


def deviations(view: StudyView) -> list[str]:
    """How a study came to be other than it was registered, in sentences; what is still to come is none."""
    return [*_of_the_plan(view), *_of_the_trials(view)]


def _of_the_plan(view: StudyView) -> Iterable[str]:
    stored, now = view.provenance.get(HASH), digest(view.plan)
    if stored is None:
        yield "no registration was stored when the study was created"
    elif stored != now:
        yield f"the plan was changed after it was registered: its hash was {stored}, and is {now}"
    if before := view.provenance.get(AFTER):
        yield f"registered after studies of the same contrasts, whose results may have led to it: {before}"
    for _, kind, text in view.events:
        if kind == "deviation":
            yield text


def _of_the_trials(view: StudyView) -> Iterable[str]:
    if view.state != "done":
        return
    confirm = view.plan.run.sweep.confirm
    judged = {verdict.arm: verdict for verdict in view.verdicts}
    for arm in view.plan.arms:
        own = [row for row in view.trials if row.spec.phase == "confirm" and row.spec.arm == arm.name]
        if not own:
            yield f"{arm.name} was not confirmed"
        elif not arm.is_baseline and arm.name not in judged:
            yield f"{arm.name} has no verdict"
        elif not arm.is_baseline and not confirm.looks and judged[arm.name].n < confirm.replicates:
            yield f"{arm.name} has {judged[arm.name].n} of {confirm.replicates} registered pairs"
        if lost := [row for row in own if row.state not in ("complete", "diverged")]:
            yield f"{len(lost)} confirm trials of {arm.name} came to no loss"
    for _, kind, text in view.events:
        if kind == "budget":
            yield text


def answer(view: StudyView) -> dict[str, Any]:
    """What a study found, as data: strict JSON."""
    return jsonable(
        {
            "study": view.name,
            "state": view.state,
            "question": view.plan.question,
            "baseline": view.plan.baseline.name,
            "verdicts": view.verdicts,
            "effects": view.effects,
            "scores": view.scores,
            "registration": {"hash": view.provenance.get(HASH), **registered(view.plan)},
            "deviations": deviations(view),
        }
    )


def stopping_rule(sweep: Sweep) -> str:
    """When the study ends, in one sentence or two."""
    search, confirm = sweep.search, sweep.confirm
    tuned = f"{search.points} learning rates per arm, up to {search.extensions} more where the best is at the edge"
    if not confirm.looks:
        return (
            f"Fixed: {tuned}, then {confirm.replicates} fresh seeds per arm; or the end of the compute. No look "
            "at results changes it."
        )
    looks = ", ".join(map(str, confirm.looks))
    return (
        f"{tuned[:1].upper()}{tuned[1:]}, then fresh seeds with looks at {looks}: an arm gets no more once a look "
        "finds a difference or equivalence, or hardly any chance of either; or the end of the compute. The looks "
        "share the error rate in proportion to what they add to the squared share of the seeds."
    )
