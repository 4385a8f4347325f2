"""The plan on the terminal: every arm with its figures, what is equal between them, and what can be detected."""

import dataclasses
import math

import pytest
import study_views
from screens import both_widths, printed, spaced

from ablate import console, schema, stats, units
from ablate.console import parts, plan_screen
from ablate.detection import detection
from ablate.errors import BadInputError

pytestmark = pytest.mark.usefixtures("width")


@both_widths
def test_the_plan_has_every_arm_and_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    plan = study_views.plan()
    console.plan(plan)
    text = printed(capsys)
    assert plan.question in spaced(text)
    for arm in plan.arms:
        line, below = text.split(f"\n{arm.name} ", 1)[1].splitlines()[:2]
        assert arm.is_baseline == ("baseline" in line)
        figures = (units.count(arm.params), units.count(arm.active_params), f"{arm.steps:,}")
        for figure in (*figures, units.count(arm.tokens), f"{arm.kv_bytes_per_token:.4g}"):
            assert figure in line.split(), arm.name
        assert units.flops(arm.train_flops_per_token).removesuffix("FLOP") in line
        assert below.startswith(arm.variant.schedule)
        for value in () if arm.is_baseline else arm.mismatch.values():
            assert parts.percent(value) in below.split()
    for amount in (*plan.caps.values(), plan.total_mflop, plan.trial_mflop):
        assert units.compute(amount) in text
    for lr in plan.lr_grid:
        assert f"{lr:.3g}" in text
    for word in (f"{plan.detectable_effect:.4f} nats", plan.noise_source, *plan.warnings):
        assert word in spaced(text)
    assert "Equal between arms: training FLOPs, 500 GFLOP per trial" in spaced(text)


def test_the_plan_says_what_is_equal_where_tokens_are(capsys: pytest.CaptureFixture[str]) -> None:
    plan = study_views.plan()
    budget = dataclasses.replace(plan.run.budget, match="tokens")
    arms = [
        dataclasses.replace(arm, steps=400, tokens=204_800, mismatch={"flops": 0.25 * (not arm.is_baseline)})
        for arm in plan.arms
    ]
    run = dataclasses.replace(plan.run, budget=budget)
    console.plan(dataclasses.replace(plan, run=run, arms=tuple(arms)))
    text = printed(capsys)
    assert "Equal between arms: training tokens, 205k per trial." in spaced(text)
    assert text.count("+25.0%") == len(arms) - 1


def test_the_plan_says_whether_optimizers_pay_for_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    plan = study_views.plan()
    tokens = plan.run.trainer.seq_len * plan.run.trainer.batch_size

    def shown(*names: str) -> str:
        arms = [
            dataclasses.replace(
                arm,
                run=dataclasses.replace(arm.run, optimizer=schema.Optimizer(name)),
                optimizer_flops=round(0.25 * arm.train_flops_per_token * tokens) if name == "muon" else 0,
            )
            for arm, name in zip(plan.arms, names, strict=False)
        ]
        console.plan(dataclasses.replace(plan, arms=tuple(arms)))
        return spaced(printed(capsys))

    assert "0.0% to 25.0% of the model's, charged, because arms differ" in shown("adamw", "muon")
    assert "25.0% of the model's, not charged, because arms share it" in shown("muon", "muon")
    assert "own matrix products" not in shown("adamw", "adamw")


def test_the_plan_answers_what_an_effect_takes(capsys: pytest.CaptureFixture[str]) -> None:
    plan = study_views.plan()
    found = detection(plan, 0.004)
    assert found.seeds is not None
    alpha = plan.run.sweep.confirm.alpha / (len(plan.arms) - 1)
    assert (
        plan.noise_sd * stats.mde(found.seeds, alpha)
        <= 0.004
        < plan.noise_sd * stats.mde(found.seeds - 1, alpha)
    )
    console.plan(plan, found)
    text = spaced(printed(capsys))
    assert f"to detect 0.004 {found.seeds} seeds per arm (planned: 6)" in text
    assert f"sweep.confirm.replicates={found.seeds}" in text
    per_arm = 5 + plan.run.sweep.search.extensions + found.seeds
    paid = found.total_mflop * (1 - plan.run.budget.contingency)  # type: ignore[operator]
    work = per_arm * sum(plan.trial_mflop + arm.evaluation_mflop for arm in plan.arms)
    assert work == pytest.approx(paid, abs=2)
    console.plan(plan, detection(plan, 1e-7))
    assert "more seeds than a sweep may have" in spaced(printed(capsys))
    for nonsense in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(BadInputError, match="--detect"):
            detection(plan, nonsense)


def test_arms_of_one_schedule_are_told_apart_by_their_overrides() -> None:
    plan = study_views.plan(arms={"prenorm": "swa*4", "mhc": "swa*4"})
    arms = {"prenorm": None, "mhc": {"residual": {"name": "mhc", "args": {"hc_mult": 4}}}}
    run = dataclasses.replace(plan.run, sweep=dataclasses.replace(plan.run.sweep, arms=arms))
    plan = dataclasses.replace(plan, run=run)
    assert plan_screen.differs(plan, plan.arm("prenorm")) == "as configured"
    assert plan_screen.differs(plan, plan.arm("mhc")) == "residual={name: mhc, args: {hc_mult: 4}}"
