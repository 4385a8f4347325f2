"""From a configuration to priced arms: what a study will do and cost, before anything is spent."""

import dataclasses
import hashlib
import json
import operator
import os
from pathlib import Path
from typing import Any

from ablate import arms, calibrate, durations, matching, open_search, schema, throughput, units, warm_start
from ablate.division import SHORT_RUN, divide, evaluations
from ablate.errors import BadInputError
from ablate.home import Home
from ablate.records import ArmPlan, Plan, optimizers_differ
from ablate.stages import Staged
from ablate.tree import apply_arm
from ablate.variant import Variant
from components.spec import FLOP_CONVENTION, Cost

_IMMATERIAL = {
    "launcher": None,
    "tracking": None,
    "home": None,
    "storage": None,
    "trainer": ("checkpoint_seconds", "checkpoint_steps", "keep_weights"),
    "sweep": ("question", "name", "ladder"),
    "model": ("name",),
    "data": ("name", "files"),
    "budget": None,
}
"""What changes no number: a whole group, or some of its keys. Budgets act through steps and caps, files through
the data's fingerprint."""


def decides(key: str) -> bool:
    """Whether a dotted key of the configuration decides a study's numbers."""
    group, _, rest = key.partition(".")
    some = _IMMATERIAL.get(group, ())
    return some is not None and rest not in some


def make_plan(run: schema.Run, home: Home) -> Plan:
    """Price every arm, divide the budget, and foresee the detectable effect and the time.

    Reads the data's fingerprint and earlier trials of `home`; writes nothing.

    Raises:
        BadInputError: an arm that cannot be built, two arms that are the same, data that is not there, or a
            budget that does not pay for the planned trials; the message has the smallest one that works.
    """
    from ablate import curriculum, data, optimization

    run = dataclasses.replace(
        run,
        trainer=dataclasses.replace(run.trainer, device=_device(run.trainer.device)),
        data=_absolute(run.data),
    )
    run = _warm_start_by_name(run, home)
    data_fingerprint = data.fingerprint(run.data)
    vocab_size = _vocab_size(run)

    def build(applied: schema.Run, arm: str) -> Variant:
        return _variant(applied, arm, vocab_size)

    applied = {name: apply_arm(run, overrides, name) for name, overrides in run.sweep.arms.items()}
    variants = {name: (own, build(own, name)) for name, own in applied.items()}
    variants, resolved = matching.resolve(run, variants, build)
    _refuse_twins(run, variants)

    seq_len = run.trainer.seq_len
    costs = {name: variant.costs(seq_len).total for name, (_, variant) in variants.items()}
    updates = {name: optimization.flops_per_step(own.optimizer, v) for name, (own, v) in variants.items()}
    charged = optimizers_differ(own for own, _ in variants.values()) or (
        run.sweep.searches and open_search.check(run).searches_optimizer
    )
    flops = {name: curriculum.flops(own, v, charged * updates[name]) for name, (own, v) in variants.items()}
    charges = {name: curriculum.rounded(amounts) for name, amounts in flops.items()}
    steps_mflop = {name: amounts[-1] for name, amounts in charges.items()}
    views, workers = calibrate.earlier(home), _workers(run)
    trainers = {name: own.trainer for name, (own, _) in variants.items()}
    timed = throughput.needed(run.budget)
    if timed:
        curriculum.refuse_times(run.budget, trainers)
    speeds = throughput.speeds(variants, steps_mflop, home, views) if timed else ()
    evaluating = evaluations(
        run.sweep, {name: curriculum.evaluations_at_most(own, v) for name, (own, v) in variants.items()}
    )
    bounded = durations.in_flops(run, steps_mflop, speeds, workers, evaluating)
    dearest, measuring = max(map(max, charges.values())), sum(speed.mflop for speed in speeds)
    allowance, total, caps = divide(bounded, dearest, measuring, evaluating)
    seconds = {speed.arm: speed.step_seconds for speed in speeds}
    steps = matching.steps(run.budget.match, allowance, steps_mflop, seconds)
    solved = curriculum.solve(trainers, charges, allowance, steps, run.budget.match)

    warnings: list[str] = []
    found = _arms(run, variants, costs, updates, flops, solved, resolved, seconds)
    for arm in found:
        warnings += [f"{arm.name}: {text}" for text in curriculum.warnings(arm.run, arm.variant)]
    short = min(found, key=lambda arm: arm.steps)
    if short.steps < SHORT_RUN:
        warnings.append(
            f"{short.name} trains for {short.steps} steps; below {SHORT_RUN} no verdict is given. "
            f"budget.per_trial={units.compute(SHORT_RUN * dearest)} or more would do."
        )
    sd, source = calibrate.noise(run, views)
    fingerprint = _fingerprint(run, found, allowance, caps, data_fingerprint)
    seed = run.seed * 1000
    plan = Plan(
        study=f"{run.sweep.name}-{fingerprint[:8]}",
        fingerprint=fingerprint,
        question=run.sweep.question,
        run=run,
        arms=tuple(found),
        total_mflop=total,
        trial_mflop=allowance,
        caps=caps,
        lr_grid=_grid(run),
        search_seed=seed,
        confirm_seeds=tuple(seed + 1 + i for i in range(run.sweep.confirm.seeds)),
        data_fingerprint=data_fingerprint,
        detectable_effect=(detectable := _detectable(run, sd)),
        expected_mflop=_expected(run, sd, detectable, allowance),
        noise_sd=sd,
        noise_source=source,
        workers=workers,
        estimated_seconds=calibrate.seconds(run, found, workers, views, speeds),
        warnings=tuple(dict.fromkeys(warnings)),
        speeds=speeds,
    )
    warm_start.read(plan, home)  # refuses a study whose losses say nothing here
    return plan


