"""What a report says in sentences. Deterministic: the same study, the same words."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime

from ablate import durations, matching, stages, units
from ablate import registration as fixed
from ablate.records import Plan, StudyView, Verdict
from ablate.report import formats
from ablate.report.arms import Arm, confirmed

LEVELS = {
    "L0": "smoke: too few seeds to conclude anything",
    "L1": "directional: at least three paired seeds at one size",
    "L2": "established: at least five paired seeds, tuned learning rates, corrected for all contrasts",
    "L3": "scaling: established at three sizes or more",
}


@dataclass(frozen=True)
class Doubt:
    """A caveat, once for all arms that share it."""

    id: str
    blocks: bool
    text: str
    arms: tuple[str, ...]


def headline(view: StudyView, arms: dict[str, Arm]) -> str:
    """Which won, by how much, in one sentence."""
    if not view.verdicts:
        return "There are no verdicts yet."
    base = arms[view.plan.baseline.name].label
    by_kind: dict[str, list[Verdict]] = defaultdict(list)
    for verdict in sorted(view.verdicts, key=lambda verdict: verdict.delta):
        by_kind[verdict.kind].append(verdict)
    best = (by_kind["helps"] or [None])[0]
    if best is not None:
        first = (
            f"{arms[best.arm].label} helps most: {formats.signed(best.delta)} nats against {base} "
            f"(95 % interval {formats.signed(best.low)} to {formats.signed(best.high)}, "
            f"{best.n} paired seeds)."
        )
    else:
        first = f"No arm is shown to be better than {base}."
    clauses = []
    for kind, words in (
        ("helps", "also better"),
        ("hurts", "worse"),
        ("equivalent", "no different within the margin"),
        ("inconclusive", "undecided"),
    ):
        names = [arms[verdict.arm].label for verdict in by_kind[kind] if verdict is not best]
        if names:
            clauses.append(f"{words}: {formats.listing(names, 4)}")
    rest = "; ".join(clauses)
    return f"{first} {rest[:1].upper()}{rest[1:]}." if rest else first


def belief(verdict: Verdict) -> str:
    """May I believe it: the level in words, and what speaks against it."""
    blockers = sum(caveat.blocks for caveat in verdict.caveats)
    warnings = len(verdict.caveats) - blockers
    parts = []
    if blockers:
        parts.append(
            "1 blocker forbids a verdict" if blockers == 1 else f"{blockers} blockers forbid a verdict"
        )
    if warnings:
        parts.append("1 warning" if warnings == 1 else f"{warnings} warnings")
    level = f"Level {verdict.level}, {LEVELS.get(verdict.level, 'not described')}"
    return f"{level}. {', '.join(parts).capitalize() or 'No caveats'}."


def badge(verdict: Verdict) -> str:
    """The kind, in words that need no key."""
    if verdict.kind == "equivalent":
        return f"no effect larger than {verdict.margin:g} nats"
    return verdict.kind


def doubts(view: StudyView, arms: dict[str, Arm]) -> list[Doubt]:
    """Caveats of all verdicts, blockers first, each text once."""
    found: dict[tuple[str, bool, str], list[str]] = {}
    for verdict in view.verdicts:
        for caveat in verdict.caveats:
            found.setdefault((caveat.id, caveat.blocks, caveat.text), []).append(arms[verdict.arm].label)
    made = [Doubt(id_, blocks, text, tuple(names)) for (id_, blocks, text), names in found.items()]
    return sorted(made, key=lambda doubt: (not doubt.blocks, doubt.id))


def missing(view: StudyView, arms: dict[str, Arm]) -> list[str]:
    """What a reader must not expect, because the study has not come to it."""
    states = Counter(row.state for row in view.trials)
    ended = sum(row.result is not None for row in view.trials)
    lines = []
    if view.state != "done":
        waiting = ", ".join(f"{number} {state}" for state, number in sorted(states.items()))
        lines.append(
            f"The study is {view.state}: {ended} of {len(view.trials)} trials known so far have ended"
            + (f" ({waiting})." if waiting else ".")
        )
    done, planned = confirmed(view), len(view.plan.confirm_seeds)
    short = [f"{arm.label} {len(done[name])}" for name, arm in arms.items() if len(done[name]) < planned]
    stopped = view.state == "done" and view.plan.run.sweep.confirm.looks
    if short and not stopped:
        lines.append(f"Fresh seeds that ended, of {planned} planned: {formats.listing(short, 12)}.")
    judged = {verdict.arm for verdict in view.verdicts}
    without = [arm.label for name, arm in arms.items() if name not in judged and not arm.is_baseline]
    if without:
        lines.append(f"No verdict yet for {formats.listing(without, 12)}.")
    if lines and view.state != "done":
        lines.append(f"Go on with: ablate resume {view.name}")
    return lines


def registration(view: StudyView, arms: dict[str, Arm]) -> list[tuple[str, str]]:
    """What was fixed before anything was spent."""
    plan, sweep = view.plan, view.plan.run.sweep
    base = arms[plan.baseline.name].label
    others = [arm.label for arm in arms.values() if not arm.is_baseline]
    confirm = sweep.confirm
    trained = {arms[arm.name].label: stages.text(arm.run.trainer) for arm in plan.arms}
    curricula = [f"{label}: {text}" for label, text in trained.items() if text]
    return [
        ("Question", plan.question),
        ("Arms", formats.listing([arm.label for arm in arms.values()], 60)),
        (
            "Contrasts",
            f"{formats.listing(others, 60)}, each against {base}; {len(others)} in the Holm family",
        ),
        *([("Curricula", formats.listing(curricula, 60))] if curricula else []),
        ("Equal between arms", matching.WORDS[plan.run.budget.match]),
        ("Margin of equivalence", f"{confirm.margin:g} nats"),
        ("Family-wise error rate", f"{confirm.alpha:g}"),
        ("Seeds per arm", f"at most {confirm.seeds}" if confirm.looks else str(confirm.seeds)),
        ("Seeds", f"search {plan.search_seed}; confirm {', '.join(map(str, plan.confirm_seeds))}"),
        ("Learning rates", ", ".join(f"{rate:.4g}" for rate in plan.lr_grid)),
        ("Compute per trial", units.compute(plan.trial_mflop)),
        ("Compute in all", units.compute(plan.total_mflop)),
        *_asked(plan),
        (
            "Detectable effect",
            f"{plan.detectable_effect:.4f} nats with 80 % power, if paired differences scatter by "
            f"{plan.noise_sd:.4f} ({plan.noise_source})",
        ),
        ("Stopping rule", fixed.stopping_rule(sweep)),
        ("Fingerprint of the plan", plan.fingerprint),
        ("Hash of the registration", fixed.digest(plan)),
    ]


def _asked(plan: Plan) -> list[tuple[str, str]]:
    """A budget that was given in time, and what it was turned into FLOPs by."""
    if not plan.speeds:
        return []
    times = [f"budget.{key}={value}" for key, value in durations.asked(plan.run.budget).items()]
    asked = [("Asked for as time", ", ".join(times))] if times else []
    return [*asked, ("Measured time of a step", durations.told(plan.speeds))]


def origins(view: StudyView) -> list[tuple[str, str]]:
    """Where the numbers come from."""
    names = {"git_commit": "git commit", "git_dirty": "uncommitted changes", "usable_cores": "usable cores"}
    facts = [
        (names.get(name, name), value)
        for name, value in view.provenance.items()
        if name not in (fixed.HASH, fixed.AFTER)
    ]
    run = view.plan.run
    return [
        ("study", view.name),
        ("begun", date(view.created_at)),
        ("data", f"{run.data.name}, fingerprint {view.plan.data_fingerprint}"),
        ("device", f"{run.trainer.device}, {run.trainer.precision}"),
        ("workers", str(view.plan.workers)),
        *facts,
    ]


def date(seconds: float) -> str:
    """A moment in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
