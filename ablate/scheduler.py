"""The scheduler's tick: reap, tell, and enqueue whatever the plan wants next and the ledger can pay.

There is no coordinator that can die: whoever gets the study's lock ticks, `ablate run` or an idle worker. A
tick may end anywhere. Each of its steps is one transaction, can be repeated, and the next tick goes on from
the tables alone.
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine, select, update

from ablate import checkpoint, confirmation, db, enrolment, faults, ledger, queue, rounds, storage, stored
from ablate.enrolment import ENDED
from ablate.home import Home
from ablate.records import Plan, TrialSpec
from ablate.rounds import Slot
from ablate.sequential import Decision
from ablate.trials import spec_for

if TYPE_CHECKING:
    from ablate.proposals import Proposals
    from ablate.search import Search

_DECIDED: dict[Decision, str] = {
    "difference": "a difference is established",
    "equivalent": "equivalence is established",
    "futile": "hardly any chance of a verdict is left",
    "open": "nothing is established",
}


class Scheduler:
    """Ticks one study. Cheap to make; Optuna is imported when there is something to say to it.

    Attributes:
        lost: workers whose leases ended in ticks of this scheduler; whoever can end those processes clears
        it.
    """

    def __init__(self, home: Home, study: str):
        self._home, self._study = home, study
        self._engine: Engine = db.connect(home)
        self._lock: Path = home.root / "locks" / f"{study}.tick"
        self._search: Search | None = None
        self.lost: list[str] = []
        self._open: Proposals | None = None
        self._plan: Plan = self._stored_plan()

    def tick(self) -> bool:
        """Advance the study as far as is possible now; False where another process is doing so."""
        with storage.exclusive(self._home, self._lock.name, wait=False) as mine:
            if not mine:
                return False
            self._lock.parent.mkdir(parents=True, exist_ok=True)
            self._lock.touch()
            try:
                self._plan = self._stored_plan()  # another process may have ended an open search
                self._reap()
                self._tell()
                self._plan_ahead()
            except enrolment.Overtaken:
                self.close()  # on a server the lock may end with its connection, while this process lives
                return False
            except BaseException:
                self.close()  # what Optuna was told is uncertain: reconcile before the next word
                raise
        return True

    def idle_seconds(self) -> float:
        """Time since anybody ticked."""
        return time.time() - self._lock.stat().st_mtime if self._lock.exists() else math.inf

    def close(self) -> None:
        """Let go of Optuna's storage."""
        if self._search is not None:
            self._search.close()
            self._search = None
        if self._open is not None:
            self._open.close()
            self._open = None

    def _stored_plan(self) -> Plan:
        with db.reading(self._engine) as connection:
            found = select(db.study.c.plan).where(db.study.c.name == self._study)
            return stored.plan_from_text(connection.execute(found).scalar_one())

    def _reap(self) -> None:
        with db.reading(self._engine) as connection:
            late = queue.expired(connection, self._study)
        if late:
            with self._engine.begin() as connection:
                self.lost += queue.reap(connection, self._study, self._plan.run.launcher.max_attempts)

    # search: what Optuna hears

    def _optuna(self) -> "Search":
        """The open search, reconciled with the study database."""
        if self._search is None:
            from ablate.search import Search

            self._search = Search(self._home, self._plan)
            t = db.trial.c
            with db.reading(self._engine) as connection:
                rows = connection.execute(
                    select(t.id, t.slot, t.optuna, t.spec).where(
                        t.study == self._study, t.phase == "search", t.optuna.is_not(None)
                    )
                ).all()
            missing = self._search.reconcile(row.optuna for row in rows)
            for row in rows:
                if row.optuna in missing:  # Optuna's file is a copy; it was lost, and is made again
                    number = self._search.ask(_slot(row.slot, stored.spec_from_text(row.spec)))
                    with self._engine.begin() as connection:
                        connection.execute(
                            update(db.trial).where(t.id == row.id).values(optuna=number, told=False)
                        )
        return self._search

    def _tell(self) -> None:
        t = db.trial.c
        with db.reading(self._engine) as connection:
            rows = connection.execute(
                select(db.trial)
                .where(t.study == self._study, t.phase == "search", t.state.in_(ENDED), ~t.told)
                .order_by(t.number)
            ).all()
        for row in rows:
            self._tell_one(row)
            with self._engine.begin() as connection:
                connection.execute(update(db.trial).where(t.id == row.id).values(told=True))

    def _tell_one(self, row: db.Found) -> None:
        from ablate.search import Told

        search = self._optuna()
        t = db.trial.c
        with db.reading(self._engine) as connection:  # opening may have given it another number
            number = connection.execute(select(t.optuna).where(t.id == row.id)).scalar_one()
        result = stored.result_from_text(row.result) if row.result else None
        attributes: dict[str, Any] = {"trial": row.number, "outcome": row.state}
        attributes["fingerprint"] = row.fingerprint
        if result is not None:
            attributes |= {"steps": result.steps, "tokens": result.tokens, "mflop": result.useful_mflop}
            attributes |= {"val_bpb": result.val_bpb, "seconds": round(result.seconds, 3)}
        if row.reused_from:
            attributes["reused_from"] = row.reused_from
        search.tell(
            Told(
                number=number,
                value=result.val_loss if result and row.state != "failed" else None,
                diverged=row.state == "diverged",
                attributes={key: value for key, value in attributes.items() if value is not None},
            )
        )
        faults.point("tell.post")

    # what comes next

    def _plan_ahead(self) -> None:
        """Enqueue what is wanted and can be paid; end the study where nothing is left to wait for."""
        with db.reading(self._engine) as connection:
            study = connection.execute(select(db.study).where(db.study.c.name == self._study)).one()
        if study.state == "done" or study.stopping:
            return
        if study.state != "running":
            with self._engine.begin() as connection:
                set_state(connection, self._study, "running")
                db.note(connection, self._study, "running", f"study {self._study} runs")
        if self._plan.run.sweep.searches and self._plan.finalists is None and not self._explore():
            return
        while True:  # a reused trial ends at once, which may open the next round
            rows = self._trials()
            new = self._next(rows)
            enqueued = 0
            while enqueued < len(new) and self._enqueue(new[enqueued]):
                enqueued += 1
            if not enqueued:
                break
        if all(row.state in ENDED for row in rows):
            self._finish(unpaid=len(new))

    def _explore(self) -> bool:
        """Advance the open search; whether it is over, and the plan has the arms that it found."""
        from ablate.proposals import Proposals

        if self._open is None:
            self._open = Proposals(self._home, self._plan)
        found = self._open.advance()
        if found is not None:
            self._plan = found
        return found is not None

    def _next(self, rows: Sequence[db.Found]) -> list[Slot]:
        """Slots that are wanted now and have no trial, in order."""
        have = {row.slot for row in rows}
        tried = {row.slot: _tried(row) for row in rows if row.phase == "search" and row.state in ENDED}
        search = rounds.search(self._plan, tried)
        new = [slot for slot in search.slots if slot.key not in have]
        searching = any(row.phase == "search" and row.state not in ENDED for row in rows)
        if searching or (new and self._can_pay(new[0])):
            return new
        reason = search.reason or f"the budget does not pay for {len(new)} more trials"
        rates = self._rates(rows)
        self._say_once("search_done", f"search is over: {reason}")
        for arm in self._plan.arms:
            if arm.name not in rates:
                self._say_once("arm_lost", f"{arm.name}: no learning rate trained, so it is not confirmed")
        if self._plan.baseline.name not in rates:
            return []  # nothing to compare with
        ended = {
            (row.arm, stored.spec_from_text(row.spec).replicate): (
                _tried(row)[1] if row.state in ("complete", "diverged") else None
            )
            for row in rows
            if row.phase == "confirm" and row.state in ENDED
        }
        self._say_decisions(rates, ended)
        return [slot for slot in rounds.confirm(self._plan, rates, ended) if slot.key not in have]

    def _say_decisions(self, rates: dict[str, float], ended: confirmation.Ended) -> None:
        """Name the arms that the looks so far have stopped."""
        if not self._plan.run.sweep.confirm.looks:
            return
        looks = confirmation.play(self._plan, rates, ended)
        for arm, decision in looks.decisions.items():
            if decision != "continue":
                pairs = looks.seen[arm][-1].n
                self._say_once("look", f"{arm}: {_DECIDED[decision]} after {pairs} pairs")

    def _rates(self, rows: Sequence[db.Found]) -> dict[str, float]:
        """Tuned learning rate by arm, of arms that have one."""
        rates = {
            arm.name: rounds.tuned_rate(
                [
                    _tried(row)
                    for row in rows
                    if row.phase == "search" and row.arm == arm.name and row.state in ENDED
                ]
            )
            for arm in self._plan.arms
        }
        return {name: lr for name, lr in rates.items() if lr is not None}

    def _enqueue(self, slot: Slot) -> bool:
        """Pay for a slot's trial and let workers take it, or reuse its result; False where neither can be."""
        spec = self._spec(slot)
        with db.reading(self._engine) as connection:
            known = enrolment.known(connection, spec)
            payable = ledger.covers(connection, self._study, spec.bill(0, spec.steps))
        if known is None and not payable:
            return False
        asked = self._optuna().ask(slot) if slot.phase == "search" else None
        with self._engine.begin() as connection:
            enrolment.enrol(connection, self._study, slot.key, spec, known, optuna=asked)
        return True

    def _can_pay(self, slot: Slot) -> bool:
        spec = self._spec(slot)
        with db.reading(self._engine) as connection:
            payable = ledger.covers(connection, self._study, spec.bill(0, spec.steps))
            return payable or enrolment.known(connection, spec) is not None

    def _spec(self, slot: Slot) -> TrialSpec:
        return spec_for(self._plan, self._plan.arm(slot.arm), slot.phase, slot.replicate, slot.seed, slot.lr)

    def _trials(self) -> Sequence[db.Found]:
        t = db.trial.c
        with db.reading(self._engine) as connection:
            return connection.execute(
                select(t.slot, t.arm, t.phase, t.state, t.spec, t.result)
                .where(t.study == self._study)
                .order_by(t.number)
            ).all()

    def _finish(self, unpaid: int) -> None:
        self._tell()
        with self._engine.begin() as connection:
            if unpaid:
                text = f"the budget does not pay for {unpaid} planned trials; they are not started"
                db.note(connection, self._study, "budget", text)
            set_state(connection, self._study, "done")
            db.note(connection, self._study, "done", f"study {self._study} is done")
        for folder in self._home.trial(self._study, 0).parent.glob("*"):
            checkpoint.remove(folder)  # those that a worker left which died between its result and this

    def _say_once(self, kind: str, text: str) -> None:
        e = db.event_log.c
        said = select(e.id).where(e.study == self._study, e.kind == kind, e.text == text).limit(1)
        with db.reading(self._engine) as connection:
            if connection.execute(said).first() is not None:
                return
        with self._engine.begin() as connection:
            db.note(connection, self._study, kind, text)


def set_state(connection: Connection, study: str, state: str, stopping: bool = False) -> None:
    """Move a study that is not done to another state; `stopping` asks its workers to let go."""
    s = db.study.c
    connection.execute(
        update(db.study).where(s.name == study, s.state != "done").values(state=state, stopping=stopping)
    )


def _tried(row: db.Found) -> rounds.Tried:
    spec = stored.spec_from_text(row.spec)
    loss = stored.result_from_text(row.result).val_loss if row.result else None
    return spec.lr, loss if loss is not None and math.isfinite(loss) else None, row.state


def _slot(key: str, spec: TrialSpec) -> Slot:
    return Slot(key, spec.phase, spec.arm, spec.replicate, spec.seed, spec.lr)
