"""The plan: what a study will do and cost, before anything is spent."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from ablate import designs, division, durations, effects, matching, readings, space, stages, units
from ablate.console import parts, stage_table
from ablate.records import ArmPlan, Plan, optimizers_differ
from ablate.throughput import TIMED, WARM

if TYPE_CHECKING:
    from ablate.detection import Detection


def plan(plan: Plan, wanted: "Detection | None" = None) -> None:
    """Print the arms, what is equal between them and what is not, the budget, and what it can detect.

    Args:
        wanted: the design for an effect that somebody asked for.
    """
    console = parts.console()
    console.print(Text(parts.words(plan.question) or plan.study, style="bold"))
    console.print(Text(f"{plan.study}, nothing spent yet", style="dim"))
    console.print(parts.heading("Arms"))
    console.print(_arms(plan, console.width))
    console.print(_equality(plan))
    if any(arm.optimizer_flops for arm in plan.arms):
        console.print(_optimizers(plan))
    if any(arm.early for arm in plan.arms):
        console.print(parts.heading("Curricula"))
        console.print(stage_table.curricula(plan.arms))
    console.print(parts.heading("Budget"))
    console.print(_budget(plan))
    console.print(parts.heading("Design"))
    console.print(parts.facts(_design(plan, wanted)))
    for text in plan.warnings:
        console.print(Text("\nwarning ", style="yellow").append(parts.words(text), style="default"))


def differs(plan: Plan, arm: ArmPlan) -> str:
    """What makes an arm: its schedule where schedules differ, its overrides beside that, what was re-solved."""
    schedules = {other.variant.schedule for other in plan.arms}
    overrides = dict(plan.run.sweep.arms.get(arm.name) or {})
    told = []
    if len(schedules) > 1:
        overrides.pop("model.compress_ratios", None)
        told.append(arm.variant.schedule)
    if overrides.pop(stages.KEY, None):
        told.append(stages.text(arm.run.trainer))
    told += [f"{key}={_value(value)}" for key, value in overrides.items()]
    told += matching.told(arm.resolved)
    return parts.words(", ".join(told)) or "as configured"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_value(inner)}" for key, inner in value.items()) + "}"
    return str(value)


def _arms(plan: Plan, width: int) -> Table:
    """Figures of every arm; below each figure the difference to the baseline that the budget leaves."""
    match = plan.run.budget.match
    columns: list[tuple[str, str]] = [("total\nparams", "params"), ("active\nparams", "active_params")]
    columns += [("FLOP per\ntoken", ""), ("KV bytes\nper token", "kv_bytes"), ("\nsteps", "")]
    columns += [("tokens\nseen", "tokens"), ("FLOP per\ntrial", "flops")]
    if width < parts.ROOMY:  # what is equal stands below the table
        columns = [column for column in columns if column[1] != match]
    table = parts.table("\narm", *((title, "right") for title, _ in columns))
    for arm in plan.arms:
        figures = {
            "total\nparams": units.count(arm.params),
            "active\nparams": units.count(arm.active_params),
            "FLOP per\ntoken": _short(arm.train_flops_per_token),
            "KV bytes\nper token": _bytes(arm.kv_bytes_per_token),
            "\nsteps": f"{arm.steps:,}",
            "tokens\nseen": units.count(arm.tokens),
            "FLOP per\ntrial": _short(arm.mflop * units.MFLOP),
        }
        name = Text(parts.words(arm.name), style="bold")
        if arm.is_baseline:
            name.append("  baseline", style="not bold cyan")
        cells: list[RenderableType] = [name.append(f"\n{differs(plan, arm)}", style="not bold dim")]
        for title, currency in columns:
            cell = Text(figures[title])
            if currency and not arm.is_baseline and currency in arm.mismatch:
                cell.append(f"\n{parts.percent(arm.mismatch[currency])}", style="dim")
            cells.append(cell)
        table.add_row(*cells)
    return table


def _short(flops: float) -> str:
    """FLOPs under a heading that names the unit: `2.40 M`."""
    return units.flops(flops).removesuffix("FLOP").strip()


def _bytes(value: float) -> str:
    return f"{value:,.4g}" if value < 10_000 else units.count(value)


def _equality(plan: Plan) -> Text:
    match = plan.run.budget.match
    tokens = {arm.tokens for arm in plan.arms}
    shortfall = max(1 - arm.mflop / plan.trial_mflop for arm in plan.arms)
    text = Text("Equal between arms: ").append(matching.WORDS[match], style="bold")
    if match == "wall_clock":
        seconds = max(speed.step_seconds * plan.arm(speed.arm).steps for speed in plan.speeds)
        text.append(f", {units.duration(seconds)} per trial.")
    elif match == "tokens" and len(tokens) == 1:
        text.append(f", {units.count(tokens.pop())} per trial.")
    else:
        text.append(f", {units.compute(plan.trial_mflop)} per trial")
        text.append(f" (whole steps: up to {shortfall:.1%} less)." if shortfall > 0 else ".")
    if match in matching.KEYS:
        off = max((abs(arm.mismatch.get(match, 0.0)) for arm in plan.arms), default=0.0)
        changed = sum(bool(arm.resolved) for arm in plan.arms)
        text.append(f" Their {matching.WORDS[match].partition(',')[0]} are up to {off:.2%} apart (allowed: ")
        text.append(
            f"{plan.run.budget.tolerance:.3g}), for which {changed} of {len(plan.arms)} arms changed size."
        )
    text.append(" Evaluations are charged apart, and take nothing from it.")
    return text.append(" Below a figure: its difference to the baseline.", style="dim")


def _optimizers(plan: Plan) -> Text:
    """What optimizers compute for themselves, and whether it is part of the charge."""
    per_step = plan.run.trainer.seq_len * plan.run.trainer.batch_size
    of = _span([arm.optimizer_flops / (arm.train_flops_per_token * per_step) for arm in plan.arms])
    differ = optimizers_differ(arm.run for arm in plan.arms)
    charge = "charged, because arms differ in it" if differ else "not charged, because arms share it"
    return Text(f"The optimizer's own matrix products: {of} of the model's, {charge}.")


def _span(shares: Sequence[float]) -> str:
    """The least and the most of some shares, or the one that they are."""
    return " to ".join(dict.fromkeys(f"{share:.1%}" for share in (min(shares), max(shares))))


def _budget(plan: Plan) -> Table:
    sweep, arms = plan.run.sweep, plan.planned_arms
    points, extensions = sweep.search.points, sweep.search.extensions
    trials = division.trials_of(plan.registered.run.sweep)
    spread = f"{arms} arms × {points} learning rates"
    if extensions:
        spread += f", and up to {extensions} more each while a best is at an edge"
    if sweep.searches:
        spread = f"{sweep.search.trials} proposals once each, then {spread}"
    details = {
        "search": (spread, trials["search"]),
        "confirm": (f"{arms} arms × {_confirmed(plan)}", trials["confirm"]),
        "evaluation": (_evaluated(plan), None),
        "contingency": ("work done again after a crash; never an arm's", None),
        "calibrate": (f"{WARM + TIMED} steps of each arm, measured once per machine", None),
    }
    table = parts.table("phase", ("trials", "right"), ("at most", "right"), "for")
    for phase, cap in plan.caps.items():
        text, count = details.get(phase, ("", None))
        table.add_row(phase, "" if count is None else f"{count:,}", units.compute(cap), Text(text, "dim"))
    table.add_section()
    per_trial = f"{units.compute(plan.trial_mflop)} per trial"
    table.add_row(Text("total", "bold"), "", Text(units.compute(plan.total_mflop), "bold"), Text(per_trial))
    return table


def _evaluated(plan: Plan) -> str:
    """How often the model is run outside training, and what that is of a trial's training."""
    trainer, data = plan.run.trainer, plan.run.data
    of = _span([arm.evaluation_mflop / arm.mflop for arm in plan.arms])
    tokens = data.val_tokens // trainer.seq_len * trainer.seq_len
    return f"{trainer.evals} per trial over {tokens:,} held-out tokens: {of} of its training"


