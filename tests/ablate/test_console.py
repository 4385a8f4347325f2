"""The terminal screens over made-up readings: complete, within their width, plain where nobody watches."""

import dataclasses
import math
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import study_views
from rich.console import Console
from screens import both_widths, printed, spaced

from ablate import console, units
from ablate.console import live_screen, log_lines, parts
from ablate.records import Caveat, StudyView

pytestmark = pytest.mark.usefixtures("width")

LINKS = {
    "html": "/home/somebody/a folder/" + "deep/" * 20 + "report.html",
    "Charts": "http://127.0.0.1:8720/mlflow/#/experiments/1/runs?viewStateShareKey=charts",
    "Elsewhere": "https://mlflow.example.org/#/experiments/1",
}
HOSTILE = {"base": "dense*4", "[red]x[/]": "swa*4", "[/]": "csa@4*4", "\x1b[31mesc\nape": "hca@16*4"}


def empty() -> StudyView:
    view = study_views.view("planned", 0)
    accounts = tuple(dataclasses.replace(a, spent=0, reserved=0, waste=0) for a in view.accounts)
    return dataclasses.replace(view, trials=(), lr_curves=(), workers={}, events=(), accounts=accounts)


def failed() -> StudyView:
    """Every trial of the search failed, and one was never started."""
    view = study_views.view("stopped", 20)
    rows = [
        dataclasses.replace(
            row,
            state="failed",
            progress=None,
            result=row.result
            and dataclasses.replace(
                row.result, outcome="failed", val_loss=None, val_bpb=None, curve=(), reason="out of memory"
            ),
        )
        for row in view.trials[:20]
    ]
    return dataclasses.replace(view, trials=tuple(rows), lr_curves=(), workers={})


VIEWS = {
    "empty": empty,
    "searching": lambda: study_views.view("running", 12),
    "confirming": lambda: study_views.view("running", 41),
    "failed": failed,
    "done": study_views.view,
    "hostile": lambda: study_views.view(arms=HOSTILE, question="[bold]why\x1b[2J[/]?"),
}


def show_all(view: StudyView) -> None:
    console.plan(view.plan)
    console.status(view)
    console.final(view, {})


