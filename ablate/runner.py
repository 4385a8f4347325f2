"""What `ablate run` does while a study runs: workers, ticks, an observer, and an orderly end on request."""

import math
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from sqlalchemy import delete, select

from ablate import db, pool, queue, reading, storage
from ablate.errors import AblateError
from ablate.home import Home
from ablate.pool import Pool
from ablate.records import Plan, StudyView
from ablate.scheduler import Scheduler, set_state

TICK_SECONDS = 0.3
POLL_SECONDS = 0.05
FAILED_STARTS = 3
"""Workers in a row that may end without having held a trial."""

_TERMINATED = signal.SIGTERM + 128


class Runner:
    """Runs one study on this machine.

    Args:
        observer: sees the study every `interval` seconds.
        command: of a worker, in place of `ablate worker`; for tests.
    """

    def __init__(
        self,
        plan: Plan,
        home: Home,
        observer: Callable[[StudyView], None],
        interval: float = 0.5,
        command: Sequence[str] | None = None,
    ):
        self._plan, self._home, self._observer, self._interval = plan, home, observer, interval
        self._engine = db.connect(home)
        self._pool = Pool(home, plan, command)
        self._orphans: dict[str, int] = {}
        self._failed_starts = 0
        self._signals: list[int] = []
        self._observed = -math.inf

    def run(self) -> StudyView:
        """Until the study is done or stopped; raises KeyboardInterrupt after Ctrl-C."""
        with self._listening():
            while True:
                with storage.exclusive(self._home, f"{self._plan.study}.run", wait=False) as mine:
                    if mine:
                        self._drive()
                        break
                if self._signals or self._state() == "done":
                    break
                self._observe()  # another process runs this study
                time.sleep(POLL_SECONDS)
        view = self._view()
        self._observer(view)
        if signal.SIGINT in self._signals:
            raise KeyboardInterrupt
        return view

    def _drive(self) -> None:
        if self._state() == "done":
            return
        self._take_over()
        self._change("running", f"study {self._plan.study} runs")
        scheduler = Scheduler(self._home, self._plan.study)
        try:
            taken = list(self._orphans)
            self._pool.start(max(0, self._plan.workers - len(taken)), taken)
            ticked = 0.0
            while not self._signals and self._state() != "done":
                if time.monotonic() - ticked >= TICK_SECONDS:
                    storage.patiently(scheduler.tick)
                    ticked = time.monotonic()
                    self._replace(scheduler)
                if not self._pool.names and not self._orphans:
                    break  # all were asked to leave
                self._observe()
                time.sleep(POLL_SECONDS)
            self._settle()
        except BaseException:
            self._pool.terminate()
            if not self._pool.wait(10):
                self._pool.kill_all()
            self._bury(self._pool.names, "the study's process ended")
            self._stopped()
            raise
        finally:
            scheduler.close()

    def _replace(self, scheduler: Scheduler) -> None:
        """New workers for those that crashed or hang."""
        for name in [name for name, pid in self._orphans.items() if not pool.is_alive(pid, name)]:
            del self._orphans[name]
            self._bury([name], "its worker died")
            self._pool.spawn(name)
        for name in scheduler.lost:
            self._pool.kill(name)  # no progress within its lease: what it does no longer counts
        scheduler.lost.clear()
        for name, code in self._pool.ended().items():
            if code in (0, _TERMINATED):  # it saw the end of the study, or somebody asked it to leave
                continue
            held = self._bury([name], f"{name} was {pool.cause(code)}" if code < 0 else pool.cause(code))
            self._failed_starts = 0 if held or self._anyone_works() else self._failed_starts + 1
            if self._failed_starts >= FAILED_STARTS:
                raise AblateError(
                    f"workers do not start ({pool.cause(code)}). The last words of {self._pool.log(name)}:\n"
                    f"{self._pool.last_words(name)}"
                )
            self._pool.spawn(name)

    def _anyone_works(self) -> bool:
        """Whether a trial is in somebody's hands, so that the study goes on."""
        a = db.attempt.c
        with db.reading(self._engine) as connection:
            held = select(a.trial).where(a.study == self._plan.study, a.state == "running").limit(1)
            return connection.execute(held).first() is not None

    def _settle(self) -> None:
        """Let all workers end: at once where the study is done, after a checkpoint where it is not."""
        if self._state() == "done":
            if not self._pool.wait(10):
                self._pool.kill_all()
            return
        if signal.SIGINT in self._signals:
            print("Finishing the current step; Ctrl-C again to stop at once.", file=sys.stderr, flush=True)
        self._change("running", "workers save a checkpoint and stop", kind="stopping", stopping=True)
        self._pool.terminate()
        names = self._pool.names
        while not self._pool.wait(POLL_SECONDS):
            self._observe()
            if signal.SIGINT in self._signals[1:]:
                self._pool.kill_all()
        self._bury(names, "stopped at once")
        self._stopped()

    def _stopped(self) -> None:
        self._change("stopped", "the study is stopped and can be resumed", stopping=True)

    def _change(self, state: str, text: str, kind: str | None = None, stopping: bool = False) -> None:
        """Another state of the study, and the event that says so."""

        def write() -> None:
            with self._engine.begin() as connection:
                set_state(connection, self._plan.study, state, stopping)
                db.note(connection, self._plan.study, kind or state, text)

        storage.patiently(write)

    def _take_over(self) -> None:
        """Bury workers of this machine that died with an earlier run, and adopt those that still live.

        Two of one name would be taken for one, so no name is given again while a process has it.
        """
        w = db.worker.c
        with db.reading(self._engine) as connection:
            rows = connection.execute(
                select(w.name, w.pid).where(w.study == self._plan.study, w.host == socket.gethostname())
            ).all()
        self._orphans = {name: pid for name, pid in rows if pool.is_alive(pid, name)}
        self._orphans |= pool.find(self._home, self._plan.study)
        self._bury([name for name, _ in rows if name not in self._orphans], "its worker died")

    def _bury(self, names: Sequence[str], reason: str) -> bool:
        """Take back what dead workers held; whether they held anything."""
        held = False
        for name in names:
            held |= storage.patiently(lambda name=name: self._bury_one(name, reason))
        return held

    def _bury_one(self, name: str, reason: str) -> bool:
        w = db.worker.c
        with self._engine.begin() as connection:
            attempts = self._plan.run.launcher.max_attempts
            held = queue.reap(connection, self._plan.study, attempts, name, reason)
            connection.execute(delete(db.worker).where(w.study == self._plan.study, w.name == name))
        return bool(held)

    def _observe(self) -> None:
        """Show the study, at most once per interval."""
        if time.monotonic() - self._observed >= self._interval:
            self._observer(self._view())
            self._observed = time.monotonic()

    def _view(self) -> StudyView:
        return storage.patiently(lambda: reading.read(self._plan.study, self._home))

    def _state(self) -> str:
        s = db.study.c

        def read() -> str:
            with db.reading(self._engine) as connection:
                return connection.execute(select(s.state).where(s.name == self._plan.study)).scalar_one()

        return storage.patiently(read)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """Collect signals in place of dying from them; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._hear) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)
