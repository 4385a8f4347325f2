"""How a study stands, as tables: arms so far, phases, compute. Shared by all screens of a study."""

import time
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from ablate import division, standing, units
from ablate.console import parts
from ablate.records import PhaseAccount, StudyView, TrialRow
from ablate.standing import ArmStanding


def stage(view: StudyView) -> str:
    """The phase of a study that runs, the state of another."""
    return standing.phase(view) if view.state == "running" else view.state


def arms_table(
    view: StudyView, lines: Sequence[ArmStanding], width: int, limit: int | None = None, fold: bool = True
) -> Table:
    """Arms, best first. Columns that say nothing yet, or have no room, are left out.

    Args:
        limit: arms that there is room for.
        fold: whether long names may take a second line.
    """
    compared = any(line.delta is not None and not line.is_baseline for line in lines)
    judged = any(line.low is not None for line in lines)
    columns = [("#", "right"), "arm", ("loss", "right")] if compared else [("#", "right"), "arm"]
    if compared:
        columns += [("Δ nats [95 % CI]" if judged else "Δ nats", "right"), ("seeds", "right")]
    columns.append(("search", "right"))
    roomy = not judged or width >= 100
    tuned = roomy and any(line.lr is not None for line in lines)
    columns += [("lr", "right")] if tuned else []
    columns += ["best curve"] if roomy else []
    table = parts.table(*columns, fold=fold)
    shown = lines[:limit]
    for line in shown:
        style = parts.KINDS.get(line.verdict.kind, "") if line.verdict else ""
        name = Text(parts.words(line.name), style="bold" if line.is_baseline else style)
        if line.is_baseline:
            name.append(" (baseline)", style="not bold cyan")
        cells: list[str | Text] = [str(line.rank), name]
        if compared:
            cells += [parts.nats(line.loss), _difference(line), f"{line.n}/{line.planned}"]
        cells.append(parts.nats(line.search_loss))
        cells += [parts.rate(line.lr)] if tuned else []
        cells += [_curve(view, line.name, 16)] if roomy else []
        table.add_row(*cells)
    if len(shown) < len(lines):
        table.add_row("", Text(f"… {len(lines) - len(shown)} more arms", style="dim"))
    return table


def _difference(line: ArmStanding) -> str:
    if line.is_baseline:
        return "–"
    return f"{parts.signed(line.delta)} {parts.interval(line.low, line.high)}".strip()


def _curve(view: StudyView, arm: str, width: int) -> Text:
    """Training loss of the arm's best search trial; until one is done, how far its first has come."""
    own = [row for row in view.trials if row.spec.arm == arm]
    ended = [row for row in own if row.state == "complete" and row.spec.phase == "search" and row.result]
    best = min(ended, key=lambda row: (row.result and row.result.val_loss) or float("inf"), default=None)
    if best is not None and best.result is not None:
        losses = [point.train_loss for point in best.result.curve if point.train_loss is not None]
        return parts.sparkline(losses[len(losses) // 5 :], width)  # the first drop would flatten the rest
    running = [standing.share(row) for row in own if row.state == "running"]
    return parts.bar(max(running), width, "blue") if running else Text("waiting", style="dim")


def compute_line(view: StudyView, width: int) -> Text:
    """Compute spent of the total, as a bar of `width` columns and numbers."""
    spent, total = standing.spent(view), view.plan.total_mflop
    share = spent / total if total else 0.0
    said = f" {units.compute(spent)} of {units.compute(total)} spent ({share:.0%})"
    return parts.bar(share, width).append(said, style="default")


def trial_counts(rows: Sequence[TrialRow], expected: str = "") -> str:
    """`18 of 30 trials ended, 2 running, 10 queued, 1 failed`."""
    states = [row.state for row in rows]
    told = [f"{sum(map(standing.ended, rows))} of {expected or len(rows)} trials ended"]
    for state in ("running", "queued", "diverged", "failed", "cancelled"):
        if state in states:
            told.append(f"{states.count(state)} {state}")
    return ", ".join(told)


def progress_rows(view: StudyView, width: int, elapsed: float | None = None) -> list[tuple[str, str | Text]]:
    """Bars of the phases and of the compute, and the time."""
    rows: list[tuple[str, str | Text]] = []
    size = 16 if width < parts.ROOMY else 40
    for name in ("search", "confirm"):
        own = [row for row in view.trials if row.spec.phase == name]
        over = name == "search" and standing.phase(view) == "confirm"
        expected = len(own) if over else division.trials_of(view.plan.registered.run.sweep)[name]
        open_ended = not over if name == "search" else bool(view.plan.run.sweep.confirm.looks)
        limit = f"≤ {expected}" if open_ended else str(expected)
        done = sum(standing.share(row) if row.state == "running" else standing.ended(row) for row in own)
        counts = trial_counts(own, limit) if own else f"{limit} trials to come"
        rows.append((name, parts.bar(done / max(1, expected), size).append(f" {counts}", style="default")))
    rows.append(("compute", compute_line(view, size)))
    time_told = time_line(view, elapsed)
    return [*rows, ("time", time_told)] if time_told else rows


def time_line(view: StudyView, elapsed: float | None = None) -> str:
    """Elapsed and left, as far as known."""
    told = [] if elapsed is None else [f"{units.duration(elapsed)} elapsed"]
    left = standing.seconds_left(view)
    if left is not None:
        told.append(f"at most {units.duration(left)} left")
    return ", ".join(told)


def account_table(accounts: Sequence[PhaseAccount], done: bool) -> Table:
    """The ledger by phase."""
    table = parts.table(
        "phase",
        ("allowed", "right"),
        ("spent", "right"),
        ("returned" if done else "free", "right"),
        ("reserved", "right"),
        ("done again", "right"),
    )
    for account in accounts:
        free = account.cap - account.spent - account.reserved
        amounts = (account.cap, account.spent, free, account.reserved, account.waste)
        table.add_row(account.phase, *(units.compute(amount) if amount else "–" for amount in amounts))
    return table


def running_rows(view: StudyView, limit: int | None = None) -> Table:
    """Trials under way, with their steps."""
    table = Table.grid(padding=(0, 2))
    for justify in ("right", "left", "left", "left", "right"):
        table.add_column(justify=justify, no_wrap=True, overflow="ellipsis")
    rows = standing.running(view)
    for row in rows[:limit]:
        step = row.progress.step if row.progress else 0
        what = f"lr {parts.rate(row.spec.lr)}" if row.spec.phase == "search" else f"seed {row.spec.seed}"
        loss = row.progress.train_loss if row.progress else None
        table.add_row(
            f"{row.number:03d}",
            parts.words(row.spec.arm),
            what,
            parts.bar(standing.share(row), 12, "blue").append(f" {step:,}/{row.spec.steps:,}", "default"),
            "" if loss is None else f"loss {parts.nats(loss)}",
        )
    if limit is not None and len(rows) > limit:
        table.add_row("", Text(f"… {len(rows) - limit} more", style="dim"))
    return table


def event_rows(view: StudyView, count: int) -> list[Text]:
    """The newest events, newest last."""
    lines = []
    for at, kind, text in view.events[-count:] if count else ():
        line = Text(time.strftime("%H:%M:%S", time.localtime(at)), style="dim")
        line.append(f"  {parts.words(kind)}  ", style="cyan").append(parts.words(text), style="default")
        lines.append(line)
    return lines
