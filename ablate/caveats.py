"""Reasons for doubt about a verdict, each raised by itself from the trials at hand (methodology §F).

What cannot be known from them is not raised. A rule returns its caveats, of which most have none to give.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ablate import stats
from ablate.planning import SHORT_RUN
from ablate.records import EPOCHS, ArmPlan, Caveat, LrCurve, Plan, TrialRow

FEW_PAIRS = 3
"""Pairs below which a difference has no direction."""

_USUAL_RUN = 1000
"""Steps below which a run is short enough to say so."""

_PARITY = 0.1
_BUDGET = 0.005
_ASYMMETRY = 0.1
_SHRINKAGE = 2.0
_TIME = 0.005
_MASKED = 0.1


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a verdict on one arm rests on.

    Attributes:
        pairs: confirm trials of the arm and of the baseline on the same seed, both with a loss.
        confirmed: all ended confirm trials of the two arms, also those without a partner or a loss.
        searched: all ended search trials of the two arms.
        curves: tuning of the arm and of the baseline, where there is any.
        alpha: error rate of this contrast at the strictest step of Holm's procedure.
        planned: pairs that the design judges by: those of the last look, else those there are.
        detectable: nats that the design finds with 80 % power at the observed noise.
        stopped: whether an arm was decided before its last look.
        decided: whether a difference, or equivalence, is established.
    """

    plan: Plan
    arm: ArmPlan
    baseline: ArmPlan
    pairs: tuple[tuple[TrialRow, TrialRow], ...]
    confirmed: tuple[TrialRow, ...]
    searched: tuple[TrialRow, ...]
    curves: tuple[LrCurve, ...]
    contrast: stats.Contrast
    alpha: float
    planned: int
    detectable: float
    stopped: bool
    decided: bool

    @property
    def arms(self) -> tuple[ArmPlan, ArmPlan]:
        """The arm, and the baseline."""
        return self.arm, self.baseline

    def trials(self, arm: ArmPlan) -> list[TrialRow]:
        """Confirm trials of one of the two arms that came to a loss, the capped one included."""
        return [row for row in self.confirmed if row.spec.arm == arm.name and loss(row) is not None]


def loss(row: TrialRow) -> float | None:
    """Final loss of a trial that completed or diverged."""
    return row.result.val_loss if row.result and row.state in ("complete", "diverged") else None


def raised(evidence: Evidence) -> tuple[Caveat, ...]:
    """All caveats, blockers first."""
    found = [caveat for rule in _RULES for caveat in rule(evidence)]
    return tuple(sorted(found, key=lambda caveat: not caveat.blocks))


def _blocker(name: str, text: str) -> Caveat:
    return Caveat(id=name, blocks=True, text=text)


def _warning(name: str, text: str) -> Caveat:
    return Caveat(id=name, blocks=False, text=text)


def _single_seed(e: Evidence) -> Iterator[Caveat]:
    n = e.contrast.n
    if n < FEW_PAIRS:
        seeds = "one seed is" if n == 1 else f"{n} seeds are"
        yield _blocker("SINGLE_SEED", f"{seeds} no evidence; sweep.confirm.replicates=5 or more would be")


def _missing(e: Evidence) -> Iterator[Caveat]:
    lost = [row for row in e.confirmed if row.state in ("failed", "cancelled")]
    if lost:
        first = lost[0]
        reason = (first.result.reason if first.result else "") or "no reason given"
        pairs = len({row.spec.replicate for row in lost})
        text = (
            f"{pairs} of {len(e.plan.confirm_seeds)} pairs are missing: "
            f"trial {first.number} ({first.spec.arm}) {first.state}: {reason}"
        )
        yield _warning("MISSING", text)


