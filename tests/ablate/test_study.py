"""Whole studies with real worker processes: killed, stopped, resumed, watched; and studies found by name."""

import dataclasses
import os
import signal
import sys
import threading
import time
from pathlib import Path

import fake_training
import psutil
import pytest
import small_studies
from small_studies import check, finish, freeze

from ablate import reading, stored, study
from ablate.errors import AblateError, BadInputError
from ablate.home import Home
from ablate.runner import Runner

FAKE = str(Path(fake_training.__file__))


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


@pytest.fixture(autouse=True)
def _no_verdicts(monkeypatch):
    """These studies are about the engine; statistics have tests of their own."""
    monkeypatch.setattr(reading, "_judge", lambda *_: reading.Judged())
    monkeypatch.setenv("PYTHONPATH", str(Path(FAKE).parents[1]))


def runner(home, plan, observer=lambda _: None, seconds="0.01"):
    study.create(plan, home)
    return Runner(plan, home, observer, 0.1, [sys.executable, FAKE, seconds])


def when(condition, action):
    """An observer that acts when the study first fits the condition, and again while the action finds it too late."""
    done = []

    def observe(view):
        if not done and condition(view) and action(view) is not False:
            done.append(view)

    return observe


def amid(view):
    """Trials that have run some of their steps."""
    return {r.number for r in view.trials if r.state == "running" and r.progress and 5 < r.progress.step < 20}


def busy(view):
    return bool(amid(view))


def stop_amid(view, home):
    """Stop the worker that runs one of these trials; its process, or False where it has come to another meanwhile."""
    number, pid = next((trial, pid) for _, pid, trial, _ in view.workers.values() if trial in amid(view))
    freeze(pid, home)
    if number in amid(study.view(view.plan.study, home)):
        return pid
    os.kill(pid, signal.SIGCONT)
    return False


def stuck(view):
    return any(r.state == "running" and r.spec.lr > 0.01 for r in view.trials)


def children():
    return [p for p in psutil.Process().children(recursive=True) if FAKE in " ".join(p.cmdline())]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_sigkill_of_a_worker_mid_trial(home, workers):
    plan = small_studies.plan(workers=workers, extensions=0)

    def kill(view):
        pid = stop_amid(view, home)
        return pid and os.kill(pid, signal.SIGKILL)

    view = runner(home, plan, when(busy, kill), "0.02").run()
    assert view.state == "done"
    check(home, plan)
    spent = {a.phase: a.spent for a in view.accounts}
    assert (spent["search"], spent["confirm"]) == (10 * plan.trial_mflop, 4 * plan.trial_mflop)
    evaluating = small_studies.EVALS * small_studies.EVALUATION_MFLOP
    assert spent["evaluation"] == plan.caps["evaluation"] == 14 * evaluating
    assert 0 < spent["contingency"] < plan.trial_mflop
    assert sum(spent.values()) <= plan.total_mflop
    retried = [r for r in view.trials if r.attempts > 1]
    assert len(retried) == 1
    assert retried[0].charged_mflop == plan.trial_mflop + evaluating + spent["contingency"]
    clean = Home(home.root / "clean")
    study.create(plan, clean)
    expected = {r.number: r.result.tokens_hash for r in finish(clean, plan).trials}
    assert {r.number: r.result.tokens_hash for r in view.trials} == expected, (
        "resumed, not repeated or skipped"
    )
    lost = next(text for _, kind, text in view.events if kind == "lost")
    assert "SIGKILL" in lost
    assert not children()


def test_ctrl_c_settles_and_resume_goes_on(home, capsys):
    plan = small_studies.plan(workers=2, extensions=0)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        runner(home, plan, when(busy, lambda _: os.kill(os.getpid(), signal.SIGINT)), "0.02").run()
    assert signal.getsignal(signal.SIGINT) is before
    assert "Ctrl-C again" in capsys.readouterr().err
    assert not children()
    view = study.view(plan.study, home)
    assert view.state == "stopped"
    assert not [r for r in view.trials if r.state == "running"]
    assert not view.workers
    check(home, plan)
    view = runner(home, plan, seconds="0").run()
    assert view.state == "done"
    assert {a.phase: a.spent for a in view.accounts}["contingency"] == 0, "a clean stop wastes nothing"
    assert all(r.charged_mflop == plan.trial_mflop + r.spec.evaluation_mflop for r in view.trials)


def test_a_second_ctrl_c_stops_at_once_and_can_be_resumed(home):
    plan = small_studies.plan(workers=1, extensions=0, steps=20)

    def twice(_):
        os.kill(os.getpid(), signal.SIGINT)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):  # a step takes longer than anybody waits
        runner(home, plan, when(stuck, twice), "30").run()
    assert time.monotonic() - began < 20
    assert not children()
    view = study.view(plan.study, home)
    assert view.state == "stopped"
    assert not [r for r in view.trials if r.state == "running"]
    assert runner(home, plan, seconds="0").run().state == "done"
    check(home, plan)


