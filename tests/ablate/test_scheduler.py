"""Ticks: what is enqueued, paid, reused, told to Optuna, and repaired after a scheduler died."""

from collections import Counter
from functools import partial

import fake_training
import optuna
import pytest
import small_studies
from small_studies import finish
from sqlalchemy import update

from ablate import db, storage, study
from ablate.home import Home
from ablate.scheduler import Scheduler
from ablate.search import open_storage


@pytest.fixture
def home(slowly_any_home):
    return slowly_any_home


def mirror(home: Home, name: str) -> optuna.Study:
    return optuna.load_study(study_name=name, storage=open_storage(home))


def test_a_study_from_plan_to_done(home):
    plan = small_studies.plan(extensions=2)
    study.create(plan, home)
    view = finish(home, plan)
    assert view.state == "done"
    search = [r for r in view.trials if r.spec.phase == "search"]
    assert [r.spec.arm for r in search] == ["dense", "csa"] * 5, "arms take turns"
    confirm = [r for r in view.trials if r.spec.phase == "confirm"]
    assert [(r.spec.replicate, r.spec.arm) for r in confirm] == [
        (i, a) for i in (0, 1) for a in ("dense", "csa")
    ]
    assert {r.spec.lr for r in confirm} == {3e-3}, "the tuned rate"
    assert all(r.charged_mflop == plan.trial_mflop + r.spec.evaluation_mflop for r in view.trials)
    accounts = {a.phase: a for a in view.accounts}
    assert accounts["search"].spent == 10 * plan.trial_mflop, "extensions nobody needed stay unspent"
    assert accounts["search"].cap == 14 * plan.trial_mflop
    assert sum(a.reserved for a in view.accounts) == 0


def test_optuna_mirrors_the_search(home):
    plan = small_studies.plan(arms=("dense", "diverges"), extensions=1)
    study.create(plan, home)
    view = finish(home, plan)
    found = mirror(home, plan.study)
    assert found.metric_names == ["val_loss"]
    search = {(r.spec.arm, r.spec.lr): r for r in view.trials if r.spec.phase == "search"}
    assert len(found.trials) == len(search) == 12
    for trial in found.trials:
        row = search[trial.params["arm"], trial.params["lr"]]
        assert trial.state == optuna.trial.TrialState.COMPLETE
        assert trial.value == row.result.val_loss
        assert trial.user_attrs["trial"] == row.number
        assert trial.constraints["diverged"] == (row.spec.arm == "diverges")


def test_failed_trials_are_told_as_failed_and_the_study_ends_honestly(home):
    plan = small_studies.plan(arms=("dense", "breaks"))
    study.create(plan, home)
    view = finish(home, plan)
    assert view.state == "done"
    broken = [r for r in view.trials if r.spec.arm == "breaks"]
    assert {r.state for r in broken} == {"failed"}
    assert all("RuntimeError: this component is broken" in r.result.reason for r in broken)
    assert all(r.charged_mflop == small_studies.STEP_MFLOP for r in broken), "they cost what they paid for"
    assert {r.spec.arm for r in view.trials if r.spec.phase == "confirm"} == {"dense"}
    assert any(kind == "arm_lost" and "breaks" in text for _, kind, text in view.events)
    states = Counter(t.state.name for t in mirror(home, plan.study).trials)
    assert states == {"COMPLETE": 6, "FAIL": 6}


def test_without_a_baseline_there_is_nothing_to_confirm(home):
    plan = small_studies.plan(arms=("breaks", "dense"))
    study.create(plan, home)
    view = finish(home, plan)
    assert view.state == "done"
    assert not [r for r in view.trials if r.spec.phase == "confirm"]


def test_an_arm_at_the_edge_extends_every_arm(home):
    plan = small_studies.plan(extensions=2)

    def train(spec, corpus, folder, meter):
        done = fake_training.train(spec, corpus, folder, meter)
        shifted = done.val_loss - (20 * spec.lr if spec.arm == "csa" else 0)
        return type(done)(**{**vars(done), "val_loss": shifted})

    study.create(plan, home)
    view = finish(home, plan, train)
    search = Counter(r.spec.arm for r in view.trials if r.spec.phase == "search")
    assert search == {"dense": 7, "csa": 7}
    assert max(r.spec.lr for r in view.trials if r.spec.arm == "csa") == pytest.approx(0.048)


