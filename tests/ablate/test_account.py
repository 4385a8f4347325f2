"""The account of a study: amounts that add up, a proof that fails where it has to, and a log that replays."""

import json
from collections import Counter

import pytest
import small_studies
from sqlalchemy import update
from typer.testing import CliRunner

from ablate import account, db, ledger, queue, study
from ablate.cli import app
from ablate.console import ledger_screen
from ablate.meter import TrialMeter
from ablate.scheduler import Scheduler


@pytest.fixture
def disturbed(any_home):
    """A study of which one trial was lost and is done again, one diverged, and one is complete."""
    plan = small_studies.plan(arms=("dense", "csa_with_a_name_longer_than_its_column"), steps=20)
    study.create(plan, any_home)
    scheduler = Scheduler(any_home, plan.study)
    scheduler.tick()
    scheduler.close()
    engine = db.connect(any_home)

    def claim(worker):
        with engine.begin() as connection:
            return queue.claim(connection, plan.study, worker, 60.0)

    lost = claim("w1")
    TrialMeter(engine, plan.study, lost, 60.0).debit(0, 12)
    with engine.begin() as connection:
        queue.reap(connection, plan.study, 3, "w1", "died")
    again = TrialMeter(engine, plan.study, claim("w2"), 60.0)
    again.debit(5, 1)
    for outcome, steps in (("diverged", 6), ("complete", 20)):
        held = claim("w3")
        meter = TrialMeter(engine, plan.study, held, 60.0)
        meter.debit(0, steps)
        result = queue.failed(held.spec, steps, "", outcome)
        with engine.begin() as connection:
            queue.finish(connection, held, result, steps)
    return any_home, plan


def test_arms_sum_to_their_phase_and_entries_to_the_accounts(disturbed):
    home, plan = disturbed
    found = account.account(plan.study, home, with_events=True)
    assert not found.fault
    search = found.phases[0]
    arms = found.arms["search"]
    assert [arm.arm for arm in arms] == [arm.name for arm in plan.arms]
    assert sum(arm.spent for arm in arms) == search.spent
    assert sum(arm.reserved for arm in arms) == search.reserved
    assert sum(arm.returned for arm in arms) == (20 - 6) * small_studies.STEP_MFLOP
    assert sum(arm.waste for arm in arms) == (12 - 5) * small_studies.STEP_MFLOP
    assert sum((Counter(arm.trials) for arm in arms), Counter()) == {
        "running": 1,
        "diverged": 1,
        "complete": 1,
        "queued": 7,
    }
    for phase in found.phases:
        booked = [entry for entry in found.events if entry.phase == phase.phase]
        sums = [sum(getattr(entry, name) for entry in booked) for name in ("spent", "reserved", "waste")]
        assert sums == [phase.spent, phase.reserved, phase.waste]
    (waste,) = (entry for entry in found.events if entry.kind == "waste")
    assert (waste.trial, waste.attempt) == (0, 2), "the attempt that does it again"
    assert len(found.events) == found.entries == len({(entry.phase, entry.key) for entry in found.events})


def test_evaluations_are_an_account_of_their_own_for_all_arms(disturbed):
    """Of four, after every fifth step: two were lost and done again to come, one was done before it diverged."""
    home, plan = disturbed
    found = account.account(plan.study, home)
    (phase,) = (phase for phase in found.phases if phase.phase == "evaluation")
    arms, each = found.arms["evaluation"], small_studies.EVALUATION_MFLOP
    assert phase.cap == plan.caps["evaluation"] == 16 * small_studies.EVALS * each
    assert sum(arm.spent for arm in arms) == phase.spent == (1 + 1 + 4) * each
    assert sum(arm.reserved for arm in arms) == phase.reserved == (3 + 7 * 4) * each
    assert sum(arm.returned for arm in arms) == 3 * each
    assert sum(arm.waste for arm in arms) == each
    lost = sum(arm.waste for arms in found.arms.values() for arm in arms)
    assert lost == next(phase.waste for phase in found.phases if phase.phase == "contingency")
    assert sum(sum(arm.trials.values()) for arm in arms) == 10


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"paid_steps": 7}, "7 steps of 49 in all are paid for"),
        ({"wasted": 1}, "of waste are booked"),
        ({"state": "complete"}, "trial 0, complete: holds"),
    ],
)
def test_a_trial_that_its_entries_do_not_account_for_breaks_the_proof(disturbed, values, said):
    home, plan = disturbed
    t = db.trial.c
    with db.connect(home).begin() as connection:
        ledger.check(connection, plan.study, plan.total_mflop)
        connection.execute(update(db.trial).where(t.study == plan.study, t.number == 0).values(**values))
    assert said in account.account(plan.study, home).fault


def test_the_command_fits_a_terminal_and_fails_where_the_ledger_is_broken(disturbed, monkeypatch):
    home, plan = disturbed
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("ABLATE_DB", home.storage or "sqlite")
    command = ["ledger", plan.study, "--home", str(home.root)]
    shown = CliRunner().invoke(app, [*command, "--events"])
    assert shown.exit_code == 0, shown.output
    assert "Every FLOP is accounted for" in shown.output
    assert max(map(len, shown.output.splitlines())) <= 80
    values = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
    assert values["accounted"]
    for phase in values["phases"]:
        assert phase["spent"] + phase["reserved"] + phase["free"] == phase["cap"]
    with db.connect(home).begin() as connection:
        connection.execute(update(db.budget).where(db.budget.c.phase == "search").values(reserved=1))
    broken = CliRunner().invoke(app, command)
    assert broken.exit_code == 1
    assert "The ledger is broken" in broken.output
    assert "Every FLOP" not in broken.output


def test_every_entry_is_in_the_log(disturbed, capsys, monkeypatch):
    home, plan = disturbed
    monkeypatch.setenv("COLUMNS", "200")
    found = account.account(plan.study, home, with_events=True)
    ledger_screen.ledger(found, with_events=True)
    shown = capsys.readouterr().out
    assert all(entry.key in shown for entry in found.events)
