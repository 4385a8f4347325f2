"""The end of a study, or of what there is of it: verdicts, doubts, compute, and where everything is."""

from collections.abc import Iterable
from urllib.parse import quote

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ablate import alarms, standing, units
from ablate.console import effects_screen, parts, score_table, search_screen, standing_parts
from ablate.records import StudyView, Verdict
from ablate.standing import ArmStanding

_TROUBLED = 5
"""Failed or diverged trials that are named."""


def final(view: StudyView, links: dict[str, str]) -> None:
    """Print what the study came to, as far as it has come.

    Args:
        links: files of the report, and pages of MLflow, by what they are.
    """
    console = parts.console()
    console.print(Text(f"\n{parts.words(view.plan.question) or view.name}", style="bold"))
    state = "done" if view.state == "done" else f"{view.state}, not finished: this is what is there so far"
    console.print(Text(f"{view.name}, {state}", style="dim" if view.state == "done" else "yellow"))
    lines, basis = standing.arms(view)
    if view.verdicts:
        console.print(parts.heading("Verdicts"))
        console.print(_verdicts(view, lines, console.width))
        console.print()
        console.print(sentences(lines))
        if view.effects is not None:
            effects_screen.effects(console, view.effects)
        caveats(console, view.verdicts)
    else:
        console.print(parts.heading("No verdicts: arms so far"))
        console.print(standing_parts.arms_table(view, lines, console.width))
        console.print(Text(f"ranked by {basis}", style="dim"))
    score_table.scores(console, view)
    raised(console, view)
    if view.search is not None:
        search_screen.search(console, view.search)
    console.print(parts.heading("Compute"))
    console.print(standing_parts.compute_line(view, 30))
    console.print(standing_parts.account_table(view.accounts, view.state == "done"))
    console.print(Text(standing_parts.trial_counts(view.trials) if view.trials else "no trials yet"))
    _trouble(console, view)
    _reused(console, view)
    _links(console, view, links)
    _next(console, view)


def _verdicts(view: StudyView, lines: Iterable[ArmStanding], width: int) -> Table:
    """One row per arm; where there is less room, two figures share a cell."""
    wide = width >= parts.ROOMY
    right = {score.arm: score_table.share(score.accuracy) for score in view.scores}
    beside = "accuracy" if right else "bits/byte"
    columns: list[str | tuple[str, str]]
    if wide:
        columns = ["arm", "verdict", ("Δ nats [95 % CI]", "right"), ("p Holm", "right"), ("n", "right")]
        columns += [("loss", "right"), (beside, "right"), ("tuned lr", "right"), "level"]
    else:
        columns = ["\narm", "verdict\nlevel", ("Δ nats\n[95 % CI]", "right"), ("\np Holm", "right")]
        columns += [("\nn", "right"), (f"loss\n{beside}", "right"), ("tuned\nlr", "right")]
    table = parts.table(*columns)
    for line in lines:
        found = line.verdict
        kind = found.kind if found else "baseline" if line.is_baseline else "none"
        word = Text(kind, style=f"bold {parts.KINDS[kind]}" if found else "dim")
        level = found.level if found else ""
        delta = parts.signed(line.delta) if not line.is_baseline else "–"
        ends = parts.interval(line.low, line.high)
        p, n = parts.probability(found.p_holm) if found else "–", str(found.n if found else line.n)
        loss, lr = parts.nats(line.loss), parts.rate(line.lr)
        second = right.get(line.name, parts.nats(line.bpb))
        name = Text(parts.words(line.name))
        if wide:
            table.add_row(name, word, f"{delta} {ends}".strip(), p, n, loss, second, lr, level)
        else:
            below = Text(f"{loss}\n").append(second, style="dim")
            table.add_row(
                name, word.append(f"\n{level}", style="not bold default"), f"{delta}\n{ends}", p, n, below, lr
            )
    return table


def sentences(lines: Iterable[ArmStanding]) -> Table:
    """One verdict a line."""
    table = Table.grid(padding=(0, 1))
    for line in lines:
        if line.verdict:
            table.add_row(Text("●", parts.KINDS[line.verdict.kind]), parts.words(line.verdict.sentence))
    return table


