"""Answers on the terminal: what a study found, and whether two sides can be compared."""

from rich.text import Text

from ablate import registration, standing
from ablate.console import effects_screen, end_screen, parts, score_table
from ablate.fairness import Comparison
from ablate.records import StudyView


def verdict(view: StudyView) -> None:
    """Print verdicts, effects, doubts, and the registration with what deviates from it."""
    console = parts.console()
    console.print(Text(parts.words(view.plan.question) or view.name, style="bold"))
    console.print(Text(f"{view.name}, {view.state}", style="dim"))
    lines, _ = standing.arms(view)
    if not view.verdicts:
        console.print(Text("no verdicts yet"))
    console.print(end_screen.sentences(lines))
    score_table.scores(console, view)
    if view.effects is not None:
        effects_screen.effects(console, view.effects)
    end_screen.caveats(console, view.verdicts)
    console.print(parts.heading("Registered before anything was spent"))
    fixed = registration.registered(view.plan)
    shown = ("contrasts", "equal", "margin", "alpha", "stopping_rule")
    rows = [(key.replace("_", " "), parts.words(_text(fixed[key]))) for key in shown]
    console.print(parts.facts([*rows, ("hash", view.provenance.get(registration.HASH, "none"))]))
    for text in registration.deviations(view):
        console.print(Text("deviation ", style="yellow").append(parts.words(text), style="default"))


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def comparison(found: Comparison) -> None:
    """Print what differs, and whether a comparison would mean something."""
    console = parts.console()
    console.print(Text(f"A  {parts.words(found.a)}\nB  {parts.words(found.b)}", style="bold"))
    console.print(parts.heading("What is compared"))
    if not found.factors:
        console.print(Text("no difference in model or optimizer"))
    for part, keys in found.factors.items():
        console.print(Text(parts.words(part), style="bold"))
        for key, (a, b) in keys.items():
            console.print(Text(f"  {key}: {a} / {b}"))
    if found.findings:
        console.print(parts.heading("What else differs"))
    for finding in found.findings:
        style = "bold red" if finding.severity == "refused" else "yellow"
        text = Text(finding.severity, style=style).append(f" {finding.key}", style="not bold default")
        values = (
            f" ({parts.words(str(finding.a))} / {parts.words(str(finding.b))})"
            if finding.a != finding.b
            else ""
        )
        console.print(text.append(f"{values}: {finding.why}", style="not bold default"))
    warnings = sum(finding.severity == "warning" for finding in found.findings)
    if found.refused:
        console.print(Text("\nNot comparable: a difference in loss would mean nothing.", style="bold red"))
    else:
        told = f", with {warnings} warning{'s' if warnings > 1 else ''}" if warnings else ""
        console.print(Text(f"\nComparable{told}.", style="bold green"))