def _warm_start_by_name(run: schema.Run, home: Home) -> schema.Run:
    """The run with the whole name of the study that its search begins with: a prefix may come to mean another."""
    from ablate import study

    given = run.sweep.search.warm_start
    if given is None:
        return run
    search = dataclasses.replace(run.sweep.search, warm_start=study.find(home, given))
    return dataclasses.replace(run, sweep=dataclasses.replace(run.sweep, search=search))


def _variant(applied: schema.Run, name: str, vocab_size: int) -> Variant:
    """The variant of an arm's configuration, checked for the sequence lengths that it is trained at."""
    from ablate import curriculum, data

    try:
        variant = Variant.from_run(applied, vocab_size)
        variant.check(applied.trainer.seq_len)
        data.check(applied)
    except (BadInputError, ValueError) as error:
        raise BadInputError(f"arm '{name}': {error}") from error
    curriculum.check(applied, variant, f"arm '{name}'")
    return variant


def _refuse_twins(run: schema.Run, variants: dict[str, tuple[schema.Run, Variant]]) -> None:
    """Two arms that describe the same model and optimizer would be paid for twice to learn nothing."""
    seen: dict[str, str] = {}
    for name, (applied, variant) in variants.items():
        trained = [dataclasses.asdict(applied.optimizer), applied.trainer.curriculum]
        key = variant.fingerprint + json.dumps(trained, sort_keys=True)
        if key in seen:
            raise BadInputError(
                f"sweep.arms.{name}={run.sweep.arms[name]} is the same model as arm '{seen[key]}' "
                f"({variant.schedule}). Remove one of them or change an option that makes a difference."
            )
        seen[key] = name


def _arms(
    run: schema.Run,
    variants: dict[str, tuple[schema.Run, Variant]],
    costs: dict[str, Cost],
    updates: dict[str, int],
    flops: dict[str, tuple[int, ...]],
    solved: dict[str, Staged],
    resolved: dict[str, matching.Resolved],
    seconds: dict[str, float],
) -> list[ArmPlan]:
    base = run.sweep.baseline

    def currencies(name: str) -> dict[str, float]:
        cost = costs[name]
        return {
            "flops": sum(map(operator.mul, solved[name].counts, flops[name])),
            "tokens": solved[name].steps,
            "params": cost.params,
            "active_params": cost.active_params,
            "kv_bytes": cost.kv_bytes,
            **({"wall_clock": solved[name].steps * seconds[name]} if seconds else {}),
        }

    reference = currencies(base)
    # equal up to less than one step; sizes are equal up to a tolerance, and what is left of it is shown
    exact = {run.budget.match} - matching.KEYS.keys()
    made = []
    for name, (applied, variant) in variants.items():
        off = arms.relative(currencies(name), reference)
        made.append(
            arms.priced(
                name,
                applied,
                variant,
                costs[name],
                solved[name],
                optimizer_flops=updates[name],
                mismatch={key: off[key] for key in off if key not in exact},
                is_baseline=name == base,
                resolved=resolved.get(name),
            )
        )
    return sorted(made, key=lambda arm: not arm.is_baseline)


