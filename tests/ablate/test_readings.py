"""The second reading: at equal tokens, from the part of the runs where the learning rate is constant, and no other."""

import dataclasses
import math
from pathlib import Path

import pytest
from judged_studies import RATE, Rows, bowls, change, judged, study

from ablate import config, console, planning, readings
from ablate.home import Home
from ablate.records import Plan

SLOPE = 0.1
"""Nats per factor e of tokens, the same for both arms, so that a reading between evaluations is exact."""


def curves(effect: float, csa_tokens: int = 1200) -> tuple[Plan, Rows]:
    """`csa` sees more tokens per FLOP, and at equal tokens its loss is `effect` above the baseline's."""
    plan, rows = study()
    slower = {"dense": 0.0, "csa": effect}
    made = bowls(
        rows,
        {"dense": 1000, "csa": csa_tokens},
        lambda arm, tokens: 4.0 - SLOPE * math.log(tokens) + slower[arm],
    )
    own = dataclasses.replace(plan.arm("csa"), tokens=csa_tokens * 2000)
    return dataclasses.replace(plan, arms=(plan.baseline, own)), made


@pytest.mark.parametrize("effect", [0.02, -0.013])
def test_the_effect_at_equal_tokens_is_found_whatever_it_is_at_equal_flops(effect: float) -> None:
    plan, rows = curves(effect)
    found = judged(plan, rows)
    assert found.second is not None
    assert found.second.currency == "tokens"
    assert found.second.delta == pytest.approx(effect, abs=1e-9)
    assert found.second.low <= found.second.delta <= found.second.high
    assert found.second.n == found.n
    assert found.delta != pytest.approx(effect, abs=1e-3)
    assert f"equal tokens {effect:+.3f} before the decay" in found.sentence
    decay = plan.run.optimizer.decay
    assert found.second.amount <= (1 - decay) * 2000 * 1000


def test_where_tokens_are_equal_the_second_reading_is_at_equal_flops() -> None:
    plan, rows = curves(0.02)
    run = dataclasses.replace(plan.run, budget=dataclasses.replace(plan.run.budget, match="tokens"))
    found = readings.second(dataclasses.replace(plan, run=run), _pairs(rows), 0.95)
    assert found is not None
    assert found.currency == "flops"
    assert found.delta == pytest.approx(0.02 - SLOPE * math.log(1.2))


def test_warm_up_and_decay_are_not_read() -> None:
    plan, rows = curves(0.02)
    warm, decay = plan.run.optimizer.warmup, plan.run.optimizer.decay
    spoilt = tuple(
        change(
            row,
            curve=tuple(
                point if warm <= point.step / 2000 <= 1 - decay else dataclasses.replace(point, val_loss=99.0)
                for point in row.result.curve
            ),
        )
        for row in rows
        if row.result
    )
    assert any(p.val_loss == 99.0 for row in spoilt if row.result for p in row.result.curve)
    assert judged(plan, spoilt).second == judged(plan, rows).second


def test_without_evaluations_at_a_constant_rate_there_is_none() -> None:
    plan, rows = curves(0.02)
    optimizer = dataclasses.replace(plan.run.optimizer, decay=1.0)
    plan = dataclasses.replace(plan, run=dataclasses.replace(plan.run, optimizer=optimizer))
    assert judged(plan, rows).second is None
    plan, rows = curves(0.02, csa_tokens=100_000)  # the curves have no amount of tokens in common
    assert judged(plan, rows).second is None


def test_a_diverged_trial_leaves_no_reading() -> None:
    plan, rows = curves(0.02)
    rows = tuple(
        change(row, state="diverged", outcome="diverged")
        if row.spec.phase == "confirm" and row.spec.arm == "csa" and row.spec.replicate == 0
        else row
        for row in rows
    )
    assert judged(plan, rows).second is None


def _pairs(rows: Rows):
    own, base = (
        [r for r in rows if r.spec.phase == "confirm" and r.spec.arm == arm] for arm in ("csa", "dense")
    )
    assert own[0].spec.lr == RATE
    return tuple(zip(own, base, strict=True))


@pytest.mark.parametrize("match", ["flops", "tokens"])
def test_the_plan_knows_the_place_and_what_the_other_study_costs(
    match: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def planned(*overrides: str) -> Plan:
        run = config.load(["sweep=smoke", "budget.per_trial=20 GFLOP", "trainer.evals=4", *overrides])
        return planning.make_plan(run, Home.at(str(tmp_path)))

    plan = planned(f"budget.match={match}")
    found = readings.foreseen(plan)
    assert found is not None
    assert found.currency != match
    whole = planned(f"budget.match={found.currency}")
    both = [(own, whole.arm(own.name)) for own in plan.arms]
    assert found.cost_mflop == sum(
        7 * (other.steps * other.step_mflop + other.evaluation_mflop)
        for own, other in both
        if own.steps != other.steps
    )
    points = [
        [
            math.ceil(arm.steps * i / 4)
            for i in (1, 2, 3, 4)
            if math.ceil(arm.steps * i / 4) <= 0.7 * arm.steps
        ]
        for arm in plan.arms
    ]
    unit = {
        arm.name: arm.step_mflop if found.currency == "flops" else arm.tokens // arm.steps
        for arm in plan.arms
    }
    last = [steps[-1] * unit[arm.name] for steps, arm in zip(points, plan.arms, strict=True)]
    assert found.amount == min(last)
    console.plan(plan)
    assert "from the same runs at" in " ".join(capsys.readouterr().out.split())
    late = planned(f"budget.match={match}", "optimizer.decay=0.9")
    told = readings.foreseen(late)
    assert told is not None
    assert told.amount is None
    console.plan(late)
    assert "not from these runs" in " ".join(capsys.readouterr().out.split())
