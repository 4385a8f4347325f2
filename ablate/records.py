"""What passes between the parts of a study: arms, plans, trials, results, verdicts. Frozen, JSON-able where stored."""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from ablate.raised_alarm import RaisedAlarm
from ablate.schema import Run
from ablate.scores import Score
from ablate.searched import Searched
from ablate.second_reading import Reading
from ablate.specs import TrialSpec
from ablate.stages import Staged
from ablate.variant import Variant

EPOCHS = "data/epochs"
"""Metric of a trial: how often it went through the training text."""
Outcome = Literal["complete", "diverged", "failed", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class ArmPlan(Staged):
    """One arm, priced. All FLOPs are `afl-1`; per-token figures are averages over `trainer.seq_len`.

    Attributes:
        run: the configuration with the arm's overrides applied.
        optimizer_flops: FLOPs of the optimizer's own matrix products in one step.
        step_mflop: charge of one optimizer step as configured; with `optimizer_flops` where arms differ in
            their optimizer.
        tokens: training tokens of one trial.
        mismatch: relative difference to the baseline of what the budget does not make equal to the step, by
            currency (`flops`, `tokens`, `params`, `active_params`, `kv_bytes`; `wall_clock` where speeds are measured).
        resolved: sizes that the budget's currency changed, by key of `model`: before, and as they are.
    """

    name: str
    is_baseline: bool
    run: Run
    variant: Variant
    params: int
    active_params: int
    train_flops_per_token: float
    kv_bytes_per_token: float
    decode_flops: int
    tokens: int
    mismatch: dict[str, float]
    optimizer_flops: int = 0
    resolved: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How long a training step of an arm takes on this machine.

    Attributes:
        key: of the measurement, by machine, library and arm.
        mflop: charge of measuring it.
        measured: whether it has been; else it is a guess.
    """

    arm: str
    key: str
    step_seconds: float
    mflop: int
    measured: bool


def optimizers_differ(runs: Iterable[Run]) -> bool:
    """Whether a step is charged with the optimizer's own products: where arms differ in their optimizer.

    Elsewhere they are left out, as from FLOP counts in the literature (methodology §A1).
    """
    return len({json.dumps([run.optimizer.name, run.optimizer.args], sort_keys=True) for run in runs}) > 1


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a study will do and cost; nothing has been spent.

    Attributes:
        study: name of the study, `<sweep>-<first 8 of fingerprint>`.
        fingerprint: hash of everything that decides the numbers.
        caps: MFLOP per ledger phase (`calibrate` where speeds matter, `search`, `confirm`, `evaluation`,
            `contingency`).
        speeds: of every arm, where the budget is a time or time is what arms have equal; else empty.
        lr_grid: learning rates of the first search round.
        search_seed, confirm_seeds: disjoint, so that selection and estimation never share a run.
        detectable_effect: nats that the confirm design finds with 80 % power, under `noise_sd`.
        noise_sd: standard deviation of paired differences that this assumes, and `noise_source` where from.
        expected_mflop: of the confirm phase with looks, by how much arms truly differ from the baseline
            (`equal`, `detectable`, `twice detectable`); empty with a fixed number of seeds.
        estimated_seconds: wall time with the planned workers, or None where nothing is known.
        finalists: arms that an open search has found, to the numbers of their proposals; None before its end.
    """

    study: str
    fingerprint: str
    question: str
    run: Run
    arms: tuple[ArmPlan, ...]
    total_mflop: int
    trial_mflop: int
    caps: dict[str, int]
    lr_grid: tuple[float, ...]
    search_seed: int
    confirm_seeds: tuple[int, ...]
    data_fingerprint: str
    detectable_effect: float
    noise_sd: float
    noise_source: str
    workers: int
    estimated_seconds: float | None
    warnings: tuple[str, ...] = ()
    expected_mflop: dict[str, int] = field(default_factory=dict)
    speeds: tuple[Speed, ...] = ()
    finalists: dict[str, int] | None = None

    @property
    def registered(self) -> "Plan":
        """The plan as it was before an open search added what it found."""
        if self.finalists is None:
            return self
        kept = {name: arm for name, arm in self.run.sweep.arms.items() if name not in self.finalists}
        run = dataclasses.replace(self.run, sweep=dataclasses.replace(self.run.sweep, arms=kept))
        arms = tuple(arm for arm in self.arms if arm.name in kept)
        return dataclasses.replace(self, run=run, arms=arms, finalists=None)

    @property
    def planned_arms(self) -> int:
        """Arms that there are or will be, those that an open search is to find among them."""
        return self.registered.run.sweep.contrasts + 1

    @property
    def baseline(self) -> ArmPlan:
        """The arm that all others are compared with."""
        return next(arm for arm in self.arms if arm.is_baseline)

    def arm(self, name: str) -> ArmPlan:
        """The arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One point of a trial's curve, losses in nats; `val_loss` is None between evaluations, `accuracy` also of text."""

    step: int
    tokens: int
    mflop: int
    seconds: float
    lr: float
    train_loss: float | None = None
    val_loss: float | None = None
    accuracy: float | None = None
    diagnostics: dict[str, float] = field(default_factory=dict)
    """Of the probe that followed the evaluation, by name `diag/…`."""


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """What a trial came to.

    Attributes:
        val_loss: final held-out loss in nats per token; the capped loss ln(vocabulary) where the trial diverged.
        val_bpb: the same in bits per byte of text.
        tokens_hash: hash of the training tokens in the order they were seen.
        seconds: training wall time, evaluation excluded.
        metrics: further scalars, `diag/…`, `loss/…`, `data/…` and `probe/…`.
        reason: why it ended early, in words.
    """

    outcome: Outcome
    val_loss: float | None
    val_bpb: float | None
    steps: int
    tokens: int
    useful_mflop: int
    seconds: float
    tokens_hash: str = ""
    curve: tuple[Point, ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)
    alarms: tuple[RaisedAlarm, ...] = ()
    reason: str = ""


class Meter(Protocol):
    """How a trainer pays. Calls may raise `Superseded` or `StopTraining` (`ablate.errors`)."""

    def debit(self, step: int, steps: int) -> None:
        """Pay for `steps` steps from `step` on, before computing them; renews the lease."""

    def progress(self, point: Point) -> None:
        """Make a curve point visible to whoever watches."""

    def durable(self, step: int) -> None:
        """A verified checkpoint now holds everything up to `step`."""

    def note(self, text: str) -> None:
        """Tell people something about the trial."""


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """A trial as the study database knows it; what reports, pages and exporters read.

    Attributes:
        state: queued | running | complete | diverged | failed | cancelled.
        reused_from: study that paid for this result, where it was found and not trained again.
        charged_mflop: useful work and evaluations, plus what a fault made it do again.
        evaluation_mflop: of evaluations, once each.
    """

    number: int
    spec: TrialSpec
    state: str
    result: TrialResult | None
    reused_from: str | None
    attempts: int
    charged_mflop: int
    evaluation_mflop: int
    worker: str | None
    started_at: float | None
    ended_at: float | None
    progress: Point | None


@dataclass(frozen=True, kw_only=True)
class PhaseAccount:
    """The ledger of one phase in MFLOP; `spent + reserved <= cap` always."""

    phase: str
    cap: int
    spent: int
    reserved: int
    waste: int


@dataclass(frozen=True, kw_only=True)
class LrCurve:
    """Tuning of one arm: every search trial, and the quadratic through the best points in log2 of the rate.

    Attributes:
        best: rate of the lowest loss among trials that completed; None if none did.
        optimum: vertex of the quadratic, with which arms are confirmed (`rounds.tuned_rate`); None where it is not
            convex or lies beyond the rates tried.
        at_edge: the best point is the lowest or highest tried.
    """

    arm: str
    points: tuple[tuple[float, float, str], ...]
    """(learning rate, loss, outcome), by rate."""
    best: float | None
    optimum: float | None
    at_edge: bool
    tuning_mflop: int


@dataclass(frozen=True, kw_only=True)
class Caveat:
    """A reason for doubt; a blocker forbids `helps`, `hurts` and `equivalent`."""

    id: str
    blocks: bool
    text: str


VerdictKind = Literal["helps", "hurts", "equivalent", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The end product for an arm: its paired difference to the baseline on fresh seeds. Negative is better.

    Attributes:
        delta, low, high: mean paired difference in nats and its 95 % t-interval.
        p_t, p_flip, p_holm: paired t, exact sign-flip, and Holm-adjusted paired t over the sweep's contrasts.
        p_tost: equivalence within `margin`, not adjusted.
        sd: standard deviation of the paired differences. With a single pair it is infinite, as are the
            interval and `detectable`, and every p is 1.
        detectable: effect this design finds with 80 % power at the observed noise and Holm's strictest step.
        search_loss: lowest of the arm's search trials, which is never evidence.
        level: evidence level L0 … L3 (methodology §F).
        second: the reading at equal tokens where FLOPs are equal, or the other way round; None where no
            evaluations of all trials allow it.
        sentence: the verdict in one deterministic line.
    """

    arm: str
    baseline: str
    kind: VerdictKind
    n: int
    delta: float
    low: float
    high: float
    sd: float
    rho: float
    p_t: float
    p_flip: float
    p_holm: float
    p_tost: float
    margin: float
    detectable: float
    loss: float
    bpb: float | None
    search_loss: float | None
    lr: float
    level: str
    caveats: tuple[Caveat, ...]
    sentence: str
    second: Reading | None = None


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What switching a factor on does to the loss, in nats; negative is better. Or two factors together.

    Attributes:
        name: the factor, or `a × b` for what both do beyond the sum of each alone.
        aliases: what the design cannot tell from it: the estimate is the sum.
        p_holm: adjusted over the effects of its kind.
        kind: `inconclusive` also where doubts forbid more.
    """

    name: str
    aliases: tuple[str, ...]
    estimate: float
    low: float
    high: float
    p: float
    p_holm: float
    kind: VerdictKind


@dataclass(frozen=True, kw_only=True)
class Effects:
    """What a design says about its factors.

    Attributes:
        design: in one sentence, with its resolution.
        basis: what the effects are conditional on, and how their intervals come about.
        mains, interactions: empty where the design has none of them.
        shapley: shares of the factors in `total`, which they sum to; `p_holm` has no meaning there and is 1.
        total: loss with all factors on less that with all off, with its interval; None where not estimated.
        doubts: what forbids a conclusion.
    """

    design: str
    basis: str
    mains: tuple[Effect, ...]
    interactions: tuple[Effect, ...] = ()
    shapley: tuple[Effect, ...] = ()
    total: tuple[float, float, float] | None = None
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class StudyView:
    """One consistent reading of a study: what every table, page, report and exporter renders.

    Attributes:
        state: planned | running | stopped | done.
        events: (unix seconds, kind, text), newest last.
        workers: name to (host, pid, trial number or None, last progress in unix seconds).
    """

    name: str
    state: str
    created_at: float
    plan: Plan
    trials: tuple[TrialRow, ...]
    accounts: tuple[PhaseAccount, ...]
    lr_curves: tuple[LrCurve, ...]
    verdicts: tuple[Verdict, ...]
    provenance: dict[str, str]
    events: tuple[tuple[float, str, str], ...]
    workers: dict[str, tuple[str, int, int | None, float]]
    effects: Effects | None = None
    search: Searched | None = None
    scores: tuple[Score, ...] = ()
