"""An open search as the scheduler's tick advances it: propose, price, refuse or train, tell, and choose finalists.

The table `proposal` is the truth, Optuna's study a copy of it. A tick may end anywhere: a proposal that was asked for
and not recorded is told as failed by the next opening, and the same number is asked for again.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, func, select, update

from ablate import db, enrolment, ledger, open_search, pareto, space, stored, warm_start
from ablate.enrolment import ENDED
from ablate.errors import BadInputError
from ablate.home import Home
from ablate.records import ArmPlan, Plan, optimizers_differ
from ablate.trials import spec_for

if TYPE_CHECKING:
    from optuna.storages import RDBStorage

    from ablate.samplers import Proposer

SUFFIX = "-search"
"""Optuna's study of an open search beside the one of the learning rates."""

BARREN = 100
"""Proposals in a row that are no new model end the search: the space has hardly anything new left."""


class Proposals:
    """The open search of one study. Used under the scheduler's lock only."""

    def __init__(self, home: Home, plan: Plan):
        self._home, self._plan, self._study = home, plan, plan.study
        self._engine = db.connect(home)
        self._settings = plan.run.sweep.search
        self._space = space.read(plan.run)
        self._limits = open_search.limits(plan.run)
        self._charged = self._space.searches_optimizer or optimizers_differ(arm.run for arm in plan.arms)
        brute = self._settings.sampler == "brute_force"
        self._patience = max(BARREN, (self._space.size() or 0) if brute else 0)
        self._storage: RDBStorage | None = None
        self._proposer: Proposer | None = None

    def close(self) -> None:
        """Let go of Optuna's storage."""
        if self._storage is not None:
            self._storage.engine.dispose()
            self._proposer = self._storage = None

    def advance(self) -> Plan | None:
        """Propose what workers can take; the plan with the finalists once the search is over."""
        while True:
            self._tell()
            rows = self._rows()
            waiting = sum(row.kind == "new" and row.state not in ENDED for row in rows)
            if reason := self._over(rows):
                return None if waiting else self._conclude(rows, reason)
            if waiting >= self._hands():
                return None
            self._propose(rows)

    def _over(self, rows: Sequence[db.Found]) -> str:
        """Why there will be no further proposal; empty where there will be."""
        models = sum(row.kind == "new" for row in rows)
        if models >= self._settings.trials:
            return f"{models} models were tried"
        if _barren(rows) >= self._patience:
            return f"{self._patience} proposals in a row were nothing new, after {models} models"
        with db.reading(self._engine) as connection:
            if ledger.available(connection, self._study, "search") < self._plan.trial_mflop:
                return f"the budget does not pay for another model, after {models}"
        return ""

    def _hands(self) -> int:
        """Workers that may wait for a proposal; asked further ahead, a sampler would know less."""
        w = db.worker.c
        with db.reading(self._engine) as connection:
            there = connection.execute(
                select(func.count()).select_from(db.worker).where(w.study == self._study)
            ).scalar_one()
        return max(1, self._plan.workers, there)

    def _propose(self, rows: Sequence[db.Found]) -> None:
        from ablate.samplers import proposer_of

        number = len(rows)
        by = proposer_of(self._settings, number, _barren(rows))
        asked, draw = self._optuna().ask(number, by)
        lr = self._plan.run.optimizer.lr if draw.lr is None else draw.lr
        values: dict[str, Any] = {
            "study": self._study,
            "number": number,
            "optuna": asked,
            "sampler": by,
            "params": json.dumps(draw.params),
            "overrides": json.dumps(draw.overrides),
            "lr": lr,
        }
        try:
            arm = open_search.price(self._plan, f"p{number}", draw.overrides, self._charged)
        except BadInputError as error:
            values |= {"kind": "invalid", "reason": str(error), "identity": "", "schedule": ""}
            self._refuse(values | {"costs": "{}"})
            return
        costs = open_search.costs(arm)
        exceeded = open_search.violations(costs, self._limits)
        values |= {"identity": open_search.identity(arm), "schedule": arm.variant.schedule}
        values["costs"] = json.dumps(costs)
        if any(value > 0 for value in exceeded.values()):
            told = [f"{k} is {costs[k]:g}, allowed {self._limits[k]:g}" for k in exceeded if exceeded[k] > 0]
            self._refuse(values | {"kind": "infeasible", "reason": "; ".join(told)})
            return
        self._train(values, arm, lr)

    def _refuse(self, values: dict[str, Any]) -> None:
        with self._engine.begin() as connection:
            connection.execute(db.proposal.insert().values(**values))
            text = f"proposal {values['number']} is {values['kind']} and not trained: {values['reason']}"
            db.note(connection, self._study, values["kind"], text)

    def _train(self, values: dict[str, Any], arm: ArmPlan, lr: float) -> None:
        """Record a proposal with its trial, or with the one of an earlier proposal that is the same."""
        spec = spec_for(self._plan, arm, "search", 0, self._plan.search_seed, lr)
        number, p, t = values["number"], db.proposal.c, db.trial.c
        same = (
            select(p.number, p.trial)
            .join(db.trial, t.id == p.trial)
            .where(p.study == self._study, p.kind == "new", t.fingerprint == spec.fingerprint)
        )
        with self._engine.begin() as connection:
            if (earlier := connection.execute(same.limit(1)).first()) is not None:
                reason = f"the same model as proposal {earlier.number}"
                values |= {"kind": "duplicate", "reason": reason, "trial": earlier.trial}
                db.note(connection, self._study, "duplicate", f"proposal {number} costs nothing: {reason}")
            else:
                found = enrolment.known(connection, spec)
                slot = f"propose/{number}"
                trial = enrolment.enrol(connection, self._study, slot, spec, found, told=True)
                values |= {"kind": "new", "reason": "", "trial": trial}
            connection.execute(db.proposal.insert().values(**values))

    # what Optuna hears

    def _optuna(self) -> "Proposer":
        """The open proposer, reconciled with the table."""
        if self._proposer is None:
            from ablate.samplers import Proposer
            from ablate.search import open_storage

            earlier = warm_start.read(self._plan, self._home)
            name, fingerprint = f"{self._study}{SUFFIX}", self._plan.fingerprint
            self._storage = open_storage(self._home)
            self._proposer = Proposer(self._storage, name, self._space, self._settings, fingerprint, earlier)
            rows = {row.optuna: row for row in self._rows()}
            for number in sorted(self._proposer.reconcile(set(rows))):
                row = rows[number]  # Optuna's file was lost: make it again
                ended = row.trial is None or row.state in ENDED
                heard = warm_start.heard(self._plan, row) if ended else None
                self._mark(row.number, optuna=self._proposer.add(json.loads(row.params), heard), told=ended)
        return self._proposer

    def _tell(self) -> None:
        for row in self._rows():
            if not row.told and (row.trial is None or row.state in ENDED):
                proposer = self._optuna()
                current = next(fresh for fresh in self._rows() if fresh.number == row.number)
                # opening may have given it another number
                proposer.tell(warm_start.heard(self._plan, current))
                self._mark(row.number, told=True)

    def _mark(self, number: int, **values: Any) -> None:
        p = db.proposal.c
        with self._engine.begin() as connection:
            one = update(db.proposal).where(p.study == self._study, p.number == number)
            connection.execute(one.values(**values))

    def _rows(self) -> Sequence[db.Found]:
        with db.reading(self._engine) as connection:
            return rows(connection, self._study)

    # the end

    def _conclude(self, rows: Sequence[db.Found], reason: str) -> Plan:
        """Make arms of the best proposals, in the plan that everything else reads."""
        chosen = finalists(self._plan, rows)
        arms = [
            open_search.price(self._plan, f"finalist_{i}", json.loads(row.overrides), self._charged)
            for i, row in enumerate(chosen, 1)
        ]
        seq_len = self._plan.run.trainer.seq_len
        doubts = [f"{arm.name}: {text}" for arm in arms for text in arm.variant.warnings(seq_len)]
        s = db.study.c
        with self._engine.begin() as connection:  # the stored plan: launcher and tracking may have changed
            text = connection.execute(select(s.plan).where(s.name == self._study)).scalar_one()
            plan = stored.plan_from_text(text)
            sweep = plan.run.sweep
            found = {arm.name: json.loads(row.overrides) for arm, row in zip(arms, chosen, strict=True)}
            plan = dataclasses.replace(
                plan,
                run=dataclasses.replace(plan.run, sweep=dataclasses.replace(sweep, arms=sweep.arms | found)),
                arms=(*plan.arms, *arms),
                warnings=(*plan.warnings, *doubts),
                finalists={arm.name: row.number for arm, row in zip(arms, chosen, strict=True)},
            )
            connection.execute(
                update(db.study).where(s.name == self._study).values(plan=stored.plan_to_text(plan))
            )
            told = ", ".join(
                f"{arm.name} is proposal {row.number}" for arm, row in zip(arms, chosen, strict=True)
            )
            text = f"the open search is over: {reason}; {told or 'no model came to a loss'}"
            db.note(connection, self._study, "explored", text)
        return plan


