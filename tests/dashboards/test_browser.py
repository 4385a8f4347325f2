"""Pages as a person sees them, in a headless Chromium."""

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import browser
import optuna
import pytest
import study_views
import uvicorn

from ablate import figures, standing, study, tracking, units
from ablate.home import Home
from ablate.records import StudyView
from dashboards import pages, portal, tables
from dashboards.live import Studies

pytestmark = [pytest.mark.browser, browser.needed]

PAYLOAD = "<img src=x onerror=alert(1)>\"']{}</script>%{x}"
LONG = "<i>long</i>" * 910  # ten thousand characters
DRAWN = "[...document.querySelectorAll('.plot')].every((p) => p.querySelector('.main-svg'))"


@contextlib.contextmanager
def served(home: Path, views: dict[str, StudyView]) -> Iterator[str]:
    """The portal over these readings; its address."""
    listener = portal._listen("127.0.0.1", 0)
    app = portal.app(Home(home), Studies(lambda: list(views), views.__getitem__))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


def stays_here(page: browser.Page) -> None:
    """Nothing was asked for from elsewhere, and nothing was complained about."""
    asked = [urlsplit(url) for url in page.requests]
    assert {url.hostname for url in asked if url.scheme not in ("data", "blob", "about")} == {"127.0.0.1"}
    assert page.complaints == []


def test_pages_are_drawn_at_any_width_and_follow_the_study(tmp_path: Path):
    arms = {"base": "dense*4", PAYLOAD: "swa*4", LONG: "csa@4*4"}
    views = {"payload-1": study_views.view("running", 20, name="payload-1", arms=arms, question=PAYLOAD)}
    with served(tmp_path, views) as root, browser.browser() as page:
        page.look(1280)
        page.open(f"{root}/studies/payload-1")
        page.wait(DRAWN)
        assert page.text("h1") == [PAYLOAD]
        assert {PAYLOAD, LONG} <= set(page.text("[data-section=arms] .name"))
        page.evaluate("window.kept = true")
        done = study_views.view(name="payload-1", arms=arms, question=PAYLOAD)
        views["payload-1"] = done
        page.wait("document.title.includes('done')")
        page.wait("document.querySelectorAll('.verdicts > li').length === 2")
        assert page.evaluate("window.kept"), "the page was not loaded anew"
        for name in pages.FIGURES:
            rows = tables.rows(getattr(figures, name)(done))
            numbers = [cell for row in rows for cell in row if isinstance(cell, float | int)]
            page.until(lambda name=name, wanted=numbers: table(page, name) == pytest.approx(wanted, rel=1e-5))
        labels = page.text("[data-figure=loss_vs_flops] .legendtext")
        assert labels[0] == "base"
        assert labels[1].startswith("<img src=x")
        assert page.evaluate("document.images.length") == 0, "names are text"
        ink = "getComputedStyle(document.querySelector('[data-figure=loss_vs_flops] .legendtext')).fill"
        light = page.evaluate(ink)
        for width in (1280, 1130, 800, 390):
            page.look(width, dark=True)
            page.wait(DRAWN)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.wait(f"{ink} !== {light!r}")
        stays_here(page)


def table(page: browser.Page, name: str) -> list[float]:
    """All numbers of a chart's table."""
    return [float(cell.replace(",", "")) for cell in page.text(f"[data-table={name}] .num")]


