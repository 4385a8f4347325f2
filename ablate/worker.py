"""A worker: a long-lived process that imports once, prepares the data once, and trains trial after trial.

It can be started anywhere that sees the home folder, and killed at any moment. Asked to stop (SIGTERM,
SIGHUP, Ctrl-C, or through the study), it saves a checkpoint after the step at hand and puts its trial back.
"""

import faulthandler
import gc
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from sqlalchemy import delete, select, update

from ablate import checkpoint, db, faults, queue, storage, stored
from ablate.errors import AblateError
from ablate.home import Home
from ablate.meter import TrialMeter
from ablate.queue import Claim
from ablate.records import Meter, Plan, TrialResult, TrialSpec
from ablate.scheduler import Scheduler

Train = Callable[[TrialSpec, Any, Path, Meter], TrialResult]
"""Specification, corpus, folder for checkpoints, meter; `ablate.training.train`."""

POLL_SECONDS = 0.1
TICK_AFTER = 2.0
"""An idle worker ticks when nobody has for so many seconds."""

BEAT_SECONDS = 5.0
"""Between signs of life of an idle worker."""

HUNG_LEASES = 2.0
"""Leases without progress after which a worker ends itself, for whoever cannot reach its machine to end it."""


def main(home: Home, study: str, name: str, train: Train | None = None) -> None:
    """Work on a study until it is done or stopped. Ends the process with 128 + the signal that asked for it.

    Args:
        train: in place of real training, for tests.
    """
    worker = Worker(home, study, name, train, ends_itself=True)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, worker.ask_to_stop)
    worker.run()
    if worker.asked_by:
        sys.exit(128 + worker.asked_by)