def test_what_the_budget_cannot_pay_is_not_started(home):
    plan = small_studies.plan(extensions=0)
    study.create(plan, home)
    with db.connect(home).begin() as connection:
        cap = int(3.5 * plan.trial_mflop)
        connection.execute(update(db.budget).where(db.budget.c.phase != "contingency").values(cap=cap))
    view = finish(home, plan)
    assert view.state == "done"
    by_arm = Counter((r.spec.phase, r.spec.arm) for r in view.trials)
    assert by_arm == {
        ("search", "dense"): 2,
        ("search", "csa"): 1,
        ("confirm", "dense"): 2,
        ("confirm", "csa"): 1,
    }
    assert any(kind == "budget" and "1 planned trials" in text for _, kind, text in view.events)
    assert all(a.spent <= a.cap for a in view.accounts)


def test_results_are_found_again_by_fingerprint(home):
    first = small_studies.plan("engine-first")
    study.create(first, home)
    old = finish(home, first)
    second = small_studies.plan("engine-second", arms=("dense", "csa", "hca"))
    study.create(second, home)
    view = finish(home, second)
    same = {r.spec.fingerprint: r for r in old.trials}
    reused = [r for r in view.trials if r.reused_from]
    assert {r.spec.fingerprint for r in reused} == set(same)
    assert all(r.reused_from == "engine-first" and r.charged_mflop == 0 for r in reused)
    assert all(r.result == same[r.spec.fingerprint].result for r in reused)
    accounts = {a.phase: a.spent for a in view.accounts}
    assert accounts == {
        "search": 5 * first.trial_mflop,
        "confirm": 2 * first.trial_mflop,
        "evaluation": 7 * first.arms[0].evaluation_mflop,
        "contingency": 0,
    }
    assert len([k for _, k, _ in view.events if k == "reused"]) == len(reused)
    assert len(mirror(home, second.study).trials) == 15, "Optuna hears of reused trials too"
    third = small_studies.plan("engine-third", data="other data")
    study.create(third, home)
    assert not any(r.reused_from for r in finish(home, third).trials)


def test_only_one_process_ticks(home):
    plan = small_studies.plan()
    study.create(plan, home)
    scheduler = Scheduler(home, plan.study)
    with storage.exclusive(home, scheduler._lock.name):
        assert scheduler.tick() is False
    assert scheduler.tick() is True


def test_a_lost_optuna_file_is_made_again(home):
    plan = small_studies.plan(extensions=0)
    study.create(plan, home)
    scheduler = Scheduler(home, plan.study)
    scheduler.tick()
    scheduler.close()
    for file in home.root.glob("optuna.db*"):
        file.unlink()
    view = finish(home, plan)
    values = {t.user_attrs["trial"]: t.value for t in mirror(home, plan.study).trials}
    assert values == {r.number: r.result.val_loss for r in view.trials if r.spec.phase == "search"}


def test_memory_exhaustion_is_a_failure_without_a_value_and_the_worker_goes_on(home):
    plan = small_studies.plan(extensions=0)

    def train(spec, corpus, folder, meter):
        if spec.lr == plan.lr_grid[0]:
            meter.debit(0, 3)
            raise MemoryError("cannot allocate 40 GB")
        return fake_training.train(spec, corpus, folder, meter)

    study.create(plan, home)
    view = finish(home, plan, train)
    failed = [r for r in view.trials if r.state == "failed"]
    assert len(failed) == 2
    assert all(r.result.reason.startswith("oom: MemoryError: cannot allocate 40 GB") for r in failed)
    assert all(r.result.val_loss is None and r.attempts == 1 for r in failed)
    assert len(view.trials) == 14


def test_a_full_disk_is_tried_again(home):
    plan = small_studies.plan(extensions=0)
    full = iter([True, True])

    def train(spec, corpus, folder, meter):
        meter.debit(0, 1)
        if next(full, False):
            raise OSError(28, "No space left on device")
        return fake_training.train(spec, corpus, folder, meter)

    study.create(plan, home)
    view = finish(home, plan, partial(train))
    assert view.trials[0].state == "complete"
    assert view.trials[0].attempts == 3
