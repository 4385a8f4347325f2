"""From the trials of a study to its learning-rate curves and verdicts. Pure functions of plan and trials.

The search chooses learning rates; only confirm trials, on seeds of their own, enter a difference.
"""

import math
import statistics
from collections.abc import Sequence

from ablate import caveats, confirmation, matching, operating, readings, rounds, sequential, stats
from ablate.caveats import Evidence, loss
from ablate.records import ArmPlan, Caveat, LrCurve, Plan, TrialRow, Verdict, VerdictKind
from ablate.second_reading import Reading

CONFIDENCE = 0.95

_ESTABLISHED = 5
"""Pairs from which a difference of tuned arms is established (level L2)."""


def lr_curves(plan: Plan, rows: Sequence[TrialRow]) -> tuple[LrCurve, ...]:
    """Tuning of every arm of which a search trial has come to a loss, in the order of the plan."""
    curves = []
    for arm in plan.arms:
        own = [row for row in _phase(rows, "search") if row.spec.arm == arm.name]
        tried = [(row.spec.lr, loss(row), row.state) for row in own]
        points = tuple(sorted((lr, value, state) for lr, value, state in tried if value is not None))
        if points:
            curves.append(
                LrCurve(
                    arm=arm.name,
                    points=points,
                    best=rounds.best_rate(tried),
                    optimum=_optimum(points, plan.run.sweep.search.factor),
                    at_edge=rounds.at_edge(tried),
                    tuning_mflop=sum(row.result.useful_mflop for row in own if row.result),
                )
            )
    return tuple(curves)


def _optimum(points: Sequence[tuple[float, float, str]], factor: float) -> float | None:
    """Vertex of the quadratic; None where it has none, or beyond what was tried."""
    found = rounds.quadratic(points)
    if found is None:
        return None
    rates = [math.log2(lr) for lr, _, _ in points]
    half = math.log2(factor) / 2
    return 2**found.x if min(rates) - half <= found.x <= max(rates) + half else None


def verdicts(plan: Plan, rows: Sequence[TrialRow]) -> tuple[Verdict, ...]:
    """A verdict for every arm that shares at least one confirm seed with the baseline.

    Holm's procedure runs over all contrasts that the sweep planned; those without a pair yet count as p = 1.
    With looks, pairs count when a look has seen them, and p-values and intervals hold for all looks together.
    """
    settings = plan.run.sweep.confirm
    confirmed = _phase(rows, "confirm")
    others = [arm for arm in plan.arms if not arm.is_baseline]
    if not others:
        return ()  # an open search has found none yet
    curves = lr_curves(plan, rows)
    paired = {arm.name: _pairs(confirmed, arm, plan.baseline) for arm in others}
    alpha = settings.alpha / len(others)
    if settings.looks:
        played = _looks(plan, confirmed, curves)
        seen = {name: settings.looks[len(past) - 1] for name, past in played.seen.items() if past}
        paired = {
            name: tuple(pair for pair in paired[name] if pair[0].spec.replicate < n)
            for name, n in seen.items()
        }
        contrasts = {name: sequential.whole(played.seen[name], CONFIDENCE, settings.looks) for name in seen}
    else:
        seen = {name: len(pairs) for name, pairs in paired.items()}
        contrasts = {
            name: stats.contrast(*_losses(pairs), settings.margin, CONFIDENCE)
            for name, pairs in paired.items()
            if pairs
        }
    adjusted = stats.holm([contrasts[arm.name].p_t if arm.name in contrasts else 1.0 for arm in others])
    made = []
    for arm, p_holm in zip(others, adjusted, strict=True):
        if arm.name not in contrasts:
            continue
        contrast = contrasts[arm.name]
        found = _kind(contrast, p_holm, settings.alpha)
        both = (arm.name, plan.baseline.name)
        evidence = Evidence(
            plan=plan,
            arm=arm,
            baseline=plan.baseline,
            pairs=paired[arm.name],
            confirmed=tuple(row for row in confirmed if row.spec.arm in both),
            searched=tuple(row for row in _phase(rows, "search") if row.spec.arm in both),
            curves=tuple(curve for name in both for curve in curves if curve.arm == name),
            contrast=contrast,
            alpha=alpha,
            planned=settings.seeds if settings.looks else contrast.n,
            detectable=contrast.sd * _detectable(alpha, settings.looks, contrast.n),
            stopped=bool(settings.looks) and seen[arm.name] < settings.seeds,
            decided=found != "inconclusive",
        )
        made.append(_verdict(evidence, found, p_holm, len(others)))
    return tuple(made)


def _detectable(alpha: float, looks: Sequence[int], n: int) -> float:
    """SD of paired differences that the design finds with 80 % power."""
    return operating.detectable(alpha, looks) if looks else stats.mde(n, alpha)


def _looks(plan: Plan, confirmed: Sequence[TrialRow], curves: Sequence[LrCurve]) -> confirmation.Looks:
    """The looks so far, at the arms that have a learning rate to be confirmed with."""
    ended = {(row.spec.arm, row.spec.replicate): loss(row) for row in confirmed if row.result is not None}
    return confirmation.play(plan, [curve.arm for curve in curves if curve.best is not None], ended)


def _phase(rows: Sequence[TrialRow], phase: str) -> list[TrialRow]:
    return [row for row in rows if row.spec.phase == phase]


