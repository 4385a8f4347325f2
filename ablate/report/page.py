"""The page: one file that holds everything, and the Markdown of the same tables."""

import base64
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ablate import alarms, registration
from ablate.records import StudyView
from ablate.report import contents, effects_table, files, score_table, search_table, table, words
from ablate.report.arms import ON_DARK, Arm, confirmed, printable
from ablate.report.drawing import VARIABLES, Drawn
from ablate.report.reproduce import Reproduction
from components.spec import FLOP_CONVENTION

TEMPLATES = Path(__file__).parent / "templates"


def html(
    view: StudyView,
    arms: dict[str, Arm],
    figures: Sequence[Drawn],
    offered: dict[str, str],
    reproduction: Reproduction,
) -> str:
    """The whole report as one page.

    Args:
        offered: files beside the page that it also holds, to be saved from it: name to text.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    contrasts = contents.contrasts(view, arms)
    return environment.get_template("report.html.j2").render(
        view=view,
        plan=view.plan,
        arms=arms,
        words=words,
        verdicts=sorted(view.verdicts, key=lambda verdict: verdict.delta),
        doubts=words.doubts(view, arms),
        alarms=alarms.of_study(view),
        missing=words.missing(view, arms),
        contrasts=contrasts,
        dots=_dots(arms),
        deviations=registration.deviations(view),
        effects=effects_table.effects(view),
        effect_notes=effects_table.notes(view.effects) if view.effects else [],
        scores=score_table.scores(view, arms),
        search=search_table.tables(view),
        search_notes=search_table.notes(view.search) if view.search else [],
        mismatches=contents.mismatches(view, arms),
        budget=contents.budget(view),
        models=contents.models(view, arms),
        trials=contents.trials(view, arms),
        states=Counter(row.state for row in view.trials),
        reused=sum(row.reused_from is not None for row in view.trials),
        diagnostics=contents.diagnostics(view, arms),
        seeds=max((len(rows) for rows in confirmed(view).values()), default=0),
        figures={drawn.figure.name: drawn for drawn in figures},
        inline={drawn.figure.name: Markup(drawn.inline) for drawn in figures},
        downloads=[(name, _data_url(name, text)) for name, text in offered.items()],
        reproduction=reproduction,
        convention=FLOP_CONVENTION,
        colours=[(name, light, ON_DARK[light]) for light, name in VARIABLES.items()],
    )


def markdown(view: StudyView, arms: dict[str, Arm]) -> str:
    """Verdicts, doubts and the contrast table, for an issue or a pull request."""
    say = table.markdown
    lines = [f"# {say(view.plan.question or view.name)}", "", say(words.headline(view, arms)), ""]
    lines += [f"> {say(text)}" for text in words.missing(view, arms)]
    for verdict in sorted(view.verdicts, key=lambda verdict: verdict.delta):
        lines.append(
            f"- **{say(words.badge(verdict))}** {say(verdict.sentence)} {say(words.belief(verdict))}"
        )
    doubts = words.doubts(view, arms)
    if doubts:
        lines += ["", "## Reasons for doubt", ""]
    for doubt in doubts:
        kind = "blocker" if doubt.blocks else "warning"
        lines.append(f"- {kind} {say(doubt.id)} ({say(', '.join(doubt.arms))}): {say(doubt.text)}")
    if found := alarms.of_study(view):
        lines += ["", "## Alarms", ""]
        lines += [f"- {say(a.id)} ({say(arms[a.arm].label)}, {a.count}): {say(a.text)}" for a in found]
    contrasts = contents.contrasts(view, arms)
    lines += ["", f"## {say(contrasts.caption)}", ""]
    for part in contrasts.groups:
        lines += [table.to_markdown(part)]
    if found := registration.deviations(view):
        lines += ["", "## Deviations from what was registered", "", *(f"- {say(text)}" for text in found)]
    if (scores := score_table.scores(view, arms)) is not None:
        lines += ["## Right answers", ""]
        lines += [f"{say(part.caption)}\n\n{table.to_markdown(part)}" for part in scores.groups]
    if view.effects is not None:
        lines += ["## Effects of factors", ""]
        lines += [f"{say(text)}\n" for text in effects_table.notes(view.effects)]
        lines += [f"### {say(t.caption)}\n\n{table.to_markdown(t)}" for t in effects_table.effects(view)]
    if view.search is not None:
        lines += ["## Open search", "", *(f"{say(text)}\n" for text in search_table.notes(view.search))]
        lines += [f"### {say(t.caption)}\n\n{table.to_markdown(t)}" for t in search_table.tables(view)]
    lines += ["## Compute", "", table.to_markdown(contents.budget(view))]
    lines += [
        f"Study `{view.name}`, plan {view.plan.fingerprint}, data {view.plan.data_fingerprint[:16]}, "
        f"FLOPs by convention {FLOP_CONVENTION}.",
        "",
    ]
    return "\n".join(lines)


def _dots(arms: dict[str, Arm]) -> dict[str, str]:
    """Each arm's colour in figures, as the page's variable of it."""
    return {name: f"var(--{VARIABLES[arm.colour]})" for name, arm in arms.items()}


def _data_url(name: str, text: str) -> str:
    kinds: dict[str, Any] = {".csv": "text/csv", ".json": "application/json"}
    kind = kinds.get(Path(name).suffix, "text/plain")
    return f"data:{kind};charset=utf-8;base64,{base64.b64encode(files.encode(text)).decode()}"
