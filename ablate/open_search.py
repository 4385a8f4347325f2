"""What an open search may ask for, and the price of what it proposes, known before anything is spent."""

import dataclasses
import hashlib
import importlib.util
import json
import math
from collections.abc import Mapping
from typing import Any

from ablate import arms, division, schema, space, units
from ablate.errors import BadInputError
from ablate.records import ArmPlan, Plan
from ablate.tree import apply_arm
from ablate.variant import Variant
from components import registry

LOSS = "loss"
COSTS = ("kv_bytes_per_token", "train_flops_per_token", "decode_flops", "params", "active_params")
"""Costs that are known without training: fields of `ArmPlan`, for constraints and further objectives."""


_MISMATCHED = {
    "tokens": "tokens",
    "params": "params",
    "active_params": "active_params",
    "kv_bytes": "kv_bytes_per_token",
}
"""Currency to the field of `ArmPlan` by which a proposal differs from the baseline in it."""


def check(run: schema.Run) -> space.Space:
    """The space of a search whose settings fit together.

    Raises:
        BadInputError: names the key, the value and what is allowed.
    """
    search, found = run.sweep.search, space.read(run)
    if run.budget.match != "flops":
        raise BadInputError(
            f"budget.match={run.budget.match} is not possible with sweep.design=search: what other proposals will "
            "need is not known when the first is trained. Allowed: flops."
        )
    if run.sweep.ladder:
        raise BadInputError("sweep.ladder is not possible with sweep.design=search. Allowed: [].")
    limits(run)
    _check_objectives(search.objectives)
    several = len(search.objectives) > 1
    if several and search.sampler == "cmaes":
        raise BadInputError(
            f"sweep.search.sampler=cmaes has one objective, not {search.objectives}. Allowed: tpe, gp, nsga2, qmc, "
            "brute_force, random."
        )
    if search.sampler == "cmaes" and importlib.util.find_spec("cmaes") is None:
        raise BadInputError(
            "sweep.search.sampler=cmaes needs the package cmaes: pip install 'ablate[cmaes]'."
        )
    if search.sampler == "brute_force" and (endless := found.ranges()):
        raise BadInputError(
            f"sweep.search.sampler=brute_force cannot try all values of {endless[0].name}. Allowed: a list of "
            f"choices in sweep.space.{endless[0].name}."
        )
    return found


def _check_objectives(objectives: list[str]) -> None:
    if objectives[:1] != [LOSS] or len(set(objectives)) < len(objectives):
        raise BadInputError(
            f"sweep.search.objectives={objectives}: the first is {LOSS}, and each stands once. "
            f"Allowed beside it: {', '.join(COSTS)}."
        )
    for name in objectives[1:]:
        if name not in COSTS:
            raise BadInputError(f"sweep.search.objectives: {registry.unknown('known cost', name, COSTS)}")


def limits(run: schema.Run) -> dict[str, float]:
    """Largest allowed value by known cost.

    Raises:
        BadInputError: no such cost, or no positive number.
    """
    found = {}
    for name, given in run.sweep.search.constraints.items():
        if name not in COSTS:
            raise BadInputError(f"sweep.search.constraints: {registry.unknown('known cost', name, COSTS)}")
        try:
            found[name] = float(given)
        except (TypeError, ValueError):
            found[name] = math.nan
        if not 0 < found[name] < math.inf:
            raise BadInputError(
                f"sweep.search.constraints.{name}={given} is no limit. Allowed: a positive number."
            )
    return found


def price(plan: Plan, name: str, overrides: dict[str, Any], charged: bool) -> ArmPlan:
    """A proposal as an arm of that name, priced as the plan prices its arms.

    Args:
        charged: whether a step is charged with the optimizer's own products.

    Raises:
        BadInputError: a model that cannot be built or that cannot work on the plan's sequences, one of which a
            trial's allowance does not pay for a single step, or one that is too dear to evaluate.
    """
    from ablate import curriculum, optimization

    run = apply_arm(plan.run, overrides, name)
    variant = Variant.from_run(run, plan.baseline.variant.dims.vocab_size)
    seq_len = run.trainer.seq_len
    variant.check(seq_len)
    curriculum.check(run, variant, f"arm '{name}'")
    cost = variant.costs(seq_len).total
    update = optimization.flops_per_step(run.optimizer, variant)
    charges = curriculum.rounded(curriculum.flops(run, variant, charged * update))
    steps = plan.trial_mflop // charges[-1]
    if steps < 1:
        raise BadInputError(
            f"one optimizer step takes {units.compute(charges[-1])}, and a trial is allowed "
            f"{units.compute(plan.trial_mflop)}"
        )
    solved = curriculum.solve({name: run.trainer}, {name: charges}, plan.trial_mflop, {name: steps}, "flops")
    arm = arms.priced(name, run, variant, cost, solved[name], optimizer_flops=update, mismatch={})
    allowed = division.evaluations_allowed(a.evaluation_mflop for a in plan.registered.arms)
    if arm.evaluation_mflop > allowed:
        raise BadInputError(
            f"evaluations take {units.compute(arm.evaluation_mflop)} in a trial, and a proposal's may take "
            f"{units.compute(allowed)}, {division.ROOM} times those of the dearest arm"
        )
    own, base = (
        {key: getattr(one, field) for key, field in _MISMATCHED.items()} for one in (arm, plan.baseline)
    )
    return dataclasses.replace(arm, mismatch=arms.relative(own, base))


def costs(arm: ArmPlan) -> dict[str, float]:
    """Known costs of an arm by name."""
    return {name: getattr(arm, name) for name in COSTS}


def violations(costs: Mapping[str, float], allowed: Mapping[str, float]) -> dict[str, float]:
    """By how much, relative to its limit, each constrained cost is exceeded; zero or less where it is not."""
    return {name: costs[name] / limit - 1 for name, limit in allowed.items()}


def identity(arm: ArmPlan) -> str:
    """16 hex digits that are equal for the same model with the same optimizer, whatever its learning rate."""
    optimizer = dataclasses.asdict(dataclasses.replace(arm.run.optimizer, lr=0.0))
    text = json.dumps([arm.variant.fingerprint, optimizer], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
