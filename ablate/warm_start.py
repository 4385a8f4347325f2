"""Results of an earlier search of the same space as the beginning of another one's history."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqlalchemy import select

from ablate import db, open_search, schema, stored
from ablate.errors import BadInputError
from ablate.home import Home
from ablate.records import Plan

if TYPE_CHECKING:
    from ablate.samplers import Heard

_FREE = ("sweep", "budget", "launcher", "tracking", "home", "plugins", "seed")
"""What may differ between the studies: losses still mean the same. Allowances are compared by themselves."""


def read(plan: Plan, home: Home) -> list[tuple[Mapping[str, Any], "Heard"]]:
    """Parameters and results of the study that `sweep.search.warm_start` names; empty where it names none.

    Raises:
        BadInputError: there is no such search, or its losses mean something else.
    """
    from ablate import proposals, study

    name = plan.run.sweep.search.warm_start
    if name is None:
        return []
    place = f"sweep.search.warm_start={name}"
    name = study.find(home, name)
    with db.reading(db.connect(home)) as connection:
        text = connection.execute(select(db.study.c.plan).where(db.study.c.name == name)).scalar_one()
        rows = proposals.rows(connection, name)
    if differing := _differences(plan, stored.plan_from_text(text)):
        raise BadInputError(
            f"{place}: study {name} differs in {', '.join(differing)}, so its losses say little here. "
            "Allowed: a study of the same space, model, data, trainer and compute per trial."
        )
    ended = [row for row in rows if row.kind == "new" and _loss(row) is not None]
    return [(json.loads(row.params), heard(plan, row)) for row in ended]


def heard(plan: Plan, row: db.Found) -> "Heard":
    """What Optuna is told of a recorded proposal under a plan's objectives and constraints."""
    from ablate.samplers import Heard

    loss = _loss(row)
    costs = json.loads(row.costs)
    limits = open_search.limits(plan.run)
    violations = {"invalid": float(row.kind == "invalid"), "diverged": float(row.state == "diverged")}
    violations |= open_search.violations(costs, limits) if costs else dict.fromkeys(limits, 0.0)
    objectives = plan.run.sweep.search.objectives[1:]
    values = () if loss is None else (loss, *(float(costs[name]) for name in objectives))
    attributes = {"by": row.sampler, "proposal": row.number, "kind": row.kind, "schedule": row.schedule}
    if row.reason:
        attributes["reason"] = row.reason
    if row.trial_number is not None:
        attributes["trial"] = row.trial_number
    return Heard(row.optuna, values, violations, attributes)


def _loss(row: db.Found) -> float | None:
    """Loss that a proposal's trial came to, capped where it diverged; None where it came to none."""
    if row.state not in ("complete", "diverged") or not row.result:
        return None
    return stored.result_from_text(row.result).val_loss


def _differences(plan: Plan, other: Plan) -> list[str]:
    """Keys in which two searches differ so that their losses cannot be compared."""
    mine, theirs = (schema.to_dict(p.registered.run) for p in (plan, other))
    found = [key for key in mine if key not in _FREE and mine[key] != theirs[key]]
    for key, a, b in (
        ("sweep.space", mine["sweep"]["space"], theirs["sweep"]["space"]),
        ("budget.per_trial", plan.trial_mflop, other.trial_mflop),
        ("data", plan.data_fingerprint, other.data_fingerprint),
    ):
        if a != b and key not in found:
            found.append(key)
    return found
