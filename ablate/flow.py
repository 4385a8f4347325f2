"""`ablate run` and `ablate resume`: one study from its configuration to its report."""

import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from ablate import config, console, data, ladder, multiplier, report, study, throughput
from ablate.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_RESUMABLE
from ablate.home import Home
from ablate.records import Plan, StudyView
from ablate.schema import Tracking

Observer = Callable[[StudyView], None]


def run(overrides: Sequence[str], config_dirs: Sequence[Path], force: bool = False) -> int:
    """Plan, show, train, confirm, report; returns the exit code.

    Args:
        force: go on with a study that began under other code.

    Raises:
        BadInputError: before any compute is spent.
    """
    loaded = config.load(overrides, config_dirs)
    home = Home.at(loaded.home, loaded.storage)
    sizes = ladder.plans(ladder.rungs(loaded, overrides, config_dirs), home)
    home.create()
    if throughput.measure(sizes, home, _say):
        sizes = ladder.plans(ladder.rungs(loaded, overrides, config_dirs), home)
    console.plan(sizes[-1])
    if len(sizes) > 1:
        console.ladder(sizes)
    _say(f"Preparing data ({loaded.data.name}); cached after the first time.")
    for plan in sizes:  # all are registered before the first has results
        data.prepare(plan.run.data, home)
        study.create(plan, home, force)
    for plan in sizes:
        code = _run(plan, home)
        if code != EXIT_DONE:
            return code
    if len(sizes) > 1:
        _over_sizes([plan.study for plan in sizes], home)
    return EXIT_DONE


def _run(plan: Plan, home: Home) -> int:
    return _go(plan.study, home, lambda observe: study.work(plan, home, observe))


def _over_sizes(names: Sequence[str], home: Home) -> None:
    views = [study.view(name, home) for name in names]
    found = multiplier.multipliers(views)
    console.multipliers(found)
    _say(str(ladder.write(found, views, home.report(names[-1]))))


def resume(name: str, home: Home, overrides: Sequence[str] = (), force: bool = False) -> int:
    """Go on with a stopped study; returns the exit code.

    Raises:
        BadInputError: without `force`, what is not as it was when the study began.
    """
    return _go(name, home, lambda observe: study.resume(name, home, observe, overrides, force))


def _go(name: str, home: Home, work: Callable[[Observer], StudyView]) -> int:
    """Watch the work, mirror it, write its report and say where everything is."""
    before = study.view(name, home)
    _say_what_is_done(before)
    mirror = _Mirror(home, before.plan.run.tracking)
    interrupted = False
    try:
        with console.live(before.plan) as show:

            def observe(view: StudyView) -> None:
                show(view)
                mirror.latest = view

            view = work(observe)
    except KeyboardInterrupt:
        interrupted, view = True, study.view(name, home)
    links = {kind: str(path) for kind, path in report.write(view, home.report(view.name)).items()}
    mirror.close(view)  # after the report, which it holds a copy of
    console.final(view, {**links, **mirror.links(view)})
    if interrupted or view.state != "done":
        return EXIT_INTERRUPTED if interrupted else EXIT_RESUMABLE
    return EXIT_DONE if any(row.state == "complete" for row in view.trials) else EXIT_FAILED


def _say_what_is_done(view: StudyView) -> None:
    """Results that are already paid for, before anything else is."""
    done = [row for row in view.trials if row.result is not None]
    if done:
        reused = sum(row.reused_from is not None for row in done)
        _say(
            f"{len(done)} trials are already done and cost nothing again"
            + (f" ({reused} of them from other studies)." if reused else ".")
        )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class _Mirror:
    """The MLflow mirror in a thread of its own: it may be slow or broken without touching the study."""

    def __init__(self, home: Home, tracking: Tracking):
        self.latest: StudyView | None = None
        self._home, self._tracking = home, tracking
        self._stop = threading.Event()
        self._error = ""
        self._thread = threading.Thread(target=self._loop, name="mirror", daemon=True)
        if tracking.enabled:
            self._thread.start()

    def close(self, view: StudyView) -> None:
        """Export the last state and end; a failure is a note, since `ablate` holds the truth."""
        if not self._tracking.enabled:
            return
        self.latest = view
        self._stop.set()
        self._thread.join()
        if self._error:
            _say(f"The MLflow mirror could not be written ({self._error}). The study itself is complete.")

    def links(self, view: StudyView) -> dict[str, str]:
        """Where the mirror can be looked at; empty where there is none."""
        if not self._tracking.enabled or self._error:
            return {}
        from ablate import tracking

        try:
            return tracking.links(self._home, self._tracking, view)
        except tracking.TrackingError:
            return {}

    def _loop(self) -> None:
        from ablate.tracking import Exporter, TrackingError

        exporter = Exporter(self._home, self._tracking)
        while True:
            last = self._stop.wait(self._tracking.seconds)
            view, self.latest = self.latest, None
            if view is not None:
                try:
                    exporter.sync(view)
                    self._error = ""
                except TrackingError as error:  # the next export makes up for this one
                    self._error = str(error)
            if last:
                return
