"""How long people wait for pages and reports of a large study: python tests/benchmarks/pages.py [TRIALS ARMS].

A made-up study of that size is stored as the engine stores one, and read, served and reported by the real
parts. Times are of this machine as busy as it is; beside each is its share of what is wanted, 2 s for a page
and 10 s for a report. Nothing fails where that is missed.
"""

import dataclasses
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

import study_views
import uvicorn
from starlette.testclient import TestClient

from ablate import db, report, stored, study
from ablate.home import Home
from ablate.records import StudyView
from dashboards import live, pages, portal

PAGE, REPORT = 2.0, 10.0
"""Seconds that are wanted."""


def made_up(trials: int, arms: int) -> StudyView:
    """A finished study: a search as ever, the rest are confirm seeds."""
    schedules = list(study_views.SCHEDULES.values())
    named = {f"arm {i:02d}": schedules[i % len(schedules)] for i in range(arms)}
    return study_views.view(name="large-1", arms=named, replicates=max(2, trials // arms - 5))


def store(home: Home, view: StudyView) -> None:
    """The rows that running this study would have left."""
    key = {"study": view.name}
    with db.connect(home).begin() as connection:
        connection.execute(
            db.study.insert().values(
                name=view.name,
                fingerprint=view.plan.fingerprint,
                state=view.state,
                plan=stored.plan_to_text(view.plan),
                provenance="{}",
                created_at=view.created_at,
            )
        )
        connection.execute(
            db.budget.insert(), [key | dataclasses.asdict(account) for account in view.accounts]
        )
        for row in view.trials:
            spec, result = row.spec, row.result
            assert result is not None
            values = {
                "number": row.number,
                "slot": f"{spec.phase}/{spec.arm}/{row.number}",
                "fingerprint": spec.fingerprint,
                "arm": spec.arm,
                "phase": spec.phase,
                "spec": stored.spec_to_text(spec),
                "state": row.state,
                "result": stored.result_to_text(result),
                "step_mflop": spec.step_mflop,
                "paid_steps": spec.steps,
                "started_at": row.started_at,
                "ended_at": row.ended_at,
            }
            number = connection.execute(db.trial.insert().values(**key, **values)).inserted_primary_key[0]
            connection.execute(db.job.insert().values(**key, trial=number, state="done", attempt=1))


Times = tuple[float, float]
"""Seconds on the clock, and of this process's processor time."""


def times(work: Callable[[], Any]) -> Times:
    """Of one call."""
    begun, worked = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begun, time.process_time() - worked


def line(what: str, taken: Times, wanted: float) -> None:
    """One result."""
    print(
        f"{what:<54}{taken[0]:>8.2f} s{taken[1]:>8.2f} s{taken[0] / wanted:>9.0%} of {wanted:g} s", flush=True
    )


def main() -> None:
    """Store, read, serve, report."""
    trials, arms = (int(word) for word in sys.argv[1:3]) if len(sys.argv) > 2 else (1000, 50)
    with tempfile.TemporaryDirectory() as folder:
        home = Home(Path(folder)).create()
        view = made_up(trials, arms)
        store(home, view)
        print(f"{f'{len(view.trials)} trials, {len(view.plan.arms)} arms':<54}{'clock':>10}{'process':>10}")
        line("before the first page: SciPy, Plotly, a reading", times(lambda: warm(home)), PAGE)
        served(home, view.name)
        read = study.view(view.name, home)
        line("report, every file of it", times(lambda: report.write(read, home.report(view.name))), REPORT)
        in_a_browser(home, view.name)


def warm(home: Home) -> None:
    """What the dashboard does in the background while it starts."""
    portal._warm(portal._of(home))


def served(home: Home, name: str) -> None:
    """Every answer of the server, first and again with a fresh reading."""
    client = TestClient(portal.app(home), base_url="http://127.0.0.1:8720")
    paths = ["/", f"/studies/{name}", f"/studies/{name}/live.json", f"/studies/{name}/view.json"]
    paths += [f"/studies/{name}/figures/{figure}.json" for figure in pages.FIGURES]
    for path in paths:
        taken = []
        for _ in range(4):
            time.sleep(live.FRESH_SECONDS)  # else the reading before serves this request too
            taken.append(times(lambda path=path: client.get(path).raise_for_status()))
        clock, process = zip(*taken[1:], strict=True)
        size = len(client.get(path).content) / 1e6
        line(f"{path}  ({size:.2f} MB), first", taken[0], PAGE)
        line("    again", (statistics.median(clock), statistics.median(process)), PAGE)


def in_a_browser(home: Home, name: str) -> None:
    """From the address to the last chart, and the report, where there is a Chromium."""
    import browser

    if not any(map(browser.shutil.which, browser.NAMES)):
        print("no Chromium: nothing was opened")
        return
    listener = portal._listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(portal.app(home), log_level="error", lifespan="off"))
    threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/studies/{name}"
    with browser.browser() as page:
        for width, what in ((1280, "desktop"), (390, "phone")):
            page.look(width)
            line(f"browser, {what}: page with all charts", times(lambda: opened(page, address)), PAGE)
            line(f"browser, {what}: the report", times(lambda: page.open(f"{address}/report")), PAGE)
    server.should_exit = True


def opened(page: Any, address: str) -> None:
    """Go there and wait for the last chart."""
    page.open(address)
    page.wait("[...document.querySelectorAll('.plot')].every((p) => p.querySelector('.main-svg'))", 60)


if __name__ == "__main__":
    main()
