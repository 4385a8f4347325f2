"""Readings of studies for the pages: shared by visitors, with the curves of running trials as they grow."""

import threading
import time
from collections.abc import Callable

from ablate.errors import BadInputError
from ablate.records import Point, StudyView

FRESH_SECONDS = 0.5
"""Age up to which a reading serves further requests, however many pages are open."""


class Studies:
    """What the pages ask. Safe for several threads.

    Args:
        names: lists the studies, newest first.
        read: one consistent reading of a study; raises `BadInputError` where there is none of that name.
    """

    def __init__(self, names: Callable[[], list[str]], read: Callable[[str], StudyView]):
        self._names, self._read = names, read
        self._lock = threading.Lock()
        self._views: dict[str, tuple[float, StudyView]] = {}
        self._points: dict[str, dict[int, list[Point]]] = {}

    def names(self) -> list[str]:
        """All studies."""
        return self._names()

    def view(self, name: str) -> StudyView:
        """The study as it is now, or was half a second ago.

        Raises:
            BadInputError: no study has this name.
        """
        with self._lock:
            known = self._views.get(name)
            if known is not None and time.monotonic() - known[0] < FRESH_SECONDS:
                return known[1]
            if known is None and name not in self._names():
                raise BadInputError(f"There is no study named '{name}'.")
            view = self._read(name)
            self._views[name] = (time.monotonic(), view)
            self._collect(view)
            return view

    def points(self, view: StudyView, number: int) -> list[Point]:
        """The curve of a trial: its result's; while it runs, what this server has seen of it."""
        row = next(row for row in view.trials if row.number == number)
        if row.result is not None:
            return list(row.result.curve)
        with self._lock:
            return list(self._points.get(view.name, {}).get(number, []))

    def _collect(self, view: StudyView) -> None:
        seen = self._points.setdefault(view.name, {})
        for row in view.trials:
            if row.result is not None:
                seen.pop(row.number, None)
            elif row.progress is not None:
                points = seen.setdefault(row.number, [])
                if points and points[-1].step > row.progress.step:
                    points.clear()  # resumed from an earlier checkpoint
                if not points or points[-1].step != row.progress.step:
                    points.append(row.progress)
