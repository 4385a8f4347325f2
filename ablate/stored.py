"""Plans, specifications, results and points as JSON text, and back, without any configuration library."""

import dataclasses
import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ablate import schema
from ablate.errors import BadInputError
from ablate.raised_alarm import RaisedAlarm
from ablate.records import ArmPlan, Plan, Point, Speed, TrialResult, TrialSpec
from ablate.stages import Stage
from ablate.variant import Variant

_ARM_NUMBERS = (
    "name",
    "is_baseline",
    "params",
    "active_params",
    "train_flops_per_token",
    "kv_bytes_per_token",
    "decode_flops",
    "step_mflop",
    "steps",
    "tokens",
    "mismatch",
    "optimizer_flops",
)
_PLAN_PARTS = ("run", "arms", "lr_grid", "confirm_seeds", "warnings", "speeds")


def plan_to_text(plan: Plan) -> str:
    """A plan as JSON; an arm's variant is kept as its configuration and number of token rows."""
    values = {f.name: getattr(plan, f.name) for f in dataclasses.fields(Plan) if f.name not in _PLAN_PARTS}
    return json.dumps(
        values
        | {name: list(getattr(plan, name)) for name in ("lr_grid", "confirm_seeds", "warnings")}
        | {"run": schema.to_dict(plan.run), "arms": [_arm_to_dict(arm) for arm in plan.arms]}
        | {"speeds": [dataclasses.asdict(speed) for speed in plan.speeds]}
    )


@functools.lru_cache(maxsize=32)
def plan_from_text(text: str) -> Plan:
    """Inverse of `plan_to_text`. Remembered, because a live view asks again and again.

    Raises:
        BadInputError: another version of `ablate` wrote it; so do all that read here.
    """
    with _readable("plan"):
        values = json.loads(text)
        tuples = {name: tuple(values[name]) for name in ("lr_grid", "confirm_seeds", "warnings")}
        tuples["speeds"] = tuple(Speed(**speed) for speed in values["speeds"])
        arms = tuple(_arm_from_dict(arm) for arm in values["arms"])
        return Plan(**{**values, **tuples, "run": schema.from_dict(values["run"]), "arms": arms})


@contextmanager
def _readable(what: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise BadInputError(
            f"this study was made by another version of ablate: its {what} cannot be read by this one "
            f"({type(error).__name__}: {error}). Use the version that made it, or run the sweep in another home."
        ) from error


def _arm_to_dict(arm: ArmPlan) -> dict[str, Any]:
    numbers = {name: getattr(arm, name) for name in _ARM_NUMBERS}
    numbers |= {"resolved": arm.resolved, "evaluations": arm.evaluations}
    early = [dataclasses.asdict(stage) for stage in arm.early]
    return numbers | {
        "run": schema.to_dict(arm.run),
        "vocab_size": arm.variant.dims.vocab_size,
        "early": early,
    }


def _arm_from_dict(values: dict[str, Any]) -> ArmPlan:
    run = schema.from_dict(values["run"])
    variant = Variant.from_run(run, vocab_size=values["vocab_size"])
    numbers = {name: values[name] for name in _ARM_NUMBERS}
    resolved = {key: (before, after) for key, (before, after) in values["resolved"].items()}
    return ArmPlan(**numbers, run=run, variant=variant, resolved=resolved, **_staged(values))


def _staged(values: dict[str, Any]) -> dict[str, Any]:
    """Early stages and evaluations of an arm or trial."""
    return {
        "early": tuple(Stage(**stage) for stage in values["early"]),
        "evaluations": tuple((step, mflop) for step, mflop in values["evaluations"]),
    }


def spec_to_text(spec: TrialSpec) -> str:
    """A trial's specification as JSON."""
    return json.dumps(dataclasses.asdict(spec))


@functools.lru_cache(maxsize=4096)
def spec_from_text(text: str) -> TrialSpec:
    """Inverse of `spec_to_text`."""
    with _readable("trial"):
        values = json.loads(text)
        return TrialSpec(**{**values, **_staged(values)})


def result_to_text(result: TrialResult) -> str:
    """A trial's result as JSON; numbers that are not finite stay what they are."""
    return json.dumps(dataclasses.asdict(result))


@functools.lru_cache(maxsize=4096)
def result_from_text(text: str) -> TrialResult:
    """Inverse of `result_to_text`."""
    with _readable("result"):
        values = json.loads(text)
        parts = {
            "curve": tuple(Point(**point) for point in values["curve"]),
            "alarms": tuple(RaisedAlarm(**alarm) for alarm in values["alarms"]),
        }
        return TrialResult(**{**values, **parts})


def point_to_text(point: Point) -> str:
    """A point of a curve as JSON."""
    return json.dumps(dataclasses.asdict(point))


def point_from_text(text: str) -> Point:
    """Inverse of `point_to_text`."""
    return Point(**json.loads(text))