@pytest.mark.slow
def test_a_study_that_runs_is_shown_as_it_is(tmp_path: Path):
    """A minute: the real commands, from the first trial to the links of the finished study."""
    home = Home(tmp_path / "home").create()
    environment = os.environ | {"ABLATE_HOME": str(home.root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "ablate.cli"]
    overrides = ["sweep=smoke", "sweep.confirm.replicates=4", "launcher.workers=1", "tracking.seconds=2"]
    log = (tmp_path / "log").open("w")
    run = subprocess.Popen([*command, "run", *overrides], env=environment, stdout=log, stderr=log)
    served = None
    try:
        name = begun(home, run)
        served = subprocess.Popen(
            [*command, "dashboard", name, "--port", "0"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        assert served.stdout is not None
        address = served.stdout.readline().split()[-1]
        with browser.browser() as page:
            page.open(address)
            page.evaluate("window.kept = true")
            before = numbers_while_it_runs(page, name, home)
            page.wait(f"({ENDED}) > {before}", 60)
            numbers_while_it_runs(page, name, home)
            assert run.wait(180) == 0, Path(log.name).read_text()
            page.wait("document.title.includes('done')")
            assert page.evaluate("window.kept"), "the page was not loaded anew"
            view = study.view(name, home)
            the_numbers_are_the_databases(page, view)
            links_lead_to_this_study(page, address, view, home)
            stays_here(page)
    finally:
        for process in (run, served):
            if process is not None:
                process.terminate()
                process.wait(30)
        log.close()


ENDED = "Number(document.title.match(/(\\d+)\\/\\d+$/)?.[1] ?? -1)"


def begun(home: Home, run: subprocess.Popen) -> str:
    """Name of the study, as soon as a trial of it runs."""
    for _ in range(1200):
        assert run.poll() is None, "the study ended before it was looked at"
        if home.database.exists():
            with contextlib.suppress(Exception):  # its tables are being made
                for name in study.names(home):
                    if standing.running(study.view(name, home, with_verdicts=False)):
                        return name
        time.sleep(0.1)
    raise AssertionError("no trial within two minutes")


def numbers_while_it_runs(page: browser.Page, name: str, home: Home) -> int:
    """The page's count of ended trials lies between two readings of the database around it."""

    def ended() -> int:
        return sum(row.result is not None for row in study.view(name, home, with_verdicts=False).trials)

    before = ended()
    page.wait(f"({ENDED}) >= {before}", 20)
    shown = page.evaluate(ENDED)
    assert shown <= ended()
    return shown


def the_numbers_are_the_databases(page: browser.Page, view: StudyView) -> None:
    trials = [
        [f"{row.number:03d}", row.spec.arm, row.spec.phase, row.state, f"{row.result.val_loss:.4f}"]
        for row in view.trials
        if row.result is not None and row.result.val_loss is not None
    ]
    assert len(trials) == len(view.trials)
    rows = "[...document.querySelectorAll('[data-section=trials] tbody tr')]"
    page.wait(f"{rows}.every((r) => r.cells[5].textContent.trim() !== 'running')")
    read = page.evaluate(f"{rows}.map((r) => [0, 1, 2, 5, 6].map((i) => r.cells[i].textContent.trim()))")
    assert read == trials
    lines, _ = standing.arms(view)
    losses = page.text("[data-section=arms] td[data-label='Loss, nats']")
    assert losses == [f"{line.loss:.4f}" for line in lines]
    cells = page.evaluate(
        "[...document.querySelectorAll('[data-section=ledger] tbody tr')].map((r) => r.cells[2].textContent)"
    )
    assert cells == [units.compute(account.spent) for account in view.accounts]
    (verdict,) = view.verdicts
    assert page.text(".verdicts > li > .name") == [verdict.sentence]
    page.wait("document.querySelector('[data-table=forest] tbody')?.rows.length === 1")
    expected = [verdict.delta, verdict.low, verdict.high]
    assert table(page, "forest") == pytest.approx(expected, rel=1e-5)


def links_lead_to_this_study(page: browser.Page, address: str, view: StudyView, home: Home) -> None:
    number = optuna.load_study(study_name=view.name, storage=f"sqlite:///{home.optuna}")._study_id
    page.open(f"{address}/optuna")
    page.wait(f"document.body.innerText.includes({view.name!r})")
    assert page.evaluate("location.pathname") == f"/dashboard/studies/{number}"
    client = tracking.connect(home, view.plan.run.tracking)
    experiment = client.get_experiment_by_name(view.name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`ablate.kind` = 'arm'")
    arms = {run.data.tags["ablate.arm"]: run.info.run_id for run in runs}
    assert set(arms) == {arm.name for arm in view.plan.arms}
    page.open(f"{address}/mlflow?page=Arms%20side%20by%20side")
    page.wait(f"document.body.innerText.includes('Comparing {len(arms)} Runs')", 60)
    found = re.search(r"runs=(\[[^&]*\])", unquote(page.evaluate("location.hash")))
    assert found is not None
    assert re.findall(r"[0-9a-f]{32}", found[1]) == [arms[arm.name] for arm in view.plan.arms]
    assert all(page.evaluate(f"document.body.innerText.includes({arm!r})") for arm in arms.values())
    page.open(f"{address}/mlflow?page=All%20trials")
    page.wait(f"document.body.innerText.includes('{len(view.trials)} matching runs')", 60)
