"""A study: created from a plan, run to its end, stopped and gone on with, read and found by name."""

import dataclasses
import difflib
import json
from collections.abc import Callable, Sequence

from sqlalchemy import Connection, select, update

from ablate import calibrations, db, drift, ledger, reading, registration, stored
from ablate.errors import AblateError, BadInputError
from ablate.home import Home
from ablate.records import Plan, StudyView
from ablate.runner import Runner

Observer = Callable[[StudyView], None]


def create(plan: Plan, home: Home, force: bool = False) -> tuple[str, bool]:
    """Store a plan as a study, or reopen the one with its fingerprint; returns (name, whether it is new).

    A study that is reopened takes over where it runs and what mirrors it (`launcher`, `tracking`) from the
    new plan; what was foreseen about its outcome stays as it was.

    Args:
        force: go on although configuration, data or code are not those that the study began with.

    Raises:
        AblateError: the name belongs to a study with another fingerprint.
        BadInputError: without `force`, what differs.
    """
    s = db.study.c
    here = drift.facts(plan)
    facts = here | registration.facts(plan, _plans(home))
    with db.connect(home).begin() as connection:
        found = connection.execute(select(db.study).where(s.name == plan.study)).first()
        if found is None:
            connection.execute(
                db.study.insert().values(
                    name=plan.study,
                    fingerprint=plan.fingerprint,
                    state="planned",
                    stopping=False,
                    plan=stored.plan_to_text(plan),
                    provenance=json.dumps(facts),
                    created_at=db.now(),
                )
            )
            ledger.open_accounts(connection, plan.study, plan.caps, plan.total_mflop)
            calibrations.charge(connection, plan)
            db.note(connection, plan.study, "created", f"study {plan.study} created")
            return plan.study, True
        if found.fingerprint != plan.fingerprint:
            raise AblateError(
                f"study {plan.study} exists in {home.place} with fingerprint {found.fingerprint}, "
                f"this plan has {plan.fingerprint}. Choose another home."
            )
        old = stored.plan_from_text(found.plan)
        if asked := registration.changes(old, plan):
            text = f"run again with a registration that differs, which changes nothing: {asked}"
            db.note(connection, plan.study, "deviation", text)
        if found.state != "done" and _reopen(connection, home, old, plan, here, force):
            return plan.study, False
        run = dataclasses.replace(old.run, launcher=plan.run.launcher, tracking=plan.run.tracking)
        kept = stored.plan_to_text(dataclasses.replace(old, run=run, workers=plan.workers))
        if kept != found.plan:
            connection.execute(update(db.study).where(s.name == plan.study).values(plan=kept))
    return plan.study, False


def _reopen(
    connection: Connection, home: Home, old: Plan, plan: Plan, here: dict[str, str], force: bool
) -> bool:
    """Compare with how the study began; whether it goes on under other conditions from now on."""
    s = db.study.c
    recorded = json.loads(connection.execute(select(s.provenance).where(s.name == plan.study)).scalar_one())
    found = drift.differences(old, plan, recorded, here)
    if not found:
        return False
    if not drift.begun(connection, plan.study):  # nothing is there that the rest would have to agree with
        now = json.dumps({**recorded, **here})
        connection.execute(update(db.study).where(s.name == plan.study).values(provenance=now))
        return False
    if not force:
        drift.refuse(plan.study, found)
    drift.accept(connection, home, plan, found, here)
    return True


def _plans(home: Home) -> dict[str, Plan]:
    """Plans of all studies of the home that have begun; those that another version wrote are left out."""
    with db.reading(db.connect(home)) as connection:
        s = db.study.c
        rows = connection.execute(select(s.name, s.plan).where(s.state != "planned")).all()
    found = {}
    for row in rows:
        try:
            found[row.name] = stored.plan_from_text(row.plan)
        except (AblateError, KeyError, TypeError, ValueError):
            continue
    return found


def run(plan: Plan, home: Home, observer: Observer, interval: float = 0.5, force: bool = False) -> StudyView:
    """Work on a study with local workers until it is done, creating it if need be; returns how it ended.

    Only one process runs a study; another one watches it, and takes over where the first ends before the
    study. SIGTERM and SIGHUP end it early, in state `stopped`, with all work checkpointed and the ledger
    settled.

    Args:
        observer: sees the study every `interval` seconds.
        force: as for `create`.

    Raises:
        KeyboardInterrupt: after a first Ctrl-C has settled as above, or a second one has ended all workers
        at once. AblateError: workers cannot start.
    """
    create(plan, home, force)
    return work(plan, home, observer, interval)


def work(plan: Plan, home: Home, observer: Observer, interval: float = 0.5) -> StudyView:
    """As `run`, on a study that has just been created or reopened."""
    return Runner(plan, home, observer, interval).run()


def resume(
    name: str, home: Home, observer: Observer, overrides: Sequence[str] = (), force: bool = False
) -> StudyView:
    """Go on with a study from the database; as `run`.

    Args:
        overrides: changes of its configuration. Those of `launcher` and `tracking` are free.
    """
    before = reading.read(name, home, with_verdicts=False)
    plan = before.plan if before.state == "done" else drift.replanned(before.plan, overrides, home)
    return run(plan, home, observer, force=force)


def view(name: str, home: Home, with_verdicts: bool = True) -> StudyView:
    """A study as it stands, in one consistent reading.

    Raises:
        BadInputError: there is no such study.
    """
    return reading.read(name, home, with_verdicts)


def find(home: Home, prefix: str) -> str:
    """Full name of a study by a beginning of it: the newest that fits, unless a name fits exactly.

    Raises:
        BadInputError: none does.
    """
    known = names(home)
    if prefix in known:
        return prefix
    fitting = [name for name in known if name.startswith(prefix)]
    if fitting:
        return fitting[0]
    if not known:
        raise BadInputError(f"{home.place} has no studies yet. Start one with: ablate run sweep=NAME")
    near = difflib.get_close_matches(prefix, known, n=1)
    hint = f"Did you mean '{near[0]}'? " if near else ""
    raise BadInputError(f"no study begins with '{prefix}'. {hint}Studies here: {', '.join(known)}.")


def names(home: Home) -> list[str]:
    """All studies of a home, newest first. Asking makes no database."""
    if not db.exists(home):
        return []
    s = db.study.c
    with db.reading(db.connect(home)) as connection:
        return list(connection.execute(select(s.name).order_by(s.created_at.desc(), s.name)).scalars())