def rows(connection: Connection, study: str) -> Sequence[db.Found]:
    """Proposals of a study in their order, each with the number, state and result of its trial."""
    p, t = db.proposal.c, db.trial.c
    joined = db.proposal.outerjoin(db.trial, t.id == p.trial)
    return connection.execute(
        select(db.proposal, t.number.label("trial_number"), t.state, t.result)
        .select_from(joined)
        .where(p.study == study)
        .order_by(p.number)
    ).all()


def finalists(plan: Plan, rows: Sequence[db.Found]) -> list[db.Found]:
    """The best proposals that are different models, and different from the arms that are there.

    By loss; with more objectives by fronts, and within a front by loss.
    """
    taken = {open_search.identity(arm) for arm in plan.arms}
    best: dict[str, tuple[float, db.Found]] = {}
    for row in rows:
        if row.kind != "new" or row.state != "complete" or row.identity in taken:
            continue
        loss = stored.result_from_text(row.result).val_loss
        if loss is not None and math.isfinite(loss) and loss < best.get(row.identity, (math.inf,))[0]:
            best[row.identity] = (loss, row)
    search, candidates = plan.run.sweep.search, list(best.values())
    points = [
        (loss, *(json.loads(row.costs)[name] for name in search.objectives[1:])) for loss, row in candidates
    ]
    return [candidates[i][1] for i in pareto.best(points, search.finalists)]


def _barren(rows: Sequence[db.Found]) -> int:
    """Proposals at the end that were no new model."""
    return next((i for i, row in enumerate(reversed(rows)) if row.kind == "new"), len(rows))
