"""A report for programs: strict JSON, where a number that is not finite is null."""

import dataclasses
import json
import math
from typing import Any

from ablate import schema
from ablate.records import StudyView
from ablate.report.table import Table
from components.spec import FLOP_CONVENTION


def to_json(view: StudyView, contrasts: Table) -> str:
    """Verdicts with all their numbers, the contrast table, tuning, ledger, configuration and provenance."""
    plan, run = view.plan, schema.to_dict(dataclasses.replace(view.plan.run, home=None))
    whole = {
        "study": view.name,
        "state": view.state,
        "created_at": view.created_at,
        "question": plan.question,
        "fingerprint": plan.fingerprint,
        "flop_convention": FLOP_CONVENTION,
        "baseline": plan.baseline.name,
        "verdicts": [dataclasses.asdict(verdict) for verdict in view.verdicts],
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
        "provenance": view.provenance,
    }
    return json.dumps(_finite(whole), indent=1, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