def caveats(console: Console, verdicts: Iterable[Verdict]) -> None:
    """A line per reason for doubt, with the arms it holds for; those that forbid a verdict come first."""
    arms: dict[str, list[str]] = {}
    texts = {}
    for found in verdicts:
        for caveat in found.caveats:
            arms.setdefault(caveat.id, []).append(parts.words(found.arm))
            first = texts.setdefault(caveat.id, caveat)
            texts[caveat.id] = caveat if caveat.blocks and not first.blocks else first
    if not arms:
        return
    console.print(parts.heading("Reasons for doubt"))
    for caveat in sorted(texts.values(), key=lambda caveat: not caveat.blocks):
        line = Text().append(parts.words(caveat.id), style="bold red" if caveat.blocks else "yellow")
        line.append(" forbids a verdict: " if caveat.blocks else ": ").append(parts.words(caveat.text))
        console.print(line.append(f" ({', '.join(dict.fromkeys(arms[caveat.id]))})", style="dim"))


def raised(console: Console, view: StudyView) -> None:
    """A line per arm and diagnostic that says that something is broken."""
    found = alarms.of_study(view)
    if not found:
        return
    console.print(parts.heading("Alarms"))
    for alarm in found:
        line = Text().append(alarm.id, style="bold red").append(f" {parts.words(alarm.text)}", "default")
        console.print(line.append(f" ({parts.words(alarm.arm)}, {alarm.count})", style="dim"))


def _trouble(console: Console, view: StudyView) -> None:
    """Trials that did not end well, each with its reason."""
    rows = [row for row in view.trials if row.state in ("failed", "diverged")]
    for row in sorted(rows, key=lambda row: row.state != "failed")[:_TROUBLED]:
        reason = (parts.words(row.result.reason) if row.result else "") or "no reason given"
        arm, lr = parts.words(row.spec.arm), parts.rate(row.spec.lr)
        told = f" {row.number:03d} {arm} ({row.spec.phase}, lr {lr}): {reason}"
        console.print(Text(row.state, style="red").append(told, style="default"))
    if len(rows) > _TROUBLED:
        console.print(Text(f"… {len(rows) - _TROUBLED} more of them in the report", style="dim"))


def _reused(console: Console, view: StudyView) -> None:
    origins = [row.reused_from for row in view.trials if row.reused_from]
    if origins:
        saved = sum(row.spec.allowance_mflop for row in view.trials if row.reused_from)
        console.print(
            Text(
                f"{len(origins)} trials were already paid for by {', '.join(dict.fromkeys(origins))}: "
                f"{units.compute(saved)} not spent again"
            )
        )


def _links(console: Console, view: StudyView, links: dict[str, str]) -> None:
    from ablate.tracking import PORTAL

    root = f"{PORTAL}/studies/{quote(view.name, safe='')}"
    direct, pages = {}, {"Live page": root, "Search in Optuna": f"{root}/optuna"}
    for title, link in links.items():
        if link.startswith(PORTAL):  # by the portal's own address, which is short and outlives the mirror
            pages[f"MLflow: {title}"] = f"{root}/mlflow?page={quote(title)}"
        else:
            direct[title] = link
    width = max(map(len, [*direct, *pages]))
    if direct:
        console.print(parts.heading("Files"))
        _addresses(console, direct, width)
    console.print(parts.heading("Pages, while the dashboard runs"))
    _addresses(console, pages, width)


def _addresses(console: Console, links: dict[str, str], width: int) -> None:
    """One line each, whatever its length: a path or address that is broken in two cannot be clicked."""
    for title, link in links.items():
        line = Text(f"  {title:<{width}}  ", style="dim").append(link, style="not dim cyan")
        console.print(line, soft_wrap=True)


def _next(console: Console, view: StudyView) -> None:
    steps = []
    if view.state != "done":
        steps.append((f"ablate resume {view.name}", "go on; what is done costs nothing again"))
    steps.append((f"ablate dashboard {view.name}", "open the pages above in a browser"))
    if any(found.kind == "inconclusive" for found in view.verdicts) and view.state == "done":
        confirm = view.plan.run.sweep.confirm
        more = 2 * confirm.seeds
        key = "replicates" if not confirm.looks else "looks"
        value = str(more) if not confirm.looks else "[" + ",".join(map(str, [*confirm.looks, more])) + "]"
        steps.append(
            (f"sweep.confirm.{key}={value}", "with the same command: more seeds, narrower intervals")
        )
    console.print(parts.heading("Next"))
    width = max(len(command) for command, _ in steps)
    for command, what in steps:
        console.print(
            Text(f"  {command:<{width}}", style="bold").append(f"  {what}", "not bold dim"), soft_wrap=True
        )
