"""What the MLflow mirror says about a study, as plain data: flat runs, per trial, per arm, and for the study.

Everything here is a pure function of a `StudyView`, so that a mirror can be rebuilt from nothing and an
unchanged study adds nothing. Time stamps of curve points follow from the study's creation and the step alone:
MLflow takes an identical point twice as one, but a point with another time as a second one.
"""

import dataclasses
import hashlib
import math
import statistics
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ablate import matching, schema, stages
from ablate.enrolment import ENDED
from ablate.records import ArmPlan, Plan, StudyView, TrialRow
from ablate.scores import ACCURACY

CURVE_POINTS = 100
"""Points per curve that are mirrored; every evaluation is, training losses are thinned."""

RESTING = ("stopped", "done")
"""States of a study in which its numbers stand still."""

_STATUS = {
    "queued": "SCHEDULED",
    "running": "RUNNING",
    "complete": "FINISHED",
    "diverged": "FINISHED",  # the run did its work; its outcome is a tag
    "failed": "FAILED",
    "cancelled": "KILLED",
}
_UNVARIED = ("sweep", "budget", "launcher", "tracking", "home", "storage", "plugins", "data")
_VALUE_LENGTH = 500
_NOTE_LENGTH = 19_000  # of the 20,000 characters that MLflow takes


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One value of one metric; `timestamp` in milliseconds."""

    key: str
    value: float
    step: int
    timestamp: int


@dataclass(frozen=True, kw_only=True)
class RunContent:
    """One MLflow run as it should be.

    Attributes:
        key: what it stands for, `trial/47`, `arm/v4` or `study`; a tag of the same text finds the run again.
        started, ended: milliseconds; `ended` is None while it goes on.
    """

    key: str
    name: str
    status: str
    started: int
    ended: int | None
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: tuple[Metric, ...]

    @property
    def digest(self) -> str:
        """Changes when anything does."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]


def contents(view: StudyView) -> Iterator[RunContent]:
    """All runs of a study's experiment: trials that have started, then arms, then the study."""
    params = _proposal_params(view) | arm_params(view.plan)
    for row in view.trials:
        if row.attempts or row.started_at or row.result:
            yield _trial(view, row, params[row.spec.arm])
    for arm in view.plan.arms:
        yield _arm(view, arm, params[arm.name])
    yield _study(view)


def arm_params(plan: Plan) -> dict[str, dict[str, str]]:
    """Parameters that tell arms apart, and the sizes a reader wants beside them; by arm."""
    flat = {arm.name: dict(_flatten(schema.to_dict(arm.run))) for arm in plan.arms}
    keys = sorted(set().union(*flat.values()))
    differing = [
        key
        for key in keys
        if not key.startswith(("model.compress_ratios", stages.KEY))
        and len({str(values.get(key)) for values in flat.values()}) > 1
    ]
    curricula = {arm.name: stages.text(arm.run.trainer) for arm in plan.arms}
    return {
        arm.name: {
            "arm": _text(arm.name),
            "compress_ratios": _text(arm.variant.schedule),
            **{slot: _text(getattr(arm.run, slot).name) for slot in ("residual", "ffn", "router")},
            **{_param_name(key): _text(flat[arm.name].get(key, "")) for key in differing},
            **({"curriculum": _text(curricula[arm.name] or "none")} if any(curricula.values()) else {}),
            "hidden_size": str(arm.run.model.hidden_size),
            "num_hidden_layers": str(arm.run.model.num_hidden_layers),
            "seq_len": str(arm.run.trainer.seq_len),
            "batch_size": str(arm.run.trainer.batch_size),
        }
        for arm in plan.arms
    }


def _proposal_params(view: StudyView) -> dict[str, dict[str, str]]:
    """What the proposals of an open search set, by the name that their trials have in place of an arm."""
    return {
        f"p{proposal.number}": {
            "arm": f"p{proposal.number}",
            **{_param_name(key): _text(value) for key, value in proposal.overrides.items()},
            "compress_ratios": _text(proposal.schedule),
        }
        for proposal in (view.search.proposals if view.search else ())
    }


def differing_params(plan: Plan) -> list[str]:
    """Names of the parameters in which arms differ, `arm` itself left out: the axes of a comparison."""
    params = arm_params(plan)
    names = next(iter(params.values()), {})
    return [n for n in names if n != "arm" and len({p.get(n) for p in params.values()}) > 1]


