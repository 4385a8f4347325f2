"""The real queue and ledger against a model: whatever eight workers do, every account is what it has to be."""

import random
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from ledger_facts import STUDIES, WORKERS
from ledger_world import World
from mutations.injection import Edit, injected

from ablate import meter
from ablate.home import Home

MANY = 10_000
EVENTS = {
    "enqueued",
    "enqueued twice",
    "denied",
    "denied for its evaluations",
    "reused",
    "claimed",
    "claimed again",
    "payment of a zombie",
    "checkpoint of a zombie",
    "result of a zombie",
    "asked to stop",
    "waste",
    "waste with evaluations",
    "contingency exhausted",
    "complete",
    "diverged",
    "failed",
    "paid ahead and given back",
    "paid again",
    "put back",
    "lost",
    "poison",
}

workers = st.integers(0, WORKERS - 1)
studies = st.integers(0, STUDIES - 1)


class Machine(RuleBasedStateMachine):
    """One world. Hypothesis chooses what happens, and finds the shortest way to a mistake."""

    home: Home
    taken: Counter[str]

    def __init__(self):
        super().__init__()
        self.world = World(self.home)

    def act(self, name: str, *arguments):
        self.taken[name] += 1
        with clocked(self.world):
            getattr(self.world, name)(*arguments)

    @rule(
        study=studies,
        phase=st.sampled_from(["search", "confirm"]),
        seed=st.integers(0, 7),
        n=st.integers(0, 11),
    )
    def enqueue(self, study, phase, seed, n):
        self.act("enqueue", self.world.studies[study], phase, seed, n)

    @rule(worker=workers, study=studies)
    def claim(self, worker, study):
        self.act("claim", f"w{worker}", self.world.studies[study])

    @precondition(lambda self: self.world.hands)
    @rule(worker=workers, steps=st.sampled_from([1, 2, 5]), seconds=st.sampled_from([0.0, 0.1, 0.6]))
    def work(self, worker, steps, seconds):
        self.act("work", self.world.holder(worker), steps, seconds)

    @precondition(lambda self: self.world.hands)
    @rule(worker=workers, recorded=st.booleans())
    def save(self, worker, recorded):
        self.act("save", self.world.holder(worker), recorded)

    @precondition(lambda self: self.world.hands)
    @rule(worker=workers, outcome=st.sampled_from(["complete", "complete", "diverged", "failed"]))
    def end(self, worker, outcome):
        self.act("end", self.world.holder(worker), outcome)

    @precondition(lambda self: self.world.hands)
    @rule(worker=workers, lost=st.booleans())
    def put_back(self, worker, lost):
        self.act("put_back", self.world.holder(worker), lost)

    @precondition(lambda self: self.world.hands)
    @rule(worker=workers, what=st.sampled_from(["kill", "bury", "expire", "repeat"]))
    def fault(self, worker, what):
        self.act(what, self.world.holder(worker))

    @rule(study=studies)
    def reap(self, study):
        self.act("reap", self.world.studies[study])

    @rule(study=studies, stopping=st.sampled_from([True, False, False]))
    def stop(self, study, stopping):
        self.act("stop", self.world.studies[study], stopping)

    @invariant()
    def everything_holds(self):
        self.world.check()


def drive(world: World, rng: random.Random, steps: int) -> None:
    """So many random actions, everything checked after each."""
    for _ in range(steps):
        choices = _choices(world, rng)
        act = rng.choices([act for _, act in choices], [weight for weight, _ in choices])[0]
        with clocked(world):
            act()
        world.check()
        world.steps += 1


def _choices(world: World, rng: random.Random) -> list[tuple[int, Callable[[], None]]]:
    """Actions of one random worker and study, each with its weight."""
    number, study = rng.randrange(WORKERS), rng.choice(world.studies)
    holder, phase = world.holder(number), rng.choice(("search", "confirm"))
    return [
        (3, lambda: world.enqueue(study, phase, rng.randrange(6), rng.randrange(12))),
        (6, lambda: world.claim(f"w{number}", study)),
        (7, lambda: world.work(holder, rng.choice((1, 1, 2, 5)), rng.choice((0.0, 0.1, 0.6)))),
        (2, lambda: world.save(holder, rng.random() < 0.7)),
        (2, lambda: world.end(holder, rng.choice(("complete", "complete", "diverged", "failed")))),
        (1, lambda: world.put_back(holder, rng.random() < 0.3)),
        (1, lambda: world.kill(holder)),
        (1, lambda: world.bury(holder)),
        (2, lambda: world.expire(holder)),
        (2, lambda: world.reap(study)),
        (1, lambda: world.stop(study, rng.random() < 0.3)),
        (2, lambda: world.repeat(holder)),
    ]