def test_sigterm_stops_with_a_checkpoint(home):
    plan = small_studies.plan(workers=1, extensions=0)
    view = runner(home, plan, when(busy, lambda _: os.kill(os.getpid(), signal.SIGTERM)), "0.02").run()
    assert view.state == "stopped"
    spent = sum(a.spent for a in view.accounts)
    assert 0 < spent < 14 * plan.trial_mflop


def test_a_hung_worker_loses_its_trial_and_is_replaced(home):
    plan = small_studies.plan(workers=1, extensions=0, lease=1.0)
    view = runner(home, plan, when(busy, lambda view: stop_amid(view, home)), "0.02").run()
    assert view.state == "done"
    assert any("no progress" in text for _, kind, text in view.events if kind == "lost")
    assert not children()
    check(home, plan)


def test_workers_that_cannot_start_end_the_run_with_their_last_words(home):
    plan = small_studies.plan()
    study.create(plan, home)
    command = [sys.executable, "-c", "raise SystemExit('no such module')"]
    with pytest.raises(AblateError, match="no such module"):
        Runner(plan, home, lambda _: None, 0.1, command).run()
    assert study.view(plan.study, home).state == "stopped"


def test_a_second_runner_only_watches(home):
    plan = small_studies.plan(extensions=0)
    seen = []
    first = runner(home, plan, seconds="0.02")
    thread = threading.Thread(target=first.run)
    thread.start()
    time.sleep(0.3)
    second = runner(home, plan, lambda view: seen.append(view.state))
    view = second.run()
    thread.join(30)
    assert view.state == "done"
    assert seen[0] == "running"
    assert {r.attempts for r in view.trials} == {1}


def test_the_same_plan_again_costs_nothing(home):
    plan = small_studies.plan(extensions=0)
    assert study.create(plan, home) == (plan.study, True)
    done = finish(home, plan)
    assert study.create(plan, home) == (plan.study, False)
    began = time.monotonic()
    again = study.run(plan, home, lambda _: None)
    assert time.monotonic() - began < 2
    assert again.accounts == done.accounts
    assert again.state == "done"


def test_reopening_takes_over_the_launcher_and_keeps_the_forecast(home):
    plan = small_studies.plan()
    study.create(plan, home)
    run = dataclasses.replace(plan.run, launcher=dataclasses.replace(plan.run.launcher, workers=7))
    study.create(dataclasses.replace(plan, run=run, workers=7, detectable_effect=9.9), home)
    kept = study.view(plan.study, home).plan
    assert (kept.workers, kept.run.launcher.workers) == (7, 7)
    assert kept.detectable_effect == plan.detectable_effect
    with pytest.raises(AblateError, match="fingerprint"):
        study.create(dataclasses.replace(plan, fingerprint="other"), home)


def test_a_stored_plan_is_the_plan(home):
    plan = small_studies.plan()
    assert stored.plan_from_text(stored.plan_to_text(plan)) == plan
    study.create(plan, home)
    assert study.view(plan.study, home).plan == plan


def test_studies_are_found_by_the_beginning_of_their_name(home):
    with pytest.raises(BadInputError, match="no studies yet"):
        study.find(home, "")
    assert not home.database.exists(), "asking creates nothing"
    for name in ("compress-aaaa", "compress-bbbb", "residual-cccc"):
        study.create(small_studies.plan(name), home)
    assert study.names(home) == ["residual-cccc", "compress-bbbb", "compress-aaaa"]
    assert study.find(home, "") == "residual-cccc"
    assert study.find(home, "compress") == "compress-bbbb", "the newest that fits"
    assert study.find(home, "compress-aaaa") == "compress-aaaa"
    with pytest.raises(BadInputError, match="Did you mean 'residual-cccc'"):
        study.find(home, "residul-cccc")
    with pytest.raises(BadInputError, match="does not exist"):
        study.view("nothing", home)


def test_a_broken_database_is_named(home):
    home.database.write_text("this is no database, but it is long enough to be taken for one" * 20)
    with pytest.raises(AblateError, match="cannot be used as a study database"):
        study.names(home)


def test_reading_is_quick(home):
    plan = small_studies.plan(arms=("dense", "csa", "hca", "v4"), replicates=20, extensions=0, steps=2)
    study.create(plan, home)
    assert len(finish(home, plan).trials) == 100
    study.view(plan.study, home)
    began = time.perf_counter()
    for _ in range(5):
        study.view(plan.study, home)
    assert (time.perf_counter() - began) / 5 < 0.05
