"""Where a study stands: what is left of it, and at what it is."""

import dataclasses

import pytest
import study_views

from ablate import standing
from ablate.records import StudyView


def without_confirm(view: StudyView) -> StudyView:
    """As a scheduler leaves it during the search: trials on fresh seeds are not there yet."""
    rows = tuple(row for row in view.trials if row.spec.phase == "search")
    return dataclasses.replace(view, trials=rows)


@pytest.mark.parametrize(
    ("finished", "phase"), [(0, "search"), (23, "search"), (25, "confirm"), (55, "confirm")]
)
def test_the_phase_is_what_is_under_way(finished: int, phase: str) -> None:
    view = study_views.view("running", finished)
    assert standing.phase(view) == phase
    assert standing.phase(without_confirm(view)) == "search"


def test_time_left_is_work_over_the_rate_of_all_workers() -> None:
    view = study_views.view("running", 40)
    ended = [row for row in view.trials if row.result]
    seconds = sum((row.ended_at or 0) - (row.started_at or 0) for row in ended)
    per_worker = sum(row.charged_mflop - row.evaluation_mflop for row in ended) / seconds
    confirm = next(account for account in view.accounts if account.phase == "confirm")
    assert len(view.workers) == 2
    assert standing.seconds_left(view) == pytest.approx((confirm.cap - confirm.spent) / (2 * per_worker))


def test_time_left_before_anything_has_ended() -> None:
    view = study_views.view("running", 0)
    points = [row.progress for row in view.trials if row.progress]
    rate = sum(p.mflop for p in points) / sum(p.seconds for p in points)
    left = sum(a.cap - a.spent for a in view.accounts if a.phase in ("search", "confirm"))
    assert standing.seconds_left(view) == pytest.approx(left / (2 * rate))
    idle = dataclasses.replace(view, trials=())
    assert standing.seconds_left(idle) == view.plan.estimated_seconds
    assert standing.seconds_left(study_views.view("done")) is None


def test_the_search_has_nothing_left_once_seeds_are_confirmed() -> None:
    """What the search did not need is returned, and takes no time any more."""
    view = study_views.view("running", 40)
    accounts = [dataclasses.replace(a, cap=a.cap * 1000) if a.phase == "search" else a for a in view.accounts]
    assert standing.seconds_left(
        dataclasses.replace(view, accounts=tuple(accounts))
    ) == standing.seconds_left(view)