def _trial(view: StudyView, row: TrialRow, params: Mapping[str, str]) -> RunContent:
    spec, result = row.spec, row.result
    priced = [arm for arm in view.plan.arms if arm.name == spec.arm]  # a proposal of an open search is no arm
    what = f"lr {spec.lr:.4g} search" if spec.phase == "search" else f"s{spec.replicate} confirm"
    outcome = result.outcome if result else ""
    tags = {
        "ablate.kind": "trial",
        "ablate.study": view.name,
        "ablate.trial": str(row.number),
        "ablate.arm": spec.arm,
        "ablate.replicate": str(spec.replicate),
        "ablate.phase": spec.phase,
        "ablate.fingerprint": spec.fingerprint,
        "ablate.state": row.state,
        "ablate.outcome": outcome,
        "ablate.reason": result.reason if result else "",
        "ablate.reused_from": row.reused_from or "",
        "ablate.tokens_hash": result.tokens_hash if result else "",
        **_source_tags(view),
    }
    metrics = list(_curve(view, row))
    values: dict[str, float | None] = {**_costs(priced[0])} if priced else {}
    if result is not None:
        values |= {
            "val/loss": result.val_loss,
            "val/bpb": result.val_bpb,
            "cost/tokens": result.tokens,
            "cost/useful_mflop": result.useful_mflop,
            "cost/evaluation_mflop": row.evaluation_mflop,
            "cost/charged_mflop": row.charged_mflop,
            "cost/seconds": result.seconds,
            "alarms": len(result.alarms),
            **result.metrics,
        }
    metrics += _at_zero(values, _milliseconds(view.created_at))
    return RunContent(
        key=f"trial/{row.number}",
        name=_text(f"{row.number:03d} {spec.arm} {what}"),
        status=_STATUS.get(row.state, "RUNNING"),
        started=_milliseconds(row.started_at or view.created_at),
        ended=_milliseconds(row.ended_at) if row.ended_at and row.state in ENDED else None,
        tags=_tags(tags),
        params={
            **params,
            "lr": f"{spec.lr:.4g}",
            "phase": spec.phase,
            "replicate": str(spec.replicate),
            "seed": str(spec.seed),
            "steps": str(spec.steps),
        },
        metrics=tuple(metrics),
    )


def _arm(view: StudyView, arm: ArmPlan, params: Mapping[str, str]) -> RunContent:
    """Means over an arm's confirm seeds, and its verdict; written once the study rests."""
    confirmed = [r for r in view.trials if r.spec.arm == arm.name and r.spec.phase == "confirm"]
    results = [row.result for row in confirmed if row.state == "complete" and row.result]
    losses, bpbs = [r.val_loss for r in results], [r.val_bpb for r in results]
    costs: dict[str, float | None] = {**_costs(arm), "cost/tokens": arm.tokens}
    values: dict[str, float | None] = {}
    tags = {"ablate.kind": "arm", "ablate.study": view.name, "ablate.arm": arm.name, **_source_tags(view)}
    tags["ablate.baseline"] = str(arm.is_baseline).lower()
    tags["ablate.resolved"] = ", ".join(matching.told(arm.resolved))
    resting = view.state in RESTING
    verdict = next((v for v in view.verdicts if v.arm == arm.name), None)
    if resting:
        values |= _summary("val/loss", losses) | _summary("val/bpb", bpbs)
        values["val/n"] = len(losses)
        values["tuned/lr"] = next((curve.best for curve in view.lr_curves if curve.arm == arm.name), None)
        for score in (score for score in view.scores if score.arm == arm.name):
            facts = dataclasses.asdict(score)
            values |= {f"probe/{key}": value for key, value in facts.items() if key not in ("arm", "reach")}
            values |= {f"{ACCURACY}/{far}": value for far, value in score.reach}
    if resting and verdict is not None:
        values |= {
            "delta/mean": verdict.delta,
            "delta/low": verdict.low,
            "delta/high": verdict.high,
            "delta/sd": verdict.sd,
            "delta/n": verdict.n,
            "delta/p_holm": verdict.p_holm,
            "delta/detectable": verdict.detectable,
        }
        if verdict.second is not None:
            at = f"delta_at_equal_{verdict.second.currency}"
            values |= {f"{at}/{key}": getattr(verdict.second, key) for key in ("low", "high", "amount")}
            values[f"{at}/mean"] = verdict.second.delta
        tags |= {
            "ablate.verdict": verdict.kind,
            "ablate.level": verdict.level,
            "ablate.sentence": verdict.sentence,
            "mlflow.note.content": plain(verdict.sentence),
        }
    ended = _last_end(view)
    return RunContent(
        key=f"arm/{arm.name}",
        name=_text(f"arm {arm.name}"),
        status="FINISHED" if resting else "RUNNING",
        started=_milliseconds(view.created_at),
        ended=ended if resting else None,
        tags=_tags(tags),
        params=params,
        metrics=(*_at_zero(costs, _milliseconds(view.created_at)), *_at_zero(values, ended)),
    )


def _study(view: StudyView) -> RunContent:
    plan = view.plan
    planned: dict[str, float | None] = {
        "plan/total_mflop": plan.total_mflop,
        "plan/trial_mflop": plan.trial_mflop,
        "plan/detectable_effect": plan.detectable_effect,
        "plan/noise_sd": plan.noise_sd,
    }
    planned |= {f"plan/step_seconds/{speed.arm}": speed.step_seconds for speed in plan.speeds}
    ledger: dict[str, float | None] = {}
    for account in view.accounts if view.state in RESTING else ():
        for amount in ("cap", "spent", "waste"):
            ledger[f"ledger/{account.phase}_{amount}_mflop"] = getattr(account, amount)
    tags = {
        "ablate.kind": "study",
        "ablate.study": view.name,
        "ablate.state": view.state,
        "ablate.fingerprint": plan.fingerprint,
        "ablate.question": plan.question,
        **{f"provenance.{key}": value for key, value in view.provenance.items()},
        **_source_tags(view),
    }
    resting = view.state in RESTING
    ended = _last_end(view)
    return RunContent(
        key="study",
        name="study",
        status="FINISHED" if resting else "RUNNING",
        started=_milliseconds(view.created_at),
        ended=ended if resting else None,
        tags=_tags(tags),
        params={
            "sweep": _text(plan.run.sweep.name),
            "baseline": _text(plan.baseline.name),
            "equal": plan.run.budget.match,
            "arms": str(plan.planned_arms),
        },
        metrics=(*_at_zero(planned, _milliseconds(view.created_at)), *_at_zero(ledger, ended)),
    )


