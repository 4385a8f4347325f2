"""Budgets in time: FLOPs by measured speeds, never more than the time that was asked for, charged once."""

from pathlib import Path

import pytest

from ablate import (
    calibrations,
    config,
    console,
    db,
    durations,
    ledger,
    planning,
    reading,
    stored,
    study,
    throughput,
)
from ablate.errors import BadInputError
from ablate.home import Home
from ablate.records import Plan

TIME = ("budget.per_trial=null", "budget.total=20 min", "launcher.workers=2")


def planned(home: Home, *overrides: str) -> Plan:
    return planning.make_plan(config.load(["sweep=smoke", *overrides]), home)


def calibrated(home: Home, *overrides: str, seconds: tuple[float, ...] = (0.02, 0.03)) -> Plan:
    """The plan once steps take that long."""
    for speed, taken in zip(planned(home, *overrides).speeds, seconds, strict=True):
        calibrations.record(home, speed.key, taken)
    return planned(home, *overrides)


def training(plan: Plan) -> dict[str, float]:
    """Seconds of one trial, by arm."""
    return {speed.arm: plan.arm(speed.arm).steps * speed.step_seconds for speed in plan.speeds}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.at(str(tmp_path / "home"))


def test_a_plan_in_time_guesses_before_anything_is_measured_and_writes_nothing(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = planned(home, *TIME)
    console.plan(plan)
    shown = " ".join(capsys.readouterr().out.split())
    assert all(words in shown for words in ("total 20 min", "a guess for 2 of 2 arms", "calibrate"))
    assert not home.root.exists()
    assert [speed.measured for speed in plan.speeds] == [False, False]
    assert plan.caps["calibrate"] == sum(speed.mflop for speed in plan.speeds)
    assert not planned(home).speeds, "FLOPs need no speeds"


@pytest.mark.parametrize(
    ("minutes", "workers", "match", "seconds"),
    [
        (1, 1, "flops", (0.03125, 0.03125)),
        (20, 2, "flops", (0.021, 0.0337)),
        (600, 40, "tokens", (0.0013, 0.05)),
        (30, 5, "wall_clock", (0.05, 0.0171)),
        (3, 2, "wall_clock", (0.004, 0.031)),
    ],
)
def test_the_time_that_was_asked_for_is_used_and_not_exceeded(
    home: Home, minutes: int, workers: int, match: str, seconds: tuple[float, float]
) -> None:
    asked = ("budget.per_trial=null", f"budget.total={minutes} min", f"launcher.workers={workers}")
    plan = calibrated(home, *asked, f"budget.match={match}", seconds=seconds)
    measuring = (throughput.WARM + throughput.TIMED) * sum(seconds)
    atonce = min(workers, 14)
    whole = 7 * sum(training(plan).values()) * durations.OVERHEAD / atonce + measuring
    step = 7 * sum(seconds) * durations.OVERHEAD / atonce
    assert whole <= 60 * minutes * (1 + 1e-9)
    # short by no more than whole steps of the arms, of which the costliest sets how fine an allowance can be
    assert whole + 3 * step >= 60 * minutes
    assert sum(plan.caps.values()) <= plan.total_mflop
    assert all(arm.steps * arm.step_mflop <= plan.trial_mflop for arm in plan.arms)


def test_a_time_per_trial_bounds_the_slowest_arm(home: Home) -> None:
    plan = calibrated(home, "budget.per_trial=6 s", seconds=(0.02, 0.03))
    each = training(plan)
    slowest = max(each, key=lambda name: each[name])
    assert each[slowest] <= 6 < each[slowest] + 0.06


def test_equal_time_is_equal_up_to_a_step(home: Home) -> None:
    plan = calibrated(home, "budget.match=wall_clock", "budget.per_trial=20 GFLOP", seconds=(0.02, 0.05))
    each = training(plan)
    assert max(each.values()) - min(each.values()) < 0.05
    assert plan.arm("sliding_window").steps > 2 * plan.arm("csa").steps
    assert "wall_clock" not in plan.arm("csa").mismatch
    assert {"flops", "tokens", "params"} <= set(plan.arm("csa").mismatch)
    assert max(arm.steps * arm.step_mflop for arm in plan.arms) <= plan.trial_mflop


@pytest.mark.parametrize(
    ("given_", "same"),
    [("2 cpu-hours", "1 h"), ("1 day", "24 hours")],
)
def test_hours_of_cores_are_shared_by_workers(home: Home, given_: str, same: str) -> None:
    """Two workers of a thread each; measuring beforehand counts where the clock on the wall does."""
    both = [
        calibrated(home, "budget.per_trial=null", f"budget.total={text}", "launcher.workers=2")
        for text in (given_, same)
    ]
    assert both[0].trial_mflop == pytest.approx(both[1].trial_mflop, rel=1e-3)


def test_measuring_is_charged_to_the_first_study_and_used_by_others(home: Home) -> None:
    home.create()
    first = calibrated(home, *TIME)
    study.create(first, home)
    assert planned(home, *TIME) == first, "the same command is the same study"
    second = planned(home, *TIME, "seed=1")
    study.create(second, home)
    for plan, spent in ((first, first.caps["calibrate"]), (second, 0)):
        view = reading.read(plan.study, home, with_verdicts=False)
        account = next(a for a in view.accounts if a.phase == "calibrate")
        assert (account.cap, account.spent, account.reserved) == (plan.caps["calibrate"], spent, 0)
        with db.connect(home).begin() as connection:
            ledger.check(connection, plan.study, plan.total_mflop)
    assert stored.plan_from_text(stored.plan_to_text(first)) == first


def test_a_measurement_is_of_the_arm_and_kept(home: Home) -> None:
    home.create()
    small = (
        "model.hidden_size=16",
        "model.num_hidden_layers=1",
        "sweep.arms.csa={model.compress_ratios: csa@4}",
    )
    plan = planned(home, *TIME, *small, "sweep.arms.sliding_window={model.compress_ratios: swa}")
    said: list[str] = []
    assert throughput.measure([plan], home, said.append)
    assert len(said) == 1
    again = planning.make_plan(plan.run, home)
    assert all(speed.measured and speed.step_seconds > 0 for speed in again.speeds)
    assert [speed.key for speed in again.speeds] == [speed.key for speed in plan.speeds]
    assert not throughput.measure([again], home, said.append)
    wider = planned(home, *TIME, *small[1:], "sweep.arms.sliding_window={model.compress_ratios: swa}")
    assert not any(speed.measured for speed in wider.speeds), "another model has another speed"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["budget.per_trial=20 gpu-min"], ["20 gpu-min", "trainer.device=cpu", "cpu-hours"]),
        (["budget.per_trial=1e-9 s"], ["budget.per_trial"]),
        (["budget.per_trial=0.000001 s"], ["budget.per_trial=0.000001 s", "too small"]),
        (["budget.per_trial=null", "budget.total=0.1 s"], ["budget.total=0.1 s", "too small"]),
        (["budget.per_trial=20 parsecs"], ["20 parsecs", "20 min"]),
    ],
)
def test_times_that_cannot_be_are_refused(home: Home, overrides: list[str], words: list[str]) -> None:
    with pytest.raises(BadInputError) as caught:
        planned(home, *overrides)
    for word in words:
        assert word in str(caught.value)