def _confirmed(plan: Plan) -> str:
    looks = plan.run.sweep.confirm.looks
    if not looks:
        return f"{len(plan.confirm_seeds)} fresh seeds, the same for all arms"
    return f"at most {looks[-1]} fresh seeds; looks at {_listed(looks)} end what is decided"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _design(plan: Plan, wanted: "Detection | None") -> list[tuple[str, str | Text]]:
    seeds, trainer = plan.confirm_seeds, plan.run.trainer
    confirmed = f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 2 else ", ".join(map(str, seeds))
    time = "unknown: no trial has been measured on this device"
    if plan.estimated_seconds is not None:
        time = f"about {units.duration(plan.estimated_seconds)}"
    effect = Text(f"{plan.detectable_effect:.4f} nats", style="bold").append(
        f" with 80 % power; paired noise {plan.noise_sd:.4f}, {parts.words(plan.noise_source)}", "not bold"
    )
    layout = designs.describe(plan.run.sweep)
    main = effects.detectable(plan.run.sweep, plan.noise_sd)
    return [
        *([("design", parts.words(layout))] if layout else []),
        *([("space", parts.words(space.describe(plan.run)))] if plan.run.sweep.searches else []),
        ("detectable effect", effect),
        *([("of a factor", f"{main:.4f} nats, as a mean over all arms")] if main is not None else []),
        *([(f"to detect {wanted.effect:g}", _seeds(wanted, len(seeds)))] if wanted else []),
        *([("expected to confirm", _expected(plan))] if plan.expected_mflop else []),
        *_second(plan),
        ("equivalent within", f"±{plan.run.sweep.confirm.margin:g} nats"),
        ("learning rates", ", ".join(map(parts.rate, plan.lr_grid))),
        ("seeds", f"search {plan.search_seed}; confirm {confirmed}"),
        (
            "model and data",
            f"{plan.run.model.name} on {plan.run.data.name}; "
            f"{trainer.batch_size:,} x {trainer.seq_len:,} tokens per step",
        ),
        ("workers", f"{plan.workers} on {trainer.device}"),
        ("time", time),
        *_speed(plan),
    ]


