"""Made-up readings of a study, complete in every field, for tests of what renders or mirrors them."""

import dataclasses
import math
import random

import variants

from ablate import curriculum, schema
from ablate.home import Home
from ablate.records import (
    ArmPlan,
    Caveat,
    LrCurve,
    PhaseAccount,
    Plan,
    Point,
    StudyView,
    TrialResult,
    TrialRow,
    TrialSpec,
    Verdict,
)
from ablate.specs import Phase
from ablate.stages import Staged
from ablate.variant import Variant

SCHEDULES = {
    "dense": "dense*4",
    "sliding_window": "swa*4",
    "csa": "csa@4*4",
    "hca": "hca@16*4",
    "v4": "swa,csa@4,hca@16,csa@4",
}
OFFSETS = {"dense": 0.0, "sliding_window": 0.031, "csa": -0.024, "hca": 0.004, "v4": -0.038}
CREATED = 1_790_000_000.0
STEPS = 400


def run(arms: dict[str, str], question: str) -> schema.Run:
    """A configuration of the size of `model=micro`, complete enough for a variant."""
    base = variants.make_run(
        vocab_size=512, hidden_size=64, num_hidden_layers=4, sliding_window=16, compress_ratios="dense*4"
    )
    return dataclasses.replace(
        base,
        sweep=dataclasses.replace(
            base.sweep,
            name="compress_ratios",
            question=question,
            baseline=next(iter(arms)),
            arms={name: {"model.compress_ratios": ratios} for name, ratios in arms.items()},
        ),
        trainer=dataclasses.replace(base.trainer, device="cpu", seq_len=256, batch_size=2),
        data=dataclasses.replace(base.data, name="stdlib"),
    )


def plan(
    name: str = "compress_ratios-0a1b2c3d",
    arms: dict[str, str] | None = None,
    question: str = "At equal training FLOPs, does compressed attention beat dense attention?",
    replicates: int = 6,
) -> Plan:
    """Five arms on eleven trials each."""
    arms = arms or SCHEDULES
    whole = run(arms, question)
    priced = []
    for i, (arm, ratios) in enumerate(arms.items()):
        own = dataclasses.replace(whole, model=dataclasses.replace(whole.model, compress_ratios=ratios))
        variant = Variant.from_run(own, vocab_size=512)
        trained = Staged(steps=STEPS + 16 * (i % 10), step_mflop=1250 - 50 * (i % 10))
        priced.append(
            ArmPlan(
                name=arm,
                is_baseline=i == 0,
                run=own,
                variant=variant,
                params=412_160 + 3_000 * i,
                active_params=251_904 + 3_000 * i,
                train_flops_per_token=2.4e6 - 1e5 * (i % 10),
                kv_bytes_per_token=512.0 / (i + 1),
                decode_flops=800_000,
                step_mflop=trained.step_mflop,
                steps=trained.steps,
                evaluations=curriculum.evaluations(own, variant, trained),
                tokens=trained.steps * 512,
                mismatch={"tokens": 0.04 * i, "params": 0.007 * i, "kv_bytes": 1 / (i + 1) - 1},
            )
        )
    trials = len(arms) * (7 + replicates)
    evaluating = (7 + replicates) * sum(arm.evaluation_mflop for arm in priced)
    return Plan(
        study=name,
        fingerprint="0a1b2c3d4e5f6071",
        question=question,
        run=whole,
        arms=tuple(priced),
        total_mflop=int((trials * 500_000 + evaluating) / 0.95),
        trial_mflop=500_000,
        caps={
            "search": len(arms) * 7 * 500_000,
            "confirm": len(arms) * replicates * 500_000,
            "evaluation": evaluating,
            "contingency": int((trials * 500_000 + evaluating) * 0.05 / 0.95),
        },
        lr_grid=(7.5e-4, 1.5e-3, 3e-3, 6e-3, 1.2e-2),
        search_seed=0,
        confirm_seeds=tuple(range(1, replicates + 1)),
        data_fingerprint="c0ffee" * 8,
        detectable_effect=0.012,
        noise_sd=0.006,
        noise_source="default for models of this size",
        workers=2,
        estimated_seconds=300.0,
        warnings=("hca: a block of 16 tokens is longer than the sliding window needs",),
    )