def _vocab_size(run: schema.Run) -> int:
    """Rows of the embedding: what the model says, or as many as the tokenizer has.

    Raises:
        BadInputError: the tokenizer has more tokens than the model has rows.
    """
    from ablate import data

    tokens = data.vocab_size(run.data)
    rows = run.model.vocab_size or tokens
    if rows < tokens:
        raise BadInputError(
            f"model.vocab_size={rows} is smaller than the tokenizer's {tokens} tokens "
            f"(data.tokenizer={run.data.tokenizer}). Allowed: 0 (as the tokenizer), or at least {tokens}."
        )
    return rows


def _absolute(data: schema.Data) -> schema.Data:
    """Paths that mean the same to a worker or a resumed study started elsewhere."""

    def path(text: str) -> str:
        return text if "://" in text else str(Path(text).expanduser().absolute())

    tokenizer = data.tokenizer if data.tokenizer in ("bpe", "bytes") else path(data.tokenizer)
    return dataclasses.replace(data, files=[path(file) for file in data.files], tokenizer=tokenizer)


def _device(name: str) -> str:
    """A device by its name, `auto` resolved.

    Raises:
        BadInputError: it is not on this machine.
    """
    if name == "cpu":
        return name
    import torch

    cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    mps = torch.backends.mps.is_available()
    if name == "auto":
        return "cuda" if cuda else "cpu"
    index = int(name.partition(":")[2] or 0)
    if (name.startswith("cuda") and index >= cuda) or (name == "mps" and not mps):
        here = ["cpu", *[f"cuda:{i}" for i in range(cuda)], *(["mps"] if mps else [])]
        raise BadInputError(
            f"trainer.device={name} is not on this machine. Allowed here: auto, {', '.join(here)}."
        )
    return name


def _workers(run: schema.Run) -> int:
    """Worker processes: as asked, else one per core (over `launcher.threads`), or one per GPU."""
    if run.launcher.workers:
        return run.launcher.workers
    if run.trainer.device == "cuda":
        import torch

        return max(1, torch.cuda.device_count())
    if run.trainer.device != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // run.launcher.threads)


def _grid(run: schema.Run) -> tuple[float, ...]:
    """Learning rates of the first round: `optimizer.lr` times powers of `sweep.search.factor`, ascending."""
    points, factor = run.sweep.search.points, run.sweep.search.factor
    return tuple(run.optimizer.lr * factor ** (i - points // 2) for i in range(points))


def _detectable(run: schema.Run, sd: float) -> float:
    """Nats that the confirm design finds with 80 % power at the strictest step of Holm's procedure."""
    from ablate import operating, stats

    contrasts = run.sweep.contrasts
    confirm = run.sweep.confirm
    if confirm.looks:
        return sd * operating.detectable(confirm.alpha / contrasts, confirm.looks)
    return sd * stats.mde(confirm.replicates, confirm.alpha / contrasts, 0.8)


def _expected(run: schema.Run, sd: float, detectable: float, allowance: int) -> dict[str, int]:
    """MFLOP that confirming with looks will take, by how much arms truly differ."""
    from ablate import operating

    confirm = run.sweep.confirm
    if not confirm.looks:
        return {}
    contrasts = run.sweep.contrasts
    effects = {"equal": 0.0, "detectable": detectable, "twice detectable": 2 * detectable}
    return {
        name: round(
            allowance
            * operating.expected_trials(effect, sd, contrasts, confirm.alpha, confirm.margin, confirm.looks)
        )
        for name, effect in effects.items()
    }


def _fingerprint(
    run: schema.Run, arms: list[ArmPlan], allowance: int, caps: dict[str, int], data_fingerprint: str
) -> str:
    """Hash of everything that decides the study's numbers; where and how fast it runs is no part of it."""
    values = schema.to_dict(run)
    if not run.trainer.curriculum:  # as before there were any, so that studies keep their names
        del values["trainer"]["curriculum"]
    if not run.data.args:  # likewise
        del values["data"]["args"]
    for group, some in _IMMATERIAL.items():
        for key in list(values[group]) if some else []:
            if key in some:
                del values[group][key]
        if some is None:
            del values[group]
    parts: dict[str, Any] = {
        "convention": FLOP_CONVENTION,
        "run": values,
        "arms": {
            arm.name: [
                arm.variant.fingerprint,
                arm.run.optimizer.args,
                arm.steps,
                arm.step_mflop,
                *(dataclasses.asdict(stage) for stage in arm.early),
            ]
            for arm in arms
        },
        "allowance": allowance,
        "caps": caps,
        "equal": run.budget.match,
        "data": data_fingerprint,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
