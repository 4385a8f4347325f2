"""The tables of a report: what is in which row, and how each value is written."""

import dataclasses
import math
from collections import defaultdict
from typing import Any

from ablate import matching
from ablate.records import StudyView, TrialRow, Verdict
from ablate.report import formats
from ablate.report.arms import Arm, confirmed, final_loss, mean, printable
from ablate.report.table import Column, Row, Table, plain

KINDS = {
    "helps": "helps",
    "hurts": "hurts",
    "equivalent": "equivalent",
    "inconclusive": "inconclusive",
    "baseline": "baseline",
    "": "no verdict yet",
}
"""Verdict kinds as a badge says them."""


def contrasts(view: StudyView, arms: dict[str, Arm]) -> Table:
    """The contrast table: one row per arm, the baseline first, then by difference."""
    verdicts = {verdict.arm: verdict for verdict in view.verdicts}
    curves = {curve.arm: curve for curve in view.lr_curves}
    done = confirmed(view)
    base = view.plan.baseline
    base_seconds = mean([_seconds(row) for row in done[base.name].values()])
    rows: list[Row] = []
    for arm in view.plan.arms:
        verdict, curve = verdicts.get(arm.name), curves.get(arm.name)
        own = list(done[arm.name].values())
        losses = [final_loss(row) for row in own]
        seconds = mean([_seconds(row) for row in own])
        rows.append(
            {
                "arm": arm.name,
                "verdict": verdict.kind if verdict else "baseline" if arm.is_baseline else "",
                "level": verdict.level if verdict else None,
                "n": verdict.n if verdict else len(own),
                "planned": len(view.plan.confirm_seeds),
                "delta": verdict.delta if verdict else None,
                "low": verdict.low if verdict else None,
                "high": verdict.high if verdict else None,
                **_second(verdict),
                "p_t": verdict.p_t if verdict else None,
                "p_holm": verdict.p_holm if verdict else None,
                "p_flip": verdict.p_flip if verdict else None,
                "p_tost": verdict.p_tost if verdict else None,
                "margin": verdict.margin if verdict else None,
                "detectable": verdict.detectable if verdict else None,
                "sd": verdict.sd if verdict else None,
                "rho": verdict.rho if verdict else None,
                "diverged": sum(row.state == "diverged" for row in own),
                "ended": len(own),
                "loss": verdict.loss if verdict else mean(losses),
                "bpb": verdict.bpb if verdict else mean([row.result.val_bpb for row in own if row.result]),
                "search_loss": verdict.search_loss if verdict else None,
                "lr": verdict.lr if verdict else curve.best if curve else None,
                "lr_at_edge": curve.at_edge if curve else None,
                "params": arm.params,
                "active_params": arm.active_params,
                "kv_bytes_per_token": arm.kv_bytes_per_token,
                "train_flops_per_token": arm.train_flops_per_token,
                "decode_flops": arm.decode_flops,
                "steps": arm.steps,
                "tokens": arm.tokens,
                "seconds": seconds,
                "seconds_ratio": seconds / base_seconds if seconds and base_seconds else None,
                **{f"mismatch_{currency}": value for currency, value in _mismatch(view, arm.name).items()},
            }
        )
    rows.sort(
        key=lambda row: (row["verdict"] != "baseline", math.inf if row["delta"] is None else row["delta"])
    )
    caption = f"Differences to {arms[base.name].label} at equal {matching.WORDS[view.plan.run.budget.match]}"
    return Table(caption, tuple(_contrast_columns(arms)), tuple(rows))


def _contrast_columns(arms: dict[str, Arm]) -> list[Column]:
    effect, cost = "effect", "what it was bought with"
    return [
        Column("Arm", lambda r: arms[r["arm"]].label, numeric=False, paper=True),
        Column("Verdict", lambda r: KINDS[r["verdict"]], False, effect, "badge", paper=True),
        Column("Seeds", lambda r: _of(r["n"], r["planned"]), group=effect, paper=True),
        Column("Δ loss [95 % interval], nats", _interval, group=effect, wide=True, paper=True),
        Column("Δ, second reading", _second_interval, group=effect, wide=True),
        Column("p, Holm", lambda r: formats.probability(r["p_holm"]), group=effect, paper=True),
        Column("p, sign flip", lambda r: formats.probability(r["p_flip"]), group=effect, paper=True),
        Column("p, equivalence", lambda r: formats.probability(r["p_tost"]), group=effect),
        Column("Detectable, nats", lambda r: formats.loss(r["detectable"]), group=effect),
        Column("Diverged", lambda r: f"{r['diverged']} of {r['ended']}", group=effect),
        Column("Level", lambda r: r["level"] or formats.ABSENT, group=effect, paper=True),
        Column("Loss, nats", lambda r: formats.loss(r["loss"]), group=cost, paper=True),
        Column("Bits per byte", lambda r: formats.loss(r["bpb"]), group=cost, paper=True),
        Column("Learning rate", _tuned, group=cost),
        Column("Parameters", lambda r: formats.integer(r["params"]), group=cost),
        Column("KV bytes/token", lambda r: formats.general(r["kv_bytes_per_token"]), group=cost, paper=True),
        Column("Train FLOP/token", lambda r: formats.flops(r["train_flops_per_token"]), group=cost),
        Column("Steps", lambda r: formats.integer(r["steps"]), group=cost),
        Column("Tokens", lambda r: formats.integer(r["tokens"]), group=cost),
        Column("Time, ratio", lambda r: formats.ratio(r["seconds_ratio"]), group=cost),
    ]