def _loss(plan: Plan, arm: str, lr: float, seed: int) -> float:
    names = [a.name for a in plan.arms]
    offset = list(OFFSETS.values())[names.index(arm) % len(OFFSETS)]
    noise = random.Random(f"{names.index(arm)} {seed} {lr}").gauss(0, 0.004)
    return 3.42 + offset + 0.02 * math.log2(lr / 3e-3) ** 2 + 0.01 * math.sin(seed) + noise


def _curve(final: float, steps: int, upto: int, step_mflop: int, lr: float) -> tuple[Point, ...]:
    points = []
    for i in range(1, 41):
        step = round(steps * i / 40)
        if step > upto:
            break
        value = final + 2.4 * math.exp(-4.5 * i / 40) - 2.4 * math.exp(-4.5)
        points.append(
            Point(
                step=step,
                tokens=step * 512,
                mflop=step * step_mflop,
                seconds=step * 0.02,
                lr=lr,
                train_loss=value + 0.03 * math.sin(i),
                val_loss=value if i % 5 == 0 else None,
                diagnostics={"diag/layers.0/ffn/max_vio": 1 / i} if i % 5 == 0 else {},
            )
        )
    return tuple(points)


def rows(plan: Plan, finished: int | None = None) -> tuple[TrialRow, ...]:
    """Search, then confirm trials; the first `finished` have ended, the next two run, the rest wait."""
    specs: list[tuple[str, Phase, int, float]] = []
    for lr in plan.lr_grid:
        specs.extend((arm.name, "search", 0, lr) for arm in plan.arms)
    for replicate in range(len(plan.confirm_seeds)):
        specs.extend((arm.name, "confirm", replicate, 3e-3) for arm in plan.arms)
    finished = len(specs) if finished is None else finished
    made = []
    for number, (arm, phase, replicate, lr) in enumerate(specs):
        priced = plan.arm(arm)
        seed = plan.search_seed if phase == "search" else plan.confirm_seeds[replicate]
        spec = TrialSpec(
            fingerprint=f"{number:016x}",
            arm=arm,
            phase=phase,
            replicate=replicate,
            seed=seed,
            lr=lr,
            run=schema.to_dict(priced.run),
            steps=priced.steps,
            step_mflop=priced.step_mflop,
            evaluations=priced.evaluations,
            data_fingerprint=plan.data_fingerprint,
        )
        diverged = number == 21 and phase == "search"
        value = math.log(512) if diverged else _loss(plan, arm, lr, seed)
        curve = _curve(value, spec.steps, spec.steps, spec.step_mflop, lr)
        result = TrialResult(
            outcome="diverged" if diverged else "complete",
            val_loss=value,
            val_bpb=value / math.log(2) / 3.09,
            steps=spec.steps,
            tokens=spec.steps * 512,
            useful_mflop=spec.allowance_mflop,
            seconds=spec.steps * 0.02,
            tokens_hash=f"{seed:08x}",
            curve=curve,
            metrics={"diag/grad_norm": 0.4, "diag/bad": math.inf, "loss/balance": math.nan},
            reason="loss above ln(vocabulary) for 20 steps" if diverged else "",
        )
        running = finished <= number < finished + 2
        over = number < finished
        half = _curve(value, spec.steps, spec.steps // 2, spec.step_mflop, lr)
        progress = curve[-1] if over else half[-1] if running else None
        done = progress.step if progress else 0
        started = CREATED + 5 * number
        made.append(
            TrialRow(
                number=number,
                spec=spec,
                state=result.outcome if over else "running" if running else "queued",
                result=result if over else None,
                reused_from=None,
                attempts=1 if over or running else 0,
                charged_mflop=sum(spec.bill(0, done).values()),
                evaluation_mflop=spec.evaluated(done),
                worker=f"host-{number % 2 + 1}" if over or running else None,
                started_at=started if over or running else None,
                ended_at=started + 9 if over else None,
                progress=progress,
            )
        )
    return tuple(made)


def verdicts(plan: Plan) -> tuple[Verdict, ...]:
    """One per arm that is not the baseline."""
    made = []
    for arm in plan.arms[1:]:
        names = [a.name for a in plan.arms]
        delta = list(OFFSETS.values())[names.index(arm.name) % len(OFFSETS)]
        kind = "equivalent" if abs(delta) < 0.01 else "helps" if delta < 0 else "hurts"
        made.append(
            Verdict(
                arm=arm.name,
                baseline=plan.baseline.name,
                kind=kind,
                n=len(plan.confirm_seeds),
                delta=delta,
                low=delta - 0.007,
                high=delta + 0.007,
                sd=0.0067,
                rho=0.6,
                p_t=0.0004,
                p_flip=0.03125,
                p_holm=0.0012,
                p_tost=0.02,
                margin=0.01,
                detectable=0.011,
                loss=3.42 + delta,
                bpb=(3.42 + delta) / math.log(2) / 3.09,
                search_loss=3.41 + delta,
                lr=3e-3,
                level="L1",
                caveats=(Caveat(id="short", blocks=False, text="Trained for 400 steps."),),
                sentence=f"{arm.name} {kind}: {delta:+.3f} nats against {plan.baseline.name}, 95 % "
                f"[{delta - 0.007:+.3f}, {delta + 0.007:+.3f}], {len(plan.confirm_seeds)} paired seeds.",
            )
        )
    return tuple(made)


def view(state: str = "done", finished: int | None = None, **options: object) -> StudyView:
    """A study that is over, or, with `state="running"`, one of which `finished` trials are."""
    made = plan(**options)  # type: ignore[arg-type]
    trials = rows(made, finished)
    paid = [r.spec.bill(0, r.progress.step) for r in trials if r.progress]
    running = [r for r in trials if r.state == "running"]
    accounts = [
        PhaseAccount(
            phase=phase,
            cap=made.caps[phase],
            spent=9_000 if phase == "contingency" else sum(bill.get(phase, 0) for bill in paid),
            reserved=sum(
                r.spec.bill(r.progress.step, r.spec.steps).get(phase, 0) for r in running if r.progress
            ),
            waste=9_000 if phase == "contingency" else 0,
        )
        for phase in ("search", "confirm", "evaluation", "contingency")
    ]
    curves = []
    for arm in made.arms:
        points = tuple(
            (r.spec.lr, r.result.val_loss, r.result.outcome)
            for r in trials
            if r.spec.arm == arm.name and r.spec.phase == "search" and r.result and r.result.val_loss
        )
        if points:
            best = min(points, key=lambda p: p[1])[0]
            curves.append(
                LrCurve(
                    arm=arm.name,
                    points=points,
                    best=best,
                    optimum=best * 1.05,
                    at_edge=False,
                    tuning_mflop=len(points) * 500_000,
                )
            )
    return StudyView(
        name=made.study,
        state=state,
        created_at=CREATED,
        plan=made,
        trials=trials,
        accounts=tuple(accounts),
        lr_curves=tuple(curves),
        verdicts=verdicts(made) if state == "done" else (),
        provenance={"python": "3.11.7", "torch": "2.13.0", "git_commit": "abc123" * 6, "cpu": "A Processor"},
        events=(
            (CREATED, "created", "study created"),
            (CREATED + 60, "lease_expired", "trial 3 lost its worker"),
        ),
        workers={f"host-{i + 1}": ("host", 100 + i, r.number, CREATED + 300) for i, r in enumerate(running)},
    )


def search(home: Home, view: StudyView) -> None:
    """The Optuna study that a scheduler would have left for this view."""
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(storage=f"sqlite:///{home.optuna}", study_name=view.name)
    space = {
        "arm": CategoricalDistribution([arm.name for arm in view.plan.arms]),
        "lr": FloatDistribution(1e-4, 1e-1, log=True),
    }
    for row in view.trials:
        if row.spec.phase == "search" and row.result is not None:
            study.enqueue_trial({"arm": row.spec.arm, "lr": row.spec.lr})
            study.tell(study.ask(space), row.result.val_loss)
