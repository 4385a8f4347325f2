"""`ablate status`: where a study stands, at a glance."""

from rich.text import Text

from ablate import standing
from ablate.console import end_screen, parts, score_table, search_screen, standing_parts
from ablate.records import StudyView

EVENTS = 8


def status(view: StudyView) -> None:
    """Print state, arms so far, compute, workers and the newest events."""
    console = parts.console()
    head = Text(view.name, style="bold").append(f"  {view.state}", style=parts.STATES.get(view.state, ""))
    head.append(f"  begun {standing.age(view.created_at)}", style="not bold dim")
    console.print(head)
    console.print(Text(parts.words(view.plan.question)))
    console.print(parts.facts(standing_parts.progress_rows(view, console.width)))
    lines, basis = standing.arms(view)
    console.print(parts.heading("Arms"))
    console.print(standing_parts.arms_table(view, lines, console.width))
    console.print(Text(f"ranked by {basis}", style="dim"))
    score_table.scores(console, view)
    end_screen.raised(console, view)
    if view.search is not None:
        search_screen.search(console, view.search)
    if standing.running(view):
        console.print(parts.heading("Under way"))
        console.print(standing_parts.running_rows(view))
    console.print(parts.heading("Workers"))
    if view.workers:
        table = parts.table("worker", "host", ("process", "right"), ("trial", "right"), "last sign of life")
        for name, (host, pid, trial, seen) in sorted(view.workers.items()):
            number = "–" if trial is None else f"{trial:03d}"
            table.add_row(parts.words(name), parts.words(host), str(pid), number, standing.age(seen))
        console.print(table)
    else:
        console.print(Text("none"))
    if view.events:
        console.print(parts.heading("Events"))
        for line in standing_parts.event_rows(view, EVENTS):
            console.print(line)
    if view.state == "stopped":
        console.print(Text(f"\nGo on with: ablate resume {view.name}"), soft_wrap=True)