def mismatches(view: StudyView, arms: dict[str, Arm]) -> Table:
    """What the budget does not make equal, relative to the baseline."""
    currencies = sorted({currency for arm in view.plan.arms for currency in arm.mismatch})
    solved = any(arm.resolved for arm in view.plan.arms)
    rows = [
        [
            arms[arm.name].label,
            *(formats.change(arm.mismatch.get(currency)) for currency in currencies),
            *([", ".join(matching.told(arm.resolved)) or "nothing"] if solved else []),
        ]
        for arm in view.plan.arms
        if not arm.is_baseline
    ]
    header = ["Arm", *currencies, *(["Re-solved"] if solved else [])]
    return plain("What is not equal, relative to the baseline", header, rows)


def trials(view: StudyView, arms: dict[str, Arm]) -> Table:
    """Every trial, whatever became of it."""
    rows = [_trial(row) for row in view.trials]
    columns = (
        Column("Trial", lambda r: str(r["trial"])),
        # a proposal of an open search is no arm
        Column("Arm", lambda r: arms[r["arm"]].label if r["arm"] in arms else r["arm"], numeric=False),
        Column("Phase", lambda r: r["phase"], numeric=False),
        Column("Seed", lambda r: str(r["seed"])),
        Column("Learning rate", lambda r: formats.rate(r["lr"])),
        Column("Became", lambda r: r["state"], False, style="badge"),
        Column("Loss, nats", lambda r: formats.loss(r["val_loss"])),
        Column("Bits per byte", lambda r: formats.loss(r["val_bpb"])),
        Column("Steps", lambda r: _of(r["steps"], r["planned_steps"])),
        Column("Tokens", lambda r: formats.integer(r["tokens"])),
        Column("Useful", lambda r: formats.compute(r["useful_mflop"])),
        Column("Evaluation", lambda r: formats.compute(r["evaluation_mflop"])),
        Column("Charged", lambda r: formats.compute(r["charged_mflop"])),
        Column("Time", lambda r: formats.duration(r["seconds"])),
        Column("Attempts", lambda r: str(r["attempts"])),
        Column("Note", lambda r: _note(r), numeric=False),
    )
    return Table("All trials", columns, tuple(rows))


def _trial(row: TrialRow) -> Row:
    result, progress = row.result, row.progress
    return {
        "trial": row.number,
        "arm": row.spec.arm,
        "phase": row.spec.phase,
        "replicate": row.spec.replicate,
        "seed": row.spec.seed,
        "lr": row.spec.lr,
        "state": row.state,
        "val_loss": result.val_loss if result else None,
        "val_bpb": result.val_bpb if result else None,
        "steps": result.steps if result else progress.step if progress else 0,
        "planned_steps": row.spec.steps,
        "tokens": result.tokens if result else progress.tokens if progress else 0,
        "useful_mflop": result.useful_mflop if result else None,
        "evaluation_mflop": row.evaluation_mflop,
        "charged_mflop": row.charged_mflop,
        "seconds": result.seconds if result else None,
        "attempts": row.attempts,
        "reused_from": row.reused_from,
        "reason": result.reason if result else "",
        "tokens_hash": result.tokens_hash if result else "",
        "fingerprint": row.spec.fingerprint,
    }


def budget(view: StudyView) -> Table:
    """The ledger by phase, and its sum."""
    rows: list[Row] = [_account(dataclasses.asdict(account)) for account in view.accounts]
    total = {key: sum(row[key] for row in rows) for key in ("cap", "spent", "reserved", "waste")}
    rows.append(_account({"phase": "all", **total}))
    columns = (
        Column("Phase", lambda r: r["phase"], numeric=False),
        Column("Cap", lambda r: formats.compute(r["cap"])),
        Column("Useful", lambda r: formats.compute(r["useful"])),
        Column("Done again", lambda r: formats.compute(r["waste"])),
        Column("Reserved", lambda r: formats.compute(r["reserved"])),
        Column("Not spent", lambda r: formats.compute(r["unspent"])),
        Column("Used", lambda r: formats.share(r["utilisation"])),
    )
    return Table("Compute by phase", columns, tuple(rows))