def note(view: StudyView) -> str:
    """The experiment's note in Markdown: the question, then a line per verdict, as many as MLflow takes."""
    lines = [f"**{plain(_text(view.plan.question))}**", "", f"Study `{view.name}`, {view.state}."]
    lines += [""] if view.verdicts else []
    for shown, verdict in enumerate(view.verdicts):
        lines.append(f"- {plain(_text(verdict.sentence))}")
        if len("\n".join(lines)) > _NOTE_LENGTH:
            lines[-1] = f"- and {len(view.verdicts) - shown} more"
            break
    return "\n".join(lines)


def plain(text: str) -> str:
    """Text that Markdown and HTML show as it is."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|!#~" else c for c in " ".join(text.split()))


def _curve(view: StudyView, row: TrialRow) -> Iterator[Metric]:
    """Losses over the share of the allowance, in per mille, which puts arms of unequal steps on one axis."""
    points = list(row.result.curve) if row.result else []
    if row.result is None and row.progress is not None:
        points = [row.progress]
    stride = max(1, math.ceil(len(points) / CURVE_POINTS))
    for i, point in enumerate(points):
        step = round(1000 * row.spec.charge(point.step) / max(1, row.spec.allowance_mflop))
        stamp = _milliseconds(view.created_at) + point.step
        thin = i % stride == 0 or i == len(points) - 1
        for key, value, kept in (
            ("curve/val_loss", point.val_loss, True),
            ("curve/accuracy", point.accuracy, True),
            ("curve/train_loss", point.train_loss, thin),
            ("curve/lr", point.lr, thin),
        ):
            if kept and value is not None and math.isfinite(value):
                yield Metric(key=key, value=float(value), step=step, timestamp=stamp)
        for key, value in point.diagnostics.items():
            yield Metric(key=_param_name(f"curve/{key}"), value=value, step=step, timestamp=stamp)


def _at_zero(values: Mapping[str, float | None], timestamp: int) -> list[Metric]:
    """Final values that are finite: MLflow stores infinity as the largest float, which no chart survives."""
    return [
        Metric(key=_param_name(key), value=float(value), step=0, timestamp=timestamp)
        for key, value in values.items()
        if value is not None and math.isfinite(value)
    ]


def _costs(arm: ArmPlan) -> dict[str, float | None]:
    return {
        "cost/params": arm.params,
        "cost/active_params": arm.active_params,
        "cost/train_flops_per_token": arm.train_flops_per_token,
        "cost/kv_bytes_per_token": arm.kv_bytes_per_token,
    }


def _summary(key: str, values: list[float | None]) -> dict[str, float | None]:
    known = [v for v in values if v is not None and math.isfinite(v)]
    return {
        key: statistics.fmean(known) if known else None,
        f"{key}_sd": statistics.stdev(known) if len(known) > 1 else None,
    }


def _source_tags(view: StudyView) -> dict[str, str]:
    """What MLflow's own columns show about where a run comes from."""
    tags = {"mlflow.source.name": "ablate", "mlflow.source.type": "LOCAL"}
    if commit := view.provenance.get("git_commit"):
        tags["mlflow.source.git.commit"] = commit
    return tags


def _last_end(view: StudyView) -> int:
    ends = [row.ended_at for row in view.trials if row.ended_at]
    return _milliseconds(max(ends, default=view.created_at))


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)


def _flatten(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a configuration by dotted key; what belongs to the study and not to the arm is left out."""
    for key, item in value.items():
        if not path and key in _UNVARIED:
            continue
        full = f"{path}{key}"
        if isinstance(item, dict):
            yield from _flatten(item, f"{full}.")
        elif not full.endswith(".name") or full.partition(".")[0] in schema.SLOT_GROUPS:
            yield full.removesuffix(".name").replace(".args.", "."), item


def _param_name(key: str) -> str:
    """MLflow allows letters, digits, and `_ - . : / space` in names."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "_-./: ") else "_" for c in key)[:200]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return "-".join(str(v) for v in value)
    text = str(value)
    return text if len(text) <= _VALUE_LENGTH else text[: _VALUE_LENGTH - 1] + "…"


def _tags(tags: Mapping[str, str]) -> dict[str, str]:
    """Empty tags are left out; long ones are cut."""
    return {_param_name(key): _text(value) for key, value in tags.items() if value}