@both_widths
@pytest.mark.parametrize("name", VIEWS)
def test_screens_keep_to_their_width_and_hold_no_control_characters(
    name: str, width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    show_all(VIEWS[name]())
    text = printed(capsys)
    assert all(c.isprintable() or c == "\n" for c in text)
    addresses = re.compile(r"https?://|^  ablate |sweep\.confirm")
    long = [line for line in text.splitlines() if len(line) > width and not addresses.search(line)]
    assert long == []
    assert not re.search(r"\S…", text), "nothing is cut off"


@both_widths
def test_the_end_has_every_verdict_in_words_and_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    view = study_views.view()
    console.final(view, LINKS)
    text = printed(capsys)
    table, rest = text.split("\n\n●", 1)
    for verdict in view.verdicts:
        row = spaced(
            f"{table}\n".split(f"\n{verdict.arm} ", 1)[1].split(f"\n{next_arm(view, verdict.arm)}")[0]
        )
        assert row.startswith(verdict.kind)
        for figure in (verdict.delta, verdict.low, verdict.high):
            assert f"{figure:+.4f}".replace("-", "−") in row
        for word in (f"{verdict.p_holm:.3f}", str(verdict.n), verdict.level, f"{verdict.lr:.3g}"):
            assert word in row.split()
        losses = [r.result for r in view.trials if r.spec.arm == verdict.arm and r.spec.phase == "confirm"]
        mean = sum(result.val_loss or 0 for result in losses if result) / len(losses)
        assert f"{mean:.4f}" in row
        assert verdict.sentence in spaced(rest)
    for account in view.accounts:
        for amount in (account.cap, account.spent, account.cap - account.spent, account.waste):
            assert units.compute(amount) in text or not amount
    assert "021 sliding_window (search, lr 0.012): loss above ln(vocabulary)" in spaced(text)


def next_arm(view: StudyView, name: str) -> str:
    """Arm of the next row: verdict tables are ordered by the difference."""
    deltas = {verdict.arm: verdict.delta for verdict in view.verdicts} | {view.plan.baseline.name: 0.0}
    order = sorted(deltas, key=deltas.__getitem__)
    return [*order, "\n"][order.index(name) + 1]


def test_links_are_whole_and_on_lines_of_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    view = study_views.view()
    console.final(view, LINKS)
    ends = [line.split("  ")[-1].strip() for line in printed(capsys).splitlines()]
    assert LINKS["html"] in ends
    assert LINKS["Elsewhere"] in ends
    page = f"http://127.0.0.1:8720/studies/{view.name}"
    assert {page, f"{page}/optuna", f"{page}/mlflow?page=Charts"} <= set(ends)


def test_doubts_once_each_with_their_arms_and_blockers_first(capsys: pytest.CaptureFixture[str]) -> None:
    view = study_views.view()
    edge = Caveat(id="LR_EDGE", blocks=True, text="The best rate is at the edge.")
    verdicts = [
        dataclasses.replace(v, kind="inconclusive", caveats=(*v.caveats, edge) if i else v.caveats)
        for i, v in enumerate(view.verdicts)
    ]
    console.final(dataclasses.replace(view, verdicts=tuple(verdicts)), {})
    text = spaced(printed(capsys))
    blocker, warning = text.index("LR_EDGE forbids a verdict"), text.index("short: Trained")
    assert blocker < warning
    assert text.count("LR_EDGE") == text.count("short:") == 1
    arms = [v.arm for v in verdicts]
    assert f"at the edge. ({', '.join(arms[1:])})" in text
    assert f"400 steps. ({', '.join(arms)})" in text


def test_an_unfinished_study_ends_with_what_there_is_and_how_to_go_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    view = dataclasses.replace(study_views.view("stopped", 20), workers={})
    console.final(view, {})
    text = printed(capsys)
    assert "not finished" in text
    assert f"ablate resume {view.name}" in text
    for arm in view.plan.arms:
        losses = [r.result.val_loss for r in view.trials if r.result and r.spec.arm == arm.name]
        line = next(line for line in text.splitlines() if re.match(rf"\d  {arm.name} ", line))
        assert f"{min(v for v in losses if v is not None):.4f}" in line.split()


def test_reused_trials_are_named_with_their_origin(capsys: pytest.CaptureFixture[str]) -> None:
    view = study_views.view()
    rows = [dataclasses.replace(r, reused_from="other-1") if r.number < 3 else r for r in view.trials]
    console.final(dataclasses.replace(view, trials=tuple(rows)), {})
    saved = units.compute(sum(row.spec.allowance_mflop for row in rows[:3]))
    assert f"3 trials were already paid for by other-1: {saved} not spent again" in spaced(printed(capsys))


def test_names_are_text_and_never_markup(capsys: pytest.CaptureFixture[str]) -> None:
    show_all(VIEWS["hostile"]())
    text = printed(capsys)
    for word in ("[red]x[/]", "[/]", "[bold]why", "esc ape"):
        assert text.count(word) >= 3, word


def test_status_tells_state_workers_and_events(capsys: pytest.CaptureFixture[str]) -> None:
    view = study_views.view("running", 41)
    console.status(view)
    text = printed(capsys)
    for name, (host, pid, trial, _) in view.workers.items():
        line = next(line for line in text.splitlines() if line.startswith(name)).split()
        assert line[1:4] == [host, str(pid), f"{trial:03d}"]
    for _, kind, words in view.events:
        assert f"{kind}  {words}" in text
    assert "25 of 25 trials ended, 1 diverged" in text
    assert "16 of 30 trials ended, 2 running, 12 queued" in text
    spent = sum(account.spent for account in view.accounts)
    assert f"{units.compute(spent)} of {units.compute(view.plan.total_mflop)} spent" in text


@both_widths
@pytest.mark.parametrize("height", [12, 16, 24, 50])
@pytest.mark.parametrize("name", ["empty", "searching", "confirming", "failed"])
def test_the_live_view_fits_its_window(name: str, height: int, width: int) -> None:
    view = VIEWS[name]()
    screen = Console(width=width, height=height, color_system=None, markup=False)
    lines = screen.render_lines(live_screen.draw(view, 5.0, width, height), pad=False)
    assert len(lines) < height
    text = "\n".join("".join(segment.text for segment in line) for line in lines)
    shown = [arm.name for arm in view.plan.arms if f" {arm.name} " in text]
    if height >= 16:
        assert len(shown) == len(view.plan.arms)
    else:
        assert shown
        assert f"… {len(view.plan.arms) - len(shown)} more arms" in text


def test_a_log_gets_few_plain_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(log_lines.time, "monotonic", lambda: now[0])
    plan = study_views.plan()
    whole = study_views.view("running", 55)
    with console.live(plan) as show:
        for finished in range(56):  # half a second each, as the runner shows them
            rows = study_views.rows(plan, finished)
            known = rows if finished >= 25 else rows[:25]
            state = "done" if finished == 55 else "running"
            for _ in range(2):
                show(dataclasses.replace(whole, trials=known, state=state))
                now[0] += 0.5
    found = capsys.readouterr()
    assert found.out == ""
    lines = found.err.splitlines()
    assert 6 <= len(lines) <= 56 / 10 + 3
    assert all(c.isprintable() or c == "\n" for c in found.err)
    assert [line.split()[1] for line in lines if "search:" in line or "confirm:" in line or "done:" in line]
    phases = [line.split()[1] for line in lines]
    assert list(dict.fromkeys(phases)) == ["search:", "confirm:", "done:"]
    assert "021 sliding_window diverged (loss above ln(vocabulary) for 20 steps)" in found.err
    assert "55 of 55 trials ended" in lines[-1]


def test_a_study_that_stands_still_is_silent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(log_lines.time, "monotonic", lambda: now[0])
    with console.live(study_views.plan()) as show:
        for _ in range(20):
            show(empty())
            now[0] += 60
    assert len(capsys.readouterr().err.splitlines()) == 1


WATCH = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs inherit that it is ignored
sys.path.insert(0, sys.argv[1])
import study_views
from ablate import console
view = study_views.view("running", 20)
with console.live(view.plan) as show:
    show(view)
    print("spoken meanwhile", file=sys.stderr)
    time.sleep(0.7)
    if sys.argv[2] == "error":
        raise RuntimeError("something broke")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("how", ["error", "interrupt"])
def test_the_live_view_of_a_terminal_leaves_it_as_it_was(how: str) -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": "80", "LINES": "24", "TERM": "xterm-256color"}
    process = subprocess.Popen(
        [sys.executable, "-c", WATCH, str(Path(__file__).parents[1]), how],
        stdout=theirs,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    text, end = "", time.monotonic() + 60
    while time.monotonic() < end:
        try:
            text += os.read(ours, 65536).decode(errors="replace")
        except OSError:  # the other end is closed
            break
        if how == "interrupt" and "ready" in text and process.poll() is None:
            process.send_signal(signal.SIGINT)
            how = "interrupted"
    assert process.wait(10) != 0
    os.close(ours)
    assert "\x1b[?25l" in text, "it was live"
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is back"
    assert "spoken meanwhile" in text
    assert ("something broke" in text) or ("KeyboardInterrupt" in text)
    for arm in study_views.plan().arms:
        assert arm.name in text


def test_a_screen_comes_at_once() -> None:
    view = study_views.view("running", 41)
    began = time.perf_counter()
    for _ in range(5):
        Console(width=100, quiet=True).render_lines(live_screen.draw(view, 1.0, 100, 40))
    assert (time.perf_counter() - began) / 5 < 0.2  # about 10 ms on an idle core, twice a second


@pytest.mark.parametrize("value", [None, math.nan, math.inf])
def test_what_is_not_known_is_a_dash(value: float | None) -> None:
    assert parts.nats(value) == parts.signed(value) == "–"
    assert parts.interval(0.1, value) == ""


def test_numbers_keep_their_sign_and_digits() -> None:
    assert parts.signed(-0.03804) == "−0.0380"
    assert parts.percent(-0.667) == "−66.7%"
    assert parts.percent(11.0) == "+1100%"
    assert parts.probability(0.0004) == "<0.001"
    assert parts.sparkline([3.0, 2.0, 1.0], 3).plain == "█▅▁"
    assert parts.sparkline([math.nan, 1.0], 8).plain == ""
    assert parts.bar(0.5, 10).plain == "━━━━━─────"