def _unpaired(e: Evidence) -> Iterator[Caveat]:
    """Hashes run over whole trials, so only trials of the same length can be compared."""
    for own, base in e.pairs:
        a, b = own.result, base.result
        if (
            a
            and b
            and a.tokens == b.tokens
            and a.tokens_hash
            and b.tokens_hash
            and a.tokens_hash != b.tokens_hash
        ):
            text = f"trials {own.number} and {base.number} have one seed, but saw different training text"
            yield _warning("UNPAIRED", text)
            return


def _lr_edge(e: Evidence) -> Iterator[Caveat]:
    edges = [curve for curve in e.curves if curve.at_edge]
    for curve in edges:
        rates = [lr for lr, _, _ in curve.points]
        if curve.best is None or len(rates) < 2:
            text = f"too few learning rates of {curve.arm} trained to know its optimum"
        else:
            end, side = ("lowest", "lower") if curve.best == min(rates) else ("highest", "higher")
            text = (
                f"the best learning rate of {curve.arm} ({curve.best:g}) is the {end} that trained: "
                f"its optimum may be {side}; more sweep.search.extensions or another optimizer.lr would tell"
            )
        yield _blocker("LR_EDGE", text)


def _tune_parity(e: Evidence) -> Iterator[Caveat]:
    """By allowance: a trial that diverged early has said all about its learning rate."""
    own, base = (
        sum(r.spec.allowance_mflop for r in e.searched if r.spec.arm == arm.name and loss(r) is not None)
        for arm in e.arms
    )
    if own and base and abs(own - base) > _PARITY * max(own, base):
        more, less = (e.arm, e.baseline) if own > base else (e.baseline, e.arm)
        share = 1 - min(own, base) / max(own, base)
        text = f"{less.name} was tuned with {share:.0%} less compute than {more.name}"
        yield _warning("TUNE_PARITY", text)


def _underpowered(e: Evidence) -> Iterator[Caveat]:
    c, margin = e.contrast, e.plan.run.sweep.confirm.margin
    if e.decided or c.n < 2:
        return
    if e.detectable > margin:
        seeds = stats.seeds_needed(margin / c.sd, e.alpha)
        needed = f"{seeds} seeds" if seeds else "more than 10000 seeds"
        text = (
            f"{e.planned} pairs find {e.detectable:.3f} nats with 80 % power, and the margin is {margin:g}: "
            f"to find that would take {needed} (sweep.confirm.replicates)"
        )
        yield _warning("UNDERPOWERED", text)


def _budget(e: Evidence) -> Iterator[Caveat]:
    """What the budget matches must be equal, up to less than one step of each arm; and schedules must end."""
    match = e.plan.run.budget.match
    steps_by = "tokens" if match == "tokens" else "flops"
    for own, base in e.pairs:
        if own.result is None or base.result is None or "diverged" in (own.state, base.state):
            continue
        for row in (own, base):
            if row.result and row.result.steps < 0.999 * row.spec.steps:
                steps = f"{row.result.steps} of {row.spec.steps} steps"
                text = f"trial {row.number} ({row.spec.arm}) ended after {steps}, its learning rate undecayed"
                yield _blocker("BUDGET_MISMATCH", text)
                return
        if match == "wall_clock":
            continue  # its steps follow from measured speeds; how long they took is judged over all pairs
        if steps_by == "flops":
            a, b = own.result.useful_mflop, base.result.useful_mflop
            step = max(own.spec.step_mflop, base.spec.step_mflop)
        else:
            a, b, step = own.result.tokens, base.result.tokens, 0
        if abs(a - b) > _BUDGET * max(a, b) + step:
            text = (
                f"trials {own.number} and {base.number} should have had equal {steps_by}, "
                f"but {e.arm.name} had {a / b - 1:+.1%}"
            )
            yield _blocker("BUDGET_MISMATCH", text)
            return


