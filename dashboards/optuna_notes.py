"""What the Optuna dashboard cannot know by itself: question, verdicts, what each trial was, two charts."""

import math
from types import SimpleNamespace
from typing import Any

from ablate.errors import AblateError
from ablate.home import Home
from ablate.records import StudyView, TrialRow
from ablate.tracking_runs import plain

CHARTS = {
    "forest": ("ablate-forest", "Difference to the baseline"),
    "loss_vs_flops": ("ablate-loss-vs-flops", "Loss against compute"),
}
"""Functions of `ablate.figures`, the element ids that the dashboard keeps them under, and titles."""


def annotate(home: Home, view: StudyView) -> int:
    """Write notes and charts into the study's Optuna storage; returns how many things were new or changed.

    For a study that rests: while one runs, its scheduler alone writes to that storage.

    Raises:
        AblateError: the study is running.
    """
    if view.state == "running":
        raise AblateError(f"{view.name} is running. Its notes can be written when it has ended.")
    import optuna
    from optuna_dashboard import get_note, save_note, save_plotly_graph_object

    from ablate import figures, search

    if not search.exists(home):
        return 0
    storage = search.open_storage(home)
    try:
        study = optuna.load_study(study_name=view.name, storage=storage)
    except KeyError:
        return 0
    notes: list[tuple[Any, str]] = [(study, study_note(view))]
    for trial in study.get_trials(deepcopy=False):
        row = _row(view, trial)
        if (
            row is not None
        ):  # the dashboard keeps a trial's note with the study, so that a finished trial can have one
            place = SimpleNamespace(storage=study._storage, study=study, _trial_id=trial._trial_id)
            notes.append((place, trial_note(view, row)))
    changed = 0
    for place, text in notes:
        if get_note(place) != text:
            save_note(place, text)
            changed += 1
    if changed:
        for name, (identifier, title) in CHARTS.items():
            figure = getattr(figures, name)(view)
            figure.update_layout(title=title, margin_t=100, height=figure.layout.height + 84)
            save_plotly_graph_object(study, figure, graph_object_id=identifier)
            changed += 1
    storage.engine.dispose()
    return changed


def study_note(view: StudyView) -> str:
    """Question, verdicts, and how to read the dashboard's own numbers, in Markdown."""
    lines = [f"## {plain(view.plan.question)}", ""]
    if view.verdicts:
        lines += ["| arm | verdict | difference, nats | 95 % interval | seeds |", "|---|---|---|---|---|"]
        for v in sorted(view.verdicts, key=lambda v: v.delta):
            interval = f"[{v.low:+.4f}, {v.high:+.4f}]"
            lines.append(f"| {plain(v.arm)} | **{v.kind}** | {v.delta:+.4f} | {interval} | {v.n} |")
        lines += ["", *(f"- {plain(v.sentence)}" for v in view.verdicts)]
    lines += [
        "",
        "Here is the search for learning rates only. Its losses choose the rates and never enter a verdict: "
        "verdicts rest on fresh seeds. A diverged trial counts as the loss of a uniform guess.",
    ]
    return "\n".join(lines)


def trial_note(view: StudyView, row: TrialRow) -> str:
    """One trial in words, in Markdown."""
    arm = view.plan.arm(row.spec.arm)
    lines = [
        f"Trial {row.number} of `{view.name}`: arm **{plain(arm.name)}** ({plain(arm.variant.schedule)}), "
        f"learning rate {row.spec.lr:.4g}, seed {row.spec.seed}, {row.spec.steps} steps."
    ]
    if row.result is not None and row.result.val_loss is not None:
        lines.append(f"It ended {row.result.outcome}, at {row.result.val_loss:.4f} nats per token.")
    if row.result is not None and row.result.reason:
        lines.append(plain(row.result.reason))
    return "\n\n".join(lines)


def _row(view: StudyView, trial: Any) -> TrialRow | None:
    """The search trial of the same arm and learning rate."""
    arm, lr = trial.params.get("arm"), trial.params.get("lr")
    for row in view.trials:
        if row.spec.phase == "search" and row.spec.arm == arm and lr and math.isclose(row.spec.lr, lr):
            return row
    return None