class Worker:
    """The loop of `main`, for one study.

    Args:
        ends_itself: a hung trainer writes where it hangs and ends the process, even out of a library's loop.

    Attributes:
        asked_by: signal that asked for a stop, or 0.
    """

    def __init__(
        self, home: Home, study: str, name: str, train: Train | None = None, ends_itself: bool = False
    ):
        self._home, self._study, self._name = home, study, name
        self._engine = db.connect(home)
        self._scheduler = Scheduler(home, study)
        s = db.study.c
        with db.reading(self._engine) as connection:
            row = connection.execute(select(s.plan, s.provenance).where(s.name == study)).one()
        self._plan: Plan = stored.plan_from_text(row.plan)
        self._provenance: str = row.provenance
        self._lease = self._plan.run.launcher.lease_seconds
        self._train, self._ends_itself = train, ends_itself
        self._corpus: Any = None
        self._seen = 0.0
        self.asked_by = 0

    def ask_to_stop(self, number: int, _frame: FrameType | None) -> None:
        """Signal handler: stop after the step at hand; a second signal ends the process at once."""
        self.asked_by = number
        signal.signal(number, signal.SIG_DFL)

    def run(self) -> None:
        """Claim and train until the study needs no more workers."""
        self._join()
        try:
            if self._train is None:
                self._train, self._corpus = self._load()
            while not self.asked_by and not storage.patiently(self._over):
                claim = storage.patiently(self._claim)
                if claim is None:
                    storage.patiently(self._idle)
                else:
                    self._work(claim, self._train)
        finally:
            self._scheduler.close()
            self._leave()

    def _load(self) -> tuple[Train, Any]:
        """The real trainer and the corpus: the slow imports, once."""
        run = self._plan.run
        from ablate import data, drift, runtime
        from ablate.training import train

        if found := drift.of_code(json.loads(self._provenance), drift.facts(self._plan)):
            raise AblateError(
                f"code here is not the study's: {'; '.join(map(str, found))}. Workers need the same."
            )
        runtime.prepare(run.launcher.threads)
        corpus = data.prepare(run.data, self._home)
        if corpus.fingerprint != self._plan.data_fingerprint:
            raise AblateError(
                f"data here is not the study's: fingerprint {corpus.fingerprint}, expected "
                f"{self._plan.data_fingerprint} (data.source={run.data.source}). Workers need the same files; "
                "for data.source=stdlib also the same Python version."
            )
        return train, corpus

    def _over(self) -> bool:
        s = db.study.c
        with db.reading(self._engine) as connection:
            wanted = select(s.state, s.stopping, s.provenance).where(s.name == self._study)
            row = connection.execute(wanted).one()
        # a study that goes on under other conditions does so with workers that know them
        return row.state == "done" or row.stopping or row.provenance != self._provenance

    def _claim(self) -> Claim | None:
        j = db.job.c
        waiting = select(j.trial).where(j.study == self._study, j.state == "queued").limit(1)
        with db.reading(self._engine) as connection:
            if connection.execute(waiting).first() is None:
                return None
        with self._engine.begin() as connection:
            claim = queue.claim(connection, self._study, self._name, self._lease)
        faults.point("claim.post")
        return claim

    def _idle(self) -> None:
        if self._scheduler.idle_seconds() > TICK_AFTER:
            self._scheduler.tick()
        if time.monotonic() - self._seen > BEAT_SECONDS:
            w = db.worker.c
            with self._engine.begin() as connection:
                mine = update(db.worker).where(w.study == self._study, w.name == self._name)
                connection.execute(mine.values(seen_at=db.now()))
            self._seen = time.monotonic()
        time.sleep(POLL_SECONDS)

    def _work(self, claim: Claim, train: Train) -> None:
        """Train one trial and settle it, whatever comes of it."""
        folder = self._home.trial(self._study, claim.number)
        meter = TrialMeter(
            self._engine,
            self._study,
            claim,
            self._lease,
            stop=lambda: bool(self.asked_by),
            renewed=self._watch,
        )
        result: TrialResult | None = None
        error: BaseException | None = None
        self._watch()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            result = train(claim.spec, self._corpus, folder, meter)
        except (Exception, SystemExit) as caught:  # Lightning turns some interrupts into SystemExit
            error = caught
        faulthandler.cancel_dump_traceback_later()
        faults.point("finish.pre")
        if storage.patiently(lambda: self._settle(claim, meter, result, error)):
            faults.point("finish.post")
            checkpoint.remove(folder)
        if error is not None and not meter.stopped and not meter.superseded:
            traceback.print_exception(error)
        if error is not None:
            del error
            _free_memory()

    def _watch(self) -> None:
        """From now on the trainer has two leases' time to make progress."""
        if self._ends_itself:
            faulthandler.dump_traceback_later(HUNG_LEASES * self._lease, exit=True)

    def _settle(
        self, claim: Claim, meter: TrialMeter, result: TrialResult | None, error: BaseException | None
    ) -> bool:
        """Whether the trial has ended with this."""
        computed = meter.computed_steps
        interrupted = result is not None and result.outcome == "interrupted"
        max_attempts = self._plan.run.launcher.max_attempts
        ended = False
        with self._engine.begin() as connection:
            if meter.superseded:
                text = f"trial {claim.number}: attempt {claim.attempt} on {self._name} had been superseded"
                db.note(connection, self._study, "superseded", text)
            elif meter.failure:
                failed = queue.failed(claim.spec, computed, meter.failure)
                ended = queue.finish(connection, claim, failed, computed)
            elif meter.stopped or (interrupted and self.asked_by):
                queue.give_up(connection, claim, computed, f"stopped at step {computed}")
            elif isinstance(error, OSError):  # a full disk or a lost mount says nothing about the trial
                queue.give_up(connection, claim, computed, describe(error), max_attempts)
            elif error is not None:
                failed = queue.failed(claim.spec, computed, describe(error))
                ended = queue.finish(connection, claim, failed, computed)
            elif result is None or interrupted:
                queue.give_up(connection, claim, computed, "interrupted, though nobody asked", max_attempts)
            else:
                ended = queue.finish(connection, claim, result, computed)
        return ended

    def _join(self) -> None:
        mine = {"study": self._study, "name": self._name}
        here = {"host": socket.gethostname(), "pid": os.getpid(), "seen_at": db.now()}
        w = db.worker.c
        with self._engine.begin() as connection:
            connection.execute(delete(db.worker).where(w.study == self._study, w.name == self._name))
            connection.execute(db.worker.insert().values(**mine, **here))

    def _leave(self) -> None:
        w = db.worker.c
        with self._engine.begin() as connection:
            connection.execute(delete(db.worker).where(w.study == self._study, w.name == self._name))


_NO_MEMORY = "can't allocate memory"
"""What PyTorch says on a CPU, in a plain RuntimeError."""


def describe(error: BaseException) -> str:
    """An error in one line, memory exhaustion named as such, with the place where it was raised."""
    kind = type(error).__name__
    memory = isinstance(error, MemoryError) or "OutOfMemory" in kind or _NO_MEMORY in str(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{'oom: ' if memory else ''}{kind}: {first[:300]}{place}"


def _free_memory() -> None:
    """Give back what a failed trial held, before the next one."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
