"""A report for programs: strict JSON, where a number that is not finite is null."""

import dataclasses
import json

from ablate import alarms, registration, schema
from ablate.jsonable import jsonable
from ablate.records import StudyView
from ablate.report.table import Table
from components.spec import FLOP_CONVENTION


def to_json(view: StudyView, contrasts: Table) -> str:
    """All numbers of verdicts, effects, scores, search and tuning; ledger, configuration, registration, provenance."""
    plan, run = view.plan, schema.to_dict(dataclasses.replace(view.plan.run, home=None, storage=None))
    whole = {
        "study": view.name,
        "state": view.state,
        "created_at": view.created_at,
        "question": plan.question,
        "fingerprint": plan.fingerprint,
        "flop_convention": FLOP_CONVENTION,
        "baseline": plan.baseline.name,
        "verdicts": [dataclasses.asdict(verdict) for verdict in view.verdicts],
        "effects": dataclasses.asdict(view.effects) if view.effects else None,
        "search": dataclasses.asdict(view.search) if view.search else None,
        "scores": [dataclasses.asdict(score) for score in view.scores],
        "alarms": [dataclasses.asdict(alarm) for alarm in alarms.of_study(view)],
        "contrasts": list(contrasts.rows),
        "lr_curves": [dataclasses.asdict(curve) for curve in view.lr_curves],
        "accounts": [dataclasses.asdict(account) for account in view.accounts],
        "plan": {
            field.name: getattr(plan, field.name)
            for field in dataclasses.fields(plan)
            if field.name not in ("run", "arms")
        },
        "arms": {
            arm.name: {"fingerprint": arm.variant.fingerprint, **arm.variant.canonical()} for arm in plan.arms
        },
        "config": run,
        "registration": registration.registered(plan) | {"hash": registration.digest(plan)},
        "deviations": registration.deviations(view),
        "provenance": view.provenance,
    }
    return json.dumps(jsonable(whole), indent=1, allow_nan=False) + "\n"
