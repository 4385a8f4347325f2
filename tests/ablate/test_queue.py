"""Leases and fencing: one worker per trial, zombies refused, work taken back, payments exact throughout."""

import multiprocessing
import time

import pytest
import small_studies
from sqlalchemy import select, update

from ablate import db, enrolment, ledger, queue, reading, stored, study
from ablate.errors import StopTraining, Superseded
from ablate.home import Home
from ablate.meter import TrialMeter
from ablate.rounds import search
from ablate.stages import Stage
from ablate.trials import spec_for

STEPS = 40
EVALUATION = small_studies.EVALUATION_MFLOP


def fill(home: Home, trials: int, **options) -> tuple[str, int]:
    """A study with so many queued search trials of the first arm; returns its name and total."""
    plan = small_studies.plan(steps=STEPS, points=max(5, trials), **options)
    study.create(plan, home)
    slots = [slot for slot in search(plan, {}).slots if slot.arm == plan.arms[0].name][:trials]
    with db.connect(home).begin() as connection:
        for number, slot in enumerate(slots):
            spec = spec_for(plan, plan.arms[0], "search", 0, number, slot.lr)
            enrolment.enrol(connection, plan.study, slot.key, spec, None)
    return plan.study, plan.total_mflop


@pytest.fixture
def home(any_home):
    return any_home


def claim(home: Home, name: str, worker: str, lease: float = 60.0) -> queue.Claim:
    with db.connect(home).begin() as connection:
        found = queue.claim(connection, name, worker, lease)
    assert found is not None
    return found


def reap(home: Home, name: str, max_attempts: int = 3) -> list[str]:
    with db.connect(home).begin() as connection:
        return queue.reap(connection, name, max_attempts)


def accounts(home: Home, name: str, total: int) -> dict[str, tuple[int, int, int]]:
    """(spent, reserved, waste) by phase, the invariant checked."""
    with db.connect(home).begin() as connection:
        ledger.check(connection, name, total)
        return {a.phase: (a.spent, a.reserved, a.waste) for a in ledger.accounts(connection, name)}


def result(home: Home, name: str):
    with db.connect(home).begin() as connection:
        row = connection.execute(select(db.trial).where(db.trial.c.study == name)).first()
    return row.state, stored.result_from_text(row.result) if row.result else None


def pay_all(meter: TrialMeter) -> None:
    for step in range(1, STEPS):
        meter.debit(step, 1)


def complete(given: queue.Claim):
    done = queue.failed(given.spec, STEPS, "")
    return type(done)(**{**vars(done), "outcome": "complete", "val_loss": 3.0})


def _claim_all(home, name: str, worker: str, found) -> None:
    db._engine.cache_clear()
    while True:
        with db.connect(home).begin() as connection:
            taken = queue.claim(connection, name, worker, 60.0)
        if taken is None:
            return
        found.put((worker, taken.number, taken.attempt))


def test_four_processes_never_claim_the_same_trial(home):
    name, _ = fill(home, 60)
    context = multiprocessing.get_context("fork")
    found = context.Queue()
    workers = [context.Process(target=_claim_all, args=(home, name, f"w{i}", found)) for i in range(4)]
    for worker in workers:
        worker.start()
    claims = [found.get(timeout=30) for _ in range(60)]
    for worker in workers:
        worker.join(30)
    assert found.empty()
    assert sorted(number for _, number, _ in claims) == list(range(60))
    assert {attempt for _, _, attempt in claims} == {1}


def test_a_zombie_is_refused_everything(home):
    name, total = fill(home, 1)
    old = claim(home, name, "w1", lease=0.05)
    zombie = TrialMeter(db.connect(home), name, old, 0.05)
    zombie.debit(0, 10)
    time.sleep(0.1)
    assert reap(home, name) == ["w1"]
    new = claim(home, name, "w2")
    assert (new.trial, new.attempt) == (old.trial, 2)
    with pytest.raises(Superseded):
        zombie.debit(10, 1)
    with pytest.raises(Superseded):
        zombie.durable(10)
    with db.connect(home).begin() as connection:
        assert not queue.finish(connection, old, complete(old), STEPS)
        assert not queue.give_up(connection, old, 10, "stopped")
        assert queue.finish(connection, new, complete(new), new.paid_steps)
        assert not queue.finish(connection, new, complete(new), new.paid_steps), "a result is accepted once"
    assert result(home, name)[0] == "complete"
    accounts(home, name, total)