def _time(e: Evidence) -> Iterator[Caveat]:
    """Speeds change with the load of a machine, so equal time is a matter of degree and no blocker."""
    budget = e.plan.run.budget
    times = [
        (own.result.seconds, base.result.seconds)
        for own, base in e.pairs
        if own.result and base.result and own.state == base.state == "complete"
    ]
    whole = sum(base for _, base in times)
    if budget.match != "wall_clock" or whole <= 0:
        return
    off = sum(own for own, _ in times) / whole - 1
    if abs(off) > budget.tolerance:
        text = (
            f"{e.arm.name} should have trained as long as {e.baseline.name}, but took {off:+.1%} "
            f"(budget.tolerance={budget.tolerance:g}): it is not as fast as it was when it was measured"
        )
        yield _warning("BUDGET_MISMATCH", text)


def _short_run(e: Evidence) -> Iterator[Caveat]:
    steps = min(row.spec.steps for pair in e.pairs for row in pair)
    if steps < _USUAL_RUN:
        blocks = steps < SHORT_RUN
        limit = f"below {SHORT_RUN} no verdict is given" if blocks else f"fewer than {_USUAL_RUN}"
        text = f"trained for {steps} steps, {limit}; raise budget.per_trial"
        yield Caveat(id="SHORT_RUN", blocks=blocks, text=text)


def _diverged(e: Evidence) -> Iterator[Caveat]:
    counts = []
    for arm in e.arms:
        trials = e.trials(arm)
        k, n = sum(row.state == "diverged" for row in trials), len(trials)
        counts += [k, n]
        if k:
            low, high = stats.proportion_interval(k, n)
            text = (
                f"{k} of {n} trials of {arm.name} diverged ({low:.0%} to {high:.0%} at 95 % confidence) "
                "and count as the loss of a uniform guess"
            )
            if k == n:
                text += ", so nothing is known of its own"
            yield Caveat(id="DIVERGED", blocks=k == n, text=text)
    if (p := stats.rates_differ(*counts)) < _ASYMMETRY:
        more = e.arm if counts[0] * counts[3] > counts[2] * counts[1] else e.baseline
        text = f"{more.name} diverges more often (p={p:.3f}): the difference is one of stability"
        yield _blocker("ASYMMETRIC_DIVERGENCE", text)


def _early_stop(e: Evidence) -> Iterator[Caveat]:
    """Stopping when a difference is large keeps the error rate and the interval, but not the mean."""
    if e.stopped and e.decided:
        looks = e.plan.run.sweep.confirm.looks
        text = (
            f"decided after {e.contrast.n} of at most {looks[-1]} pairs: stopping early flatters the mean, "
            "its interval allows for that"
        )
        yield _warning("EARLY_STOP", text)


def _regime_flip(e: Evidence) -> Iterator[Caveat]:
    """The sign at equal tokens, read before the learning rate decays, where curves compare at any point.

    Rates differ between arms and matter more before the decay, so the sign at equal FLOPs must there be
    the final one for a flip to be one of regime.
    """
    if (
        e.plan.run.budget.match in ("tokens", "wall_clock")
        or abs(e.arm.tokens / e.baseline.tokens - 1) < 0.01
    ):
        return
    at_tokens, at_flops = _before_decay(e, "tokens"), _before_decay(e, "mflop")
    if at_tokens is None or at_flops is None or e.contrast.n < FEW_PAIRS:
        return
    margin = e.plan.run.sweep.confirm.margin
    tokens = stats.contrast(*at_tokens, margin)
    flops = stats.contrast(*at_flops, margin)
    final = e.contrast
    agrees = flops.delta * final.delta > 0
    if agrees and ((final.high < 0 and tokens.low > 0) or (final.low > 0 and tokens.high < 0)):
        word = "behind" if tokens.delta > 0 else "ahead"
        text = (
            f"at equal tokens, before the learning rate decays, {e.arm.name} is {word} by "
            f"{abs(tokens.delta):.3f} nats: the difference at equal FLOPs comes from the number of tokens"
        )
        yield _warning("REGIME_FLIP", text)