def clocked(world: World) -> Any:
    """The meter sees the world's clock, so that how far it pays ahead is the same in every repetition."""
    return mock.patch.object(meter, "time", SimpleNamespace(monotonic=lambda: world.clock))


def explore(home: Home, examples: int, steps: int) -> Counter[str]:
    """Actions taken, by name."""
    taken: Counter[str] = Counter()
    profile = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    machine = type("Machine", (Machine,), {"home": home, "taken": taken})
    run_state_machine_as_test(machine, settings=profile)
    return taken


def test_whatever_eight_workers_do_the_accounts_are_those_of_the_model(any_home):
    assert sum(explore(any_home, examples=4, steps=40).values()) >= 100


def test_every_kind_of_event_happens(tmp_path):
    """Else the histories would prove less than they seem to."""
    assert set(_history(Home(tmp_path))) == EVENTS


def _history(home: Home) -> Counter[str]:
    """What happened in a few hundred steps, always the same ones."""
    seen: Counter[str] = Counter()
    for seed in range(42, 46):
        world = World(home)
        drive(world, random.Random(seed), 140)
        seen += world.seen
    return seen


def _mistake(target: str, old: str, new: str) -> Edit:
    return Edit(f"ablate.{target}", ((old, new),))


MISTAKES = {
    "an attempt that is over still counts": _mistake(
        "queue:_current", 'a.state == "running"', 'a.state != "finished"'
    ),
    "what was paid ahead is kept": _mistake(
        "queue:_refund", "if row.paid_steps > computed_steps:", "if False:"
    ),
    "what an ended trial held is never released": _mistake(
        "queue:_end_trial", "ledger.release(connection, row.study, phase, row.id)", "pass"
    ),
    "a lost attempt is not counted": _mistake("queue:_lose", "losses=1", "losses=0"),
    "a lease is reaped before it is over": _mistake(
        "queue:reap", "a.lease_until < db.now()", "a.lease_until < db.now() + 100"
    ),
    "the contingency pays and the phase gets nothing back": _mistake(
        "ledger:waste", 'refund(connection, study, phase, amount, f"{key}{_BACK}", trial)', "pass"
    ),
    "evaluations that a fault lost are not given back": _mistake(
        "ledger:waste", "in lost.items()", "in list(lost.items())[-1:]"
    ),
    "evaluations are not reserved": _mistake(
        "enrolment:enrol", "spec.bill(0, spec.steps).items()", "list(spec.bill(0, spec.steps).items())[-1:]"
    ),
    "evaluations paid ahead are kept": _mistake(
        "queue:_refund",
        "spec.bill(computed_steps, row.paid_steps).items()",
        "list(spec.bill(computed_steps, row.paid_steps).items())[-1:]",
    ),
    "what an ended trial held for evaluations is never released": _mistake(
        "queue:_end_trial", "(EVALUATION, row.phase)", "(row.phase,)"
    ),
    "an exhausted contingency goes on paying": _mistake("ledger:waste", "return False", "amount = 0"),
    "a step is computed and not paid for": _mistake(
        "meter:TrialMeter._pay", "spec.bill(paid, until)", "spec.bill(paid, until - 1)"
    ),
    "a payment whose answer was lost is made twice": _mistake(
        "meter:TrialMeter._resume", "is not None", "is None and False"
    ),
    "less is reserved than the trial may spend": _mistake(
        "enrolment:enrol", "study, phase, amount, f", "study, phase, amount - 1, f"
    ),
    "a failed trial is taken for a result": _mistake(
        "enrolment:known", '("complete", "diverged")', '("complete", "diverged", "failed")'
    ),
    "a stop is heard after paying": _mistake("meter:TrialMeter._settle", "if not stopping:", "if True:"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_the_real_parts_is_noticed(name, tmp_path):
    with injected((MISTAKES[name],)), pytest.raises(AssertionError):
        _history(Home(tmp_path))


@pytest.mark.slow
def test_ten_thousand_steps_on_each_storage(any_home):
    taken: Counter[str] = Counter()
    while sum(taken.values()) < MANY:
        taken += explore(any_home, examples=40, steps=60)
    print(f"\n{sum(taken.values())} steps: {dict(taken)}")
    assert sum(taken.values()) >= MANY
