"""One consistent reading of a study: what every table, page, report and exporter renders."""

import functools
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, select

from ablate import db, ledger, proposals, search_view, stored
from ablate.home import Home
from ablate.records import Effects, LrCurve, Plan, StudyView, TrialRow, Verdict
from ablate.scores import Score

EVENTS = 500
"""Newest events that a reading holds."""


def read(name: str, home: Home, with_verdicts: bool = True) -> StudyView:
    """A study as it stands, read in one transaction that no writer waits for.

    Raises:
        BadInputError: there is no such study.
    """
    with db.reading(db.connect(home)) as connection:
        study = db.study_row(connection, name, home)
        trials = _trials(connection, name)
        accounts = ledger.accounts(connection, name)
        events = _events(connection, name)
        workers = _workers(connection, name)
        plan = stored.plan_from_text(study.plan)
        proposed = proposals.rows(connection, name) if plan.run.sweep.searches else ()
    judged = _judge(study.plan, plan, trials) if with_verdicts else _UNJUDGED
    return StudyView(
        name=name,
        state=study.state,
        created_at=study.created_at,
        plan=plan,
        trials=trials,
        accounts=accounts,
        lr_curves=judged.lr_curves,
        verdicts=judged.verdicts,
        provenance=json.loads(study.provenance),
        events=events,
        workers=workers,
        effects=judged.effects,
        search=search_view.searched(plan, proposed, trials) if plan.run.sweep.searches else None,
        scores=judged.scores,
    )


def _trials(connection: Connection, name: str) -> tuple[TrialRow, ...]:
    t, j, a = db.trial.c, db.job.c, db.attempt.c
    joined = db.trial.outerjoin(db.job, j.trial == t.id).outerjoin(
        db.attempt, (a.trial == t.id) & (a.number == j.attempt)
    )
    rows = connection.execute(
        select(db.trial, j.attempt.label("attempts"), a.worker, a.progress)
        .select_from(joined)
        .where(t.study == name)
        .order_by(t.number)
    )
    return tuple(_row(row) for row in rows)


def _row(row: db.Found) -> TrialRow:
    result = stored.result_from_text(row.result) if row.result else None
    progress = stored.point_from_text(row.progress) if row.progress else None
    if result is not None and result.curve:
        progress = result.curve[-1]
    spec = stored.spec_from_text(row.spec)
    return TrialRow(
        number=row.number,
        spec=spec,
        state=row.state,
        result=result,
        reused_from=row.reused_from,
        attempts=row.attempts or 0,
        charged_mflop=sum(spec.bill(0, row.paid_steps).values()) + row.wasted,
        evaluation_mflop=spec.evaluated(row.paid_steps),
        worker=row.worker,
        started_at=row.started_at,
        ended_at=row.ended_at,
        progress=progress,
    )


def _events(connection: Connection, name: str) -> tuple[tuple[float, str, str], ...]:
    e = db.event_log.c
    newest = select(e.at, e.kind, e.text).where(e.study == name).order_by(e.id.desc()).limit(EVENTS)
    return tuple((row.at, row.kind, row.text) for row in reversed(connection.execute(newest).all()))


def _workers(connection: Connection, name: str) -> dict[str, tuple[str, int, int | None, float]]:
    rows = connection.execute(select(db.worker).where(db.worker.c.study == name).order_by(db.worker.c.name))
    return {row.name: (row.host, row.pid, row.trial, row.seen_at) for row in rows}


class Judged(NamedTuple):
    """What follows from the trials that have ended."""

    lr_curves: tuple[LrCurve, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    effects: Effects | None = None
    scores: tuple[Score, ...] = ()


_UNJUDGED = Judged()


def _judge(text: str, plan: Plan, trials: Sequence[TrialRow]) -> Judged:
    """Learning-rate curves, verdicts, effects and scores, judged anew only when a trial has ended."""
    ended = tuple(_Same(row) for row in trials if row.result is not None)
    return _judged(text, _Same(plan), ended) if ended else _UNJUDGED


class _Same:
    """Something to remember results by: equal if it is the same trial or plan in the same state."""

    def __init__(self, value: Any):
        self.value = value
        self._key = (value.spec.fingerprint, value.number, value.state) if isinstance(value, TrialRow) else ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


@functools.lru_cache(maxsize=8)
def _judged(text: str, plan: _Same, ended: tuple[_Same, ...]) -> Judged:
    from ablate import effects, verdict
    from ablate.scores import scores

    rows = tuple(row.value for row in ended)
    verdicts = verdict.verdicts(plan.value, rows)
    return Judged(
        lr_curves=verdict.lr_curves(plan.value, rows),
        verdicts=verdicts,
        effects=effects.effects(plan.value, rows, verdicts),
        scores=scores(plan.value, rows),
    )