def _pairs(
    confirmed: Sequence[TrialRow], arm: ArmPlan, baseline: ArmPlan
) -> tuple[tuple[TrialRow, TrialRow], ...]:
    """Trials with a loss of both arms by replicate, in its order."""
    own, base = (
        {row.spec.replicate: row for row in confirmed if row.spec.arm == a.name and loss(row) is not None}
        for a in (arm, baseline)
    )
    return tuple((own[i], base[i]) for i in sorted(own.keys() & base.keys()))


def _losses(pairs: Sequence[tuple[TrialRow, TrialRow]]) -> tuple[list[float], list[float]]:
    own, base = (
        [value for row in side if (value := loss(row)) is not None] for side in zip(*pairs, strict=True)
    )
    return own, base


def _kind(contrast: stats.Contrast, p_holm: float, alpha: float) -> VerdictKind:
    """What the difference says by itself, before any caveat."""
    if p_holm < alpha and contrast.high < 0:
        return "helps"
    if p_holm < alpha and contrast.low > 0:
        return "hurts"
    return "equivalent" if contrast.p_tost < alpha else "inconclusive"


def _verdict(e: Evidence, found: VerdictKind, p_holm: float, contrasts: int) -> Verdict:
    contrast, settings = e.contrast, e.plan.run.sweep.confirm
    own = [row for row, _ in e.pairs]
    raised = caveats.raised(e)
    kind = "inconclusive" if any(caveat.blocks for caveat in raised) else found
    level = _level(e)
    second = readings.second(e.plan, e.pairs, CONFIDENCE)
    bits = [row.result.val_bpb for row in own if row.result and row.result.val_bpb is not None]
    return Verdict(
        arm=e.arm.name,
        baseline=e.baseline.name,
        kind=kind,
        n=contrast.n,
        delta=contrast.delta,
        low=contrast.low,
        high=contrast.high,
        sd=contrast.sd,
        rho=contrast.rho,
        p_t=contrast.p_t,
        p_flip=contrast.p_flip,
        p_holm=p_holm,
        p_tost=contrast.p_tost,
        margin=settings.margin,
        detectable=e.detectable,
        loss=statistics.fmean(_losses(e.pairs)[0]),
        bpb=statistics.fmean(bits) if bits else None,
        search_loss=caveats.search_loss(e.searched, e.arm.name),
        lr=own[0].spec.lr,
        level=level,
        caveats=raised,
        second=second,
        sentence=_sentence(e, kind, p_holm, contrasts, level, raised, second),
    )


def _level(e: Evidence) -> str:
    """Evidence level of methodology §F; more than one size, which L3 needs, is more than one study."""
    if e.contrast.n < caveats.FEW_PAIRS:
        return "L0"
    tuned = len(e.curves) == 2 and not any(curve.at_edge for curve in e.curves)
    return "L2" if e.contrast.n >= _ESTABLISHED and tuned else "L1"


def _sentence(
    e: Evidence,
    kind: VerdictKind,
    p_holm: float,
    contrasts: int,
    level: str,
    raised: Sequence[Caveat],
    second: Reading | None,
) -> str:
    c = e.contrast
    equal = matching.BRIEF[e.plan.run.budget.match]
    names = f"{e.arm.name} vs {e.baseline.name}"
    if c.n == 1:
        head = f"{names}: {c.delta:+.3f} nats at equal {equal} (n=1 paired seed)"
    else:
        looks = e.plan.run.sweep.confirm.looks
        over = f" over looks at {', '.join(map(str, looks))}" if looks else ""
        p = "p<0.001" if p_holm < 0.001 else f"p={p_holm:.3f}"
        head = (
            f"{names}: {c.delta:+.3f} ± {(c.high - c.low) / 2:.3f} nats at equal {equal} "
            f"({CONFIDENCE:.0%} t-CI{over}, n={c.n} paired seeds, {p} Holm/{contrasts})"
        )
    told = [f"{name} {value:+.0%}" for name, value in _costs(e) if round(value, 2)]
    if second is not None:
        told.insert(0, f"equal {matching.BRIEF[second.currency]} {second.delta:+.3f} before the decay")
    costs = ", ".join(told)
    ids = ", ".join(dict.fromkeys(caveat.id for caveat in raised))
    parts = [
        f"{head}; {costs}" if costs else head,
        f"Level {level}",
        _outcome(e, kind, raised),
        ids,
    ]
    return ". ".join(part for part in parts if part) + "."


def _outcome(e: Evidence, kind: VerdictKind, raised: Sequence[Caveat]) -> str:
    settings = e.plan.run.sweep.confirm
    if kind == "equivalent":
        return f"EQUIVALENT within {settings.margin:g}"
    if kind != "inconclusive":
        return kind.upper()
    if any(caveat.blocks for caveat in raised):
        return "INCONCLUSIVE (blocked)"
    worse = f", NON-INFERIOR by {settings.margin:g}" if e.contrast.p_noninferior < settings.alpha else ""
    return f"INCONCLUSIVE (detectable {e.detectable:.3f}){worse}"


def _costs(e: Evidence) -> list[tuple[str, float]]:
    """What the budget leaves unequal, relative to the baseline."""
    names = {"flops": "FLOPs", "tokens": "tokens", "params": "params", "kv_bytes": "KV"}
    costs = [(names[key], e.arm.mismatch[key]) for key in names if key in e.arm.mismatch]
    seconds = [
        (own.result.seconds, base.result.seconds)
        for own, base in e.pairs
        if own.result
        and base.result
        and own.state == base.state == "complete"
        and not (own.reused_from or base.reused_from)
    ]
    if seconds and (whole := sum(base for _, base in seconds)) > 0:
        costs.append(("wall", sum(own for own, _ in seconds) / whole - 1))
    return costs