def _account(values: Row) -> Row:
    cap, spent, reserved, waste = (values[key] for key in ("cap", "spent", "reserved", "waste"))
    return values | {
        "useful": spent - waste,
        "unspent": cap - spent - reserved,
        "utilisation": (spent - waste) / cap if cap else None,
    }


def models(view: StudyView, arms: dict[str, Arm]) -> Table:
    """The arms in words."""
    overrides = view.plan.run.sweep.arms
    rows: list[Row] = [
        {
            "arm": arm.name,
            "baseline": arm.is_baseline,
            "overrides": overrides.get(arm.name) or {},
            "schedule": arm.variant.schedule,
            "model": arm.variant.describe(),
            "fingerprint": arm.variant.fingerprint,
        }
        for arm in view.plan.arms
    ]
    columns = (
        Column("Arm", lambda r: arms[r["arm"]].label + (" (baseline)" if r["baseline"] else ""), False),
        Column(
            "Whole name", lambda r: r["arm"] if arms[r["arm"]].label != r["arm"] else "", False, wide=True
        ),
        Column("Differs by", lambda r: _overrides(r["overrides"]), False, style="code", wide=True),
        Column("Schedule", lambda r: r["schedule"], False, style="code", wide=True),
        Column("Model", lambda r: r["model"], False, wide=True),
        Column("Fingerprint", lambda r: r["fingerprint"], False, style="code"),
    )
    if all(arms[row["arm"]].label == row["arm"] for row in rows):
        columns = (columns[0], *columns[2:])
    return Table("What differs between arms, and the whole model of each", columns, tuple(rows))


def diagnostics(view: StudyView, arms: dict[str, Arm]) -> Table | None:
    """Final diagnostics, mean by arm, of confirm trials where there are some; None where there are none."""
    done = confirmed(view)
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for arm in view.plan.arms:
        rows = [row for row in done[arm.name].values() if row.state == "complete"] or [
            row for row in view.trials if row.spec.arm == arm.name and row.state == "complete"
        ]
        for row in rows:
            for name, value in (row.result.metrics if row.result else {}).items():
                if name.startswith("diag/") and math.isfinite(value):
                    found[name][arm.name].append(value)
    if not found:
        return None
    header = ["Diagnostic", *(arm.label for arm in arms.values())]
    rows = [
        [
            printable(name.removeprefix("diag/")),
            *(formats.general(mean([*values[arm.name]])) for arm in view.plan.arms),
        ]
        for name, values in sorted(found.items())
    ]
    return plain("Diagnostics at the end of training, mean over the arm's trials", header, rows)


def _mismatch(view: StudyView, arm: str) -> dict[str, float | None]:
    names = sorted({currency for planned in view.plan.arms for currency in planned.mismatch})
    return {name: view.plan.arm(arm).mismatch.get(name) for name in names}


def _seconds(row: TrialRow) -> float | None:
    return row.result.seconds if row.result and row.state == "complete" else None


def _of(some: Any, all_: int) -> str:
    return f"{some:,}" if some == all_ else f"{some:,} of {all_:,}"


def _interval(row: Row) -> str:
    if row["delta"] is None:
        return formats.ABSENT
    return f"{formats.signed(row['delta'])} [{formats.signed(row['low'])}, {formats.signed(row['high'])}]"


def _second(verdict: Verdict | None) -> Row:
    """The reading at equal amounts of the other currency."""
    found = verdict.second if verdict else None
    return {
        "second_currency": found.currency if found else None,
        "second_amount": found.amount if found else None,
        "second_delta": found.delta if found else None,
        "second_low": found.low if found else None,
        "second_high": found.high if found else None,
    }


def _second_interval(row: Row) -> str:
    if row["second_delta"] is None:
        return formats.ABSENT
    interval = f"[{formats.signed(row['second_low'])}, {formats.signed(row['second_high'])}]"
    return f"{formats.signed(row['second_delta'])} {interval} at equal {row['second_currency']}, before the decay"


def _tuned(row: Row) -> str:
    return formats.rate(row["lr"]) + (" (edge)" if row["lr_at_edge"] else "")


def _note(row: Row) -> str:
    parts = [f"reused from {row['reused_from']}" if row["reused_from"] else "", row["reason"]]
    return printable("; ".join(part for part in parts if part))


def _overrides(values: Row) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items()) or "nothing"