def _before_decay(e: Evidence, axis: str) -> tuple[list[float], list[float]] | None:
    """Held-out losses of all pairs at the last amount of `axis` that all trials reach before their decay."""
    curves = []
    for row in (row for pair in e.pairs for row in pair):
        upto = (1 - e.plan.run.optimizer.decay) * row.spec.allowance_mflop
        points = row.result.curve if row.result else ()
        early = [p for p in points if p.val_loss is not None and row.spec.charge(p.step) <= upto]
        seen = [(getattr(p, axis), p.val_loss) for p in early]
        if not seen or row.state == "diverged":
            return None
        curves.append(seen)
    where = min(seen[-1][0] for seen in curves)
    if where < max(seen[0][0] for seen in curves):
        return None
    values = [float(np.interp(math.log(where), np.log([x for x, _ in c]), [y for _, y in c])) for c in curves]
    return values[::2], values[1::2]


def _inactive(e: Evidence) -> Iterator[Caveat]:
    """Never a blocker: a setting that does less than its name says may be just what is asked about."""
    seen: set[str] = set()
    for arm in e.arms:
        for text in arm.variant.warnings(arm.run.trainer.seq_len):
            if text not in seen:
                yield _warning("INACTIVE", f"{arm.name}: {text}")
            seen.add(text)


def _epochs(e: Evidence) -> Iterator[Caveat]:
    """Only what trainers have counted is known."""
    passes = [
        max((row.result.metrics.get(EPOCHS, 0.0) for row in side if row.result), default=0.0)
        for side in zip(*e.pairs, strict=True)
    ]
    if max(passes) > 1:
        text = (
            f"trials went through the training text {passes[0]:.1f} times ({e.arm.name}) and {passes[1]:.1f} times "
            f"({e.baseline.name}): text seen again teaches less, so this is a result for little text"
        )
        yield _warning("EPOCHS", text)


def _masked(e: Evidence) -> Iterator[Caveat]:
    """Of interest where times differ."""
    seconds = [sum(row.result.seconds for row in side if row.result) for side in zip(*e.pairs, strict=True)]
    if abs(seconds[0] - seconds[1]) < _TIME * max(seconds):
        return
    for arm in e.arms:
        cost = arm.variant.costs(arm.run.trainer.seq_len).total
        extra = cost.kernel_flops / cost.forward_flops - 1
        if extra > _MASKED:
            text = (
                f"{arm.name} computes {extra:.0%} more than its FLOPs, which is then masked: times say nothing "
                "about the speed of kernels made for it"
            )
            yield _warning("MASKED_IMPL", text)


def _winner_shrink(e: Evidence) -> Iterator[Caveat]:
    """Fresh seeds against what the search promised, on its one seed that both arms share."""
    c = e.contrast
    promised = [search_loss(e.searched, arm.name) for arm in e.arms]
    if c.n < FEW_PAIRS or promised[0] is None or promised[1] is None:
        return
    before = promised[0] - promised[1]
    if c.delta - before > _SHRINKAGE * c.sd * math.sqrt(1 + 1 / c.n):
        text = (
            f"the search had {before:+.3f} nats, fresh seeds gave {c.delta:+.3f}: the best of many flatters"
        )
        yield _warning("WINNER_SHRINK", text)


def search_loss(rows: Sequence[TrialRow], arm: str) -> float | None:
    """Lowest loss of an arm's search trials."""
    found = (r.result.val_loss for r in rows if r.result and r.state == "complete" and r.spec.arm == arm)
    return min((value for value in found if value is not None), default=None)


_RULES = (
    _single_seed,
    _lr_edge,
    _budget,
    _time,
    _short_run,
    _diverged,
    _tune_parity,
    _underpowered,
    _early_stop,
    _regime_flip,
    _inactive,
    _epochs,
    _masked,
    _winner_shrink,
    _missing,
    _unpaired,
)