def test_progress_keeps_the_lease_and_silence_loses_it(home):
    name, _ = fill(home, 1)
    held = claim(home, name, "w1", lease=0.4)
    with db.connect(home).begin() as connection:
        for _ in range(4):
            time.sleep(0.15)
            assert queue.renew(connection, held, 0.4)
    assert reap(home, name) == []
    time.sleep(0.5)
    assert reap(home, name) == ["w1"]


def test_lost_work_is_paid_by_the_contingency_when_it_is_done_again(home):
    name, total = fill(home, 1)
    step = small_studies.STEP_MFLOP
    first = TrialMeter(db.connect(home), name, claim(home, name, "w1", lease=0.01), 0.01)
    first.debit(0, 25)
    time.sleep(0.05)
    reap(home, name)
    again = claim(home, name, "w2")
    assert again.paid_steps == 25
    second = TrialMeter(db.connect(home), name, again, 60)
    second.debit(10, 1)  # its checkpoint held 10 steps
    lost = 15 * step + EVALUATION  # that after step 20 with them
    assert accounts(home, name, total)["contingency"] == (lost, 0, lost)
    second.debit(11, STEPS - 11)
    with db.connect(home).begin() as connection:
        assert queue.finish(connection, again, complete(again), second.computed_steps)
    held = accounts(home, name, total)
    assert held["search"] == (STEPS * step, 0, 0), "the phase pays the allowance once"
    assert held["evaluation"] == (4 * EVALUATION, 0, 0)


def test_stages_of_unequal_cost_are_paid_lost_and_given_back_exactly(home):
    early = tuple(
        Stage(seq_len=8, batch_size=1, attention="sparse", steps=steps, step_mflop=mflop)
        for steps, mflop in ((10, 3), (20, 11))
    )
    name, total = fill(home, 1, early=early)
    allowance = 10 * 3 + 20 * 11 + 10 * small_studies.STEP_MFLOP
    assert accounts(home, name, total)["search"] == (0, allowance, 0)
    first = TrialMeter(db.connect(home), name, claim(home, name, "w1", lease=0.01), 0.01)
    first.debit(0, 35)
    paid = 10 * 3 + 20 * 11 + 5 * 7
    assert accounts(home, name, total)["search"] == (paid, allowance - paid, 0)
    time.sleep(0.05)
    reap(home, name)
    again = claim(home, name, "w2")
    second = TrialMeter(db.connect(home), name, again, 60)
    second.debit(8, 1)  # steps 8 to 34 were lost, of all three stages
    lost = 2 * 3 + 20 * 11 + 5 * 7 + 3 * EVALUATION  # three quarters of the compute end there
    assert accounts(home, name, total)["contingency"] == (lost, 0, lost)
    second.debit(9, 26)
    with db.connect(home).begin() as connection:
        assert queue.give_up(connection, again, 12, "stopped")  # of 35 paid steps 12 are done
    held = accounts(home, name, total)
    assert held["search"] == (10 * 3 + 2 * 11, allowance - 10 * 3 - 2 * 11, 0)
    assert held["evaluation"] == (0, 4 * EVALUATION, 0)
    row = reading.read(name, home, with_verdicts=False).trials[0]
    assert row.charged_mflop == 10 * 3 + 2 * 11 + lost
    assert row.spec.allowance_mflop == allowance


def test_a_checkpoint_beyond_what_the_database_knew_wastes_nothing(home):
    name, total = fill(home, 1)
    first = TrialMeter(db.connect(home), name, claim(home, name, "w1", lease=0.01), 0.01)
    first.debit(0, 25)
    time.sleep(0.05)
    reap(home, name)
    second = TrialMeter(db.connect(home), name, claim(home, name, "w2"), 60)
    second.debit(25, 1)
    assert accounts(home, name, total)["contingency"] == (0, 0, 0)


