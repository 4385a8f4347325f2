"""What stands for an arm in every figure and table: a short label, a colour, a mark."""

import re
import statistics
from collections import defaultdict
from dataclasses import dataclass

from ablate.records import StudyView, TrialRow

INK, QUIET, LINE, BAND, CARD = "#1d2329", "#5b6570", "#dfe1e3", "#e4e8ec", "#ffffff"
USEFUL, HELD, WASTE, UNSPENT = "#4a7fb5", "#b9d0e6", "#c2571a", "#e8eaec"
OTHER = "#9aa4ae"
"""Colour of arms beyond those that can be told apart."""

COLOURS = ("#0072b2", "#c84e00", "#00845f", "#b0468c", "#946a00", "#5a50c8")
"""Distinct for the colour-blind too, and dark enough for lines on white; marks do without colour."""

ON_DARK = {
    INK: "#e4e7ea",
    QUIET: "#a3adb7",
    LINE: "#343a41",
    BAND: "#2b3239",
    CARD: "#1c2024",
    USEFUL: "#6f9fd0",
    HELD: "#37506a",
    WASTE: "#e0803f",
    UNSPENT: "#2a3036",
    OTHER: "#6d7780",
    **dict(zip(COLOURS, ("#58b4f0", "#ff9457", "#3ccb9b", "#e78fc8", "#e2b13c", "#a29bff"), strict=True)),
}
"""What takes each colour's place on a dark page."""

MARKS = ("s", "^", "D", "v", "P", "X")
LABEL = 22
"""Letters of a label."""

_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")

_ENDED = ("complete", "diverged")


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One arm as it is drawn.

    Attributes:
        order: place in the plan.
        label: the name, shortened, unique, without what cannot be printed.
        named: has a colour of its own and is labelled in figures.
    """

    name: str
    order: int
    label: str
    colour: str
    mark: str
    is_baseline: bool
    named: bool


def arms(view: StudyView) -> dict[str, Arm]:
    """All arms by name in the order of the plan. With many, those with the largest effects have colours."""
    labels = _labels([arm.name for arm in view.plan.arms])
    effects = {verdict.arm: verdict.delta for verdict in view.verdicts}
    others = [arm.name for arm in view.plan.arms if not arm.is_baseline]
    if len(others) > len(COLOURS):
        others = sorted(others, key=lambda name: effects.get(name, 0.0))
        others = [*others[: len(COLOURS) // 2], *others[-(len(COLOURS) // 2) :]]
    slots = {name: i for i, name in enumerate(others)}
    made = {}
    for order, arm in enumerate(view.plan.arms):
        slot = slots.get(arm.name)
        made[arm.name] = Arm(
            name=arm.name,
            order=order,
            label=labels[arm.name],
            colour=INK if arm.is_baseline else OTHER if slot is None else COLOURS[slot],
            mark="o" if arm.is_baseline or slot is None else MARKS[slot],
            is_baseline=arm.is_baseline,
            named=arm.is_baseline or slot is not None,
        )
    return made


def confirmed(view: StudyView) -> dict[str, dict[int, TrialRow]]:
    """Arm to replicate to the confirm trial that has a final loss; one that diverged has its capped loss."""
    found: dict[str, dict[int, TrialRow]] = defaultdict(dict)
    for row in view.trials:
        if row.spec.phase == "confirm" and row.state in _ENDED and final_loss(row) is not None:
            found[row.spec.arm][row.spec.replicate] = row
    return found


def final_loss(row: TrialRow) -> float | None:
    """Held-out loss of a trial that has one."""
    return row.result.val_loss if row.result else None


def mean(values: list[float | None]) -> float | None:
    """Mean of the values that are there."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def printable(text: str) -> str:
    """Text without control characters and lone surrogates, which neither XML nor UTF-8 can hold."""
    return _UNPRINTABLE.sub("�", text)


def shortened(text: str, letters: int) -> str:
    """Beginning and end of a text that is longer than that."""
    tail = letters // 3
    return text if len(text) <= letters else f"{text[: letters - tail - 1]}…{text[-tail:]}"


def _labels(names: list[str]) -> dict[str, str]:
    taken: set[str] = set()
    labels = {}
    for name in names:
        clean = " ".join(printable(name).split()) or "(no name)"
        label = shortened(clean, LABEL)
        number = 2
        whole = label
        while label in taken:
            label, number = f"{whole[: LABEL - 4]} ({number})", number + 1
        taken.add(label)
        labels[name] = label
    return labels
