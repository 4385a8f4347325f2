"""What a study that goes on would differ in from how it began: configuration, data, code. Refused, or recorded.

A study is one question under one set of conditions. Where those have changed since it began, its earlier and its
later trials may not be comparable, so whoever goes on has to be asked, and everybody who reads the results told.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select, update

from ablate import checkpoint, config, db, planning, provenance, queue, schema, stored, tree
from ablate.errors import BadInputError
from ablate.home import Home
from ablate.records import Plan, TrialSpec
from ablate.trials import spec_for

LIBRARIES = ("ablate", "torch", "lightning", "numpy")
"""Facts of a study's provenance that decide numbers, beside hashes of code."""

FREE = ("launcher.", "tracking.")
"""Keys that say where a study runs and what mirrors it."""


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it was."""

    what: str
    was: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.what} was {self.was}, now {self.now}"


def facts(plan: Plan) -> dict[str, str]:
    """What is recorded of where a study's numbers come from."""
    return provenance.collect() | provenance.code(plan.run.plugins)


def differences(
    old: Plan, new: Plan, recorded: Mapping[str, str], here: Mapping[str, str]
) -> list[Difference]:
    """What would decide other numbers, of configuration, data, code and libraries.

    Args:
        recorded: facts of the study, and `here` those of this machine.
    """
    changed = _of_configuration(old.run, new.run)
    return [
        *(difference for difference in changed if planning.decides(difference.what)),
        *_of_data(old, new),
        *of_code(recorded, here),
    ]


def _of_configuration(old: schema.Run, new: schema.Run) -> list[Difference]:
    was, now = (dict(tree.leaves(schema.to_dict(run))) for run in (old, new))
    keys = [key for key in was | now if was.get(key) != now.get(key)]
    return [Difference(key, was.get(key), now.get(key)) for key in keys]


def _of_data(old: Plan, new: Plan) -> Iterator[Difference]:
    if old.data_fingerprint != new.data_fingerprint:
        yield Difference("data", old.data_fingerprint, new.data_fingerprint)


def of_code(recorded: Mapping[str, str], here: Mapping[str, str]) -> list[Difference]:
    """Code and libraries that differ; what was not recorded is not compared."""
    keys = [key for key in recorded if key in LIBRARIES or key.startswith(provenance.CODE)]
    found = [Difference(key, recorded[key], here.get(key)) for key in keys if recorded[key] != here.get(key)]
    commits = recorded.get("git_commit"), here.get("git_commit")
    if found and commits[0] != commits[1]:
        found.append(Difference("git_commit", *commits))
    return found


def refuse(study: str, found: Sequence[Difference]) -> None:
    """Say what differs and what can be done.

    Raises:
        BadInputError: always.
    """
    listed = "\n".join(f"  {difference}" for difference in found)
    raise BadInputError(
        f"study {study} began under other conditions:\n{listed}\n"
        "Go back to those, start a study anew with `ablate run`, or go on nevertheless with --force, which is "
        "recorded and shown with its verdicts."
    )


def replanned(old: Plan, overrides: Sequence[str], home: Home) -> Plan:
    """A stored plan under today's data and under overrides, for the same arms and accounts.

    Raises:
        BadInputError: bad overrides; data that is gone; or what would change the study's cost, which is
            another study.
    """
    from ablate import data

    run, made = config.changed(old.run, overrides), old
    changed = [d for d in _of_configuration(old.run, run) if not d.what.startswith(FREE)]
    for difference in changed:
        if not planning.decides(difference.what):
            raise BadInputError(
                f"{difference.what}={difference.now} has no effect on a study that is there. "
                f"Allowed: keys of {', '.join(key.rstrip('.') for key in FREE)}; others with --force."
            )
    if changed:
        made = planning.make_plan(run, home)
        costs = [
            {arm.name: (arm.steps, arm.step_mflop, arm.early, arm.evaluations) for arm in plan.arms}
            for plan in (old, made)
        ]
        if costs[0] != costs[1] or (old.caps, old.trial_mflop) != (made.caps, made.trial_mflop):
            raise BadInputError(
                f"{' '.join(overrides)} changes arms, steps or costs of study {old.study}, whose compute is divided "
                "already. Start another study with `ablate run`; trials that both have are not paid for twice."
            )
    return dataclasses.replace(
        made,
        study=old.study,
        fingerprint=old.fingerprint,
        run=dataclasses.replace(made.run, launcher=run.launcher, tracking=run.tracking),
        workers=run.launcher.workers or old.workers,
        data_fingerprint=data.fingerprint(run.data),
    )


def begun(connection: Connection, study: str) -> bool:
    """Whether anything was trained."""
    a = db.attempt.c
    return connection.execute(select(a.trial).where(a.study == study).limit(1)).first() is not None


def accept(
    connection: Connection, home: Home, plan: Plan, found: Sequence[Difference], here: Mapping[str, str]
) -> None:
    """Go on under new conditions: recorded, and trials that wait or were under way take them over.

    Workers that still live under the old ones lose their trials, and end.
    """
    s, a, t = db.study.c, db.attempt.c, db.trial.c
    told = "; ".join(map(str, found))
    db.note(connection, plan.study, "deviation", f"went on under other conditions, by --force: {told}")
    recorded = json.loads(connection.execute(select(s.provenance).where(s.name == plan.study)).scalar_one())
    connection.execute(
        update(db.study)
        .where(s.name == plan.study)
        .values(plan=stored.plan_to_text(plan), provenance=json.dumps({**recorded, **here}))
    )
    held = select(a.worker).where(a.study == plan.study, a.state == "running")
    for worker in connection.execute(held).scalars().all():
        reason = "the study goes on under other conditions"
        queue.reap(connection, plan.study, plan.run.launcher.max_attempts, worker, reason)
    waiting = select(t.id, t.number, t.spec).where(t.study == plan.study, t.state == "queued")
    for row in connection.execute(waiting).all():
        old = stored.spec_from_text(row.spec)
        new = _respecified(plan, old)
        if new.fingerprint != old.fingerprint:
            checkpoint.remove(home.trial(plan.study, row.number))
        values = {"spec": stored.spec_to_text(new), "fingerprint": new.fingerprint}
        connection.execute(update(db.trial).where(t.id == row.id).values(**values))


def _respecified(plan: Plan, old: TrialSpec) -> TrialSpec:
    return spec_for(plan, plan.arm(old.arm), old.phase, old.replicate, old.seed, old.lr)