def test_an_exhausted_contingency_ends_the_trial_and_leaves_the_charge(home):
    name, total = fill(home, 1, contingency=20)
    step = small_studies.STEP_MFLOP
    TrialMeter(db.connect(home), name, claim(home, name, "w1", lease=0.01), 0.01).debit(0, 25)
    time.sleep(0.05)
    reap(home, name)
    again = claim(home, name, "w2")
    meter = TrialMeter(db.connect(home), name, again, 60)
    with pytest.raises(ledger.LedgerError, match="contingency exhausted: a fault lost 15 steps"):
        meter.debit(10, 1)
    with db.connect(home).begin() as connection:
        failed = queue.failed(again.spec, meter.computed_steps, meter.failure)
        assert queue.finish(connection, again, failed, meter.computed_steps)
    held = accounts(home, name, total)
    assert held == {
        "search": (25 * step, 0, 0),
        "confirm": (0, 0, 0),
        "evaluation": (2 * EVALUATION, 0, 0),
        "contingency": (0, 0, 0),
    }
    assert result(home, name)[1].reason.startswith("contingency exhausted")


def test_what_was_paid_ahead_is_given_back(home):
    name, total = fill(home, 1)
    held = claim(home, name, "w1")
    meter = TrialMeter(db.connect(home), name, held, 60)
    for step in range(6):
        meter.debit(step, 1)
    with db.connect(home).begin() as connection:
        diverged = type(d := complete(held))(**{**vars(d), "outcome": "diverged", "steps": 6})
        assert queue.finish(connection, held, diverged, meter.computed_steps)
    assert accounts(home, name, total)["search"] == (6 * small_studies.STEP_MFLOP, 0, 0)


def test_a_trial_cannot_pay_beyond_its_allowance(home):
    name, total = fill(home, 1)
    meter = TrialMeter(db.connect(home), name, claim(home, name, "w1"), 60)
    meter.debit(0, STEPS)
    with pytest.raises(ledger.LedgerError, match="allowance has 40"):
        meter.debit(STEPS, 1)
    assert accounts(home, name, total)["search"][0] == STEPS * small_studies.STEP_MFLOP


def test_a_stop_is_heard_before_anything_is_paid(home):
    name, total = fill(home, 1)
    held = claim(home, name, "w1")
    meter = TrialMeter(db.connect(home), name, held, 60)
    meter.debit(0, 1)
    with db.connect(home).begin() as connection:
        connection.execute(update(db.study).values(stopping=True))
    with pytest.raises(StopTraining):
        pay_all(meter)
    with db.connect(home).begin() as connection:
        assert queue.give_up(connection, held, meter.computed_steps, "stopped")
    spent, reserved, _ = accounts(home, name, total)["search"]
    assert spent == meter.computed_steps * small_studies.STEP_MFLOP
    assert spent + reserved == STEPS * small_studies.STEP_MFLOP, "the rest stays reserved for its resumption"
    assert claim(home, name, "w2").attempt == 2


def test_poison_ends_after_max_attempts(home):
    name, total = fill(home, 1)
    for attempt in range(3):
        held = claim(home, name, f"w{attempt}", lease=0.01)
        TrialMeter(db.connect(home), name, held, 0.01).debit(0, 5)
        time.sleep(0.05)
        reap(home, name, max_attempts=3)
    state, ended = result(home, name)
    assert state == "failed"
    assert ended.reason.startswith("poison: 3 attempts were lost")
    step = small_studies.STEP_MFLOP
    assert accounts(home, name, total) == {
        "search": (5 * step, 0, 0),
        "confirm": (0, 0, 0),
        "evaluation": (0, 0, 0),
        "contingency": (10 * step, 0, 10 * step),
    }
    with db.connect(home).begin() as connection:
        assert queue.claim(connection, name, "w9", 60) is None


def test_meter_pays_in_chunks_of_half_a_second(home):
    name, _ = fill(home, 1)
    engine = db.connect(home)
    meter = TrialMeter(engine, name, claim(home, name, "w1"), 60)
    begun = time.monotonic()
    for step in range(STEPS):
        meter.debit(step, 1)
        time.sleep(0.02)
    halves = (time.monotonic() - begun) / 0.5
    with engine.begin() as connection:
        training = db.ledger.c.phase == "search"
        kinds = connection.execute(select(db.ledger.c.kind).where(training)).scalars().all()
    assert kinds.count("debit") <= 4 + halves, "0.8 s of work in a few transactions"