def _second(plan: Plan) -> list[tuple[str, str]]:
    """What the same runs say in the other currency, or what it would cost to know."""
    found = readings.foreseen(plan)
    if found is None:
        return []
    again = f"budget.match={found.currency} would cost {units.compute(found.cost_mflop)}"
    told = f"not from these runs: no evaluations of all arms lie at a constant learning rate; {again}"
    if not found.cost_mflop:
        told = "the same: arms have equal FLOPs and tokens"
    elif found.amount is not None:
        tokens = found.currency == "tokens"
        at = f"{units.count(found.amount)} tokens" if tokens else units.compute(found.amount)
        told = f"from the same runs at {at}, before the learning rate decays; to the end, {again}"
    return [(f"at equal {matching.BRIEF[found.currency]}", told)]


def _speed(plan: Plan) -> list[tuple[str, str]]:
    """What a budget in time rests on."""
    if not plan.speeds:
        return []
    asked = [f"{key} {value}" for key, value in durations.asked(plan.run.budget).items()]
    waiting = [speed for speed in plan.speeds if not speed.measured]
    known = "measured on this machine, charged once"
    if waiting:
        cost = units.compute(sum(speed.mflop for speed in waiting))
        known = (
            f"a guess for {len(waiting)} of {len(plan.speeds)} arms: ablate run first trains each of them "
            f"{WARM + TIMED} steps ({cost}), and steps and amounts above follow from that"
        )
    return [
        *([("budget in time", parts.words("; ".join(asked)))] if asked else []),
        ("time of a step", parts.words(f"{durations.told(plan.speeds)}; {known}")),
    ]


def _expected(plan: Plan) -> str:
    """What looks are expected to leave of the confirm phase's cap, by how much arms truly differ."""
    words = {"equal": "if all arms are equal", "detectable": "if all differ by the detectable effect"}
    words["twice detectable"] = "if by twice that"
    cap = plan.caps["confirm"]
    return "; ".join(
        f"{units.compute(mflop)} ({mflop / cap:.0%}) {words[name]}"
        for name, mflop in plan.expected_mflop.items()
    )


def _seeds(wanted: "Detection", planned: int) -> Text:
    if wanted.seeds is None or wanted.total_mflop is None:
        return Text("more seeds than a sweep may have; a longer trial or a larger batch has less noise")
    text = Text(f"{wanted.seeds} seeds", style="bold").append(f" per arm (planned: {planned}): ", "not bold")
    total = f", {units.compute(wanted.total_mflop)} in total"
    return text.append(f"sweep.confirm.replicates={wanted.seeds}{total}", "not bold")
