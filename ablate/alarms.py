"""What diagnostics say to be broken, judged along a trial's curve and told once per arm.

Bounds stand beside the components (`components.spec.Alarm`). They are no statistics: each says what is wrong with
a model that was trained, not whether an arm is better.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ablate.raised_alarm import RaisedAlarm
from ablate.records import Point, StudyView
from components.spec import Alarm

if TYPE_CHECKING:
    from ablate.model import LanguageModel

Rules = Mapping[str, tuple[Alarm, ...]]
"""Alarms by the beginning of the names of the diagnostics that they hold for, such as `diag/layers.3/`."""


@dataclass(frozen=True, kw_only=True)
class ArmAlarm:
    """One kind of alarm of an arm.

    Attributes:
        id: the metric.
        trials: numbers of the trials that raised it, of `judged` that ended.
        text: what is broken, as the last of them said it.
    """

    arm: str
    id: str
    trials: tuple[int, ...]
    judged: int
    text: str
    source: str

    @property
    def count(self) -> str:
        """How many trials, in words."""
        return f"{len(self.trials)} of {self.judged} trials"


def rules(model: "LanguageModel") -> Rules:
    """Of all components in every layer of `model`, those of its prediction layers included."""
    from ablate.model import Block
    from components.slots import Component

    found: dict[str, tuple[Alarm, ...]] = {}
    for block in model.modules():
        if isinstance(block, Block):
            own = [part.alarms for part in block.modules() if isinstance(part, Component)]
            found[f"diag/{block.name}/"] = tuple(dict.fromkeys(alarm for alarms in own for alarm in alarms))
    return found


def judge(curve: Sequence[Point], rules: Rules, whole_mflop: int) -> tuple[RaisedAlarm, ...]:
    """What was beyond its bound in the latest probe of a trial; each alarm once, where it is worst then.

    What has been beyond before and no longer is was cured by training, and is no alarm any more.

    Args:
        whole_mflop: of the trial, that alarms with a grace period are judged by.
    """
    first: dict[Alarm, int] = {}
    now: dict[Alarm, tuple[str, float]] = {}
    probed = [point for point in curve if point.diagnostics]
    for point in probed:
        now = _beyond(point.diagnostics, rules, point.mflop / whole_mflop)
        first = {alarm: first.get(alarm, point.step) for alarm in now}
    return tuple(
        RaisedAlarm(
            metric=alarm.metric,
            diagnostic=name,
            value=value,
            since=first[alarm],
            text=f"{name.removeprefix('diag/')} is {value:.3g}, {alarm.bounds}: {alarm.why}",
            source=alarm.source,
        )
        for alarm, (name, value) in now.items()
    )


def _beyond(
    diagnostics: Mapping[str, float], rules: Rules, progress: float
) -> dict[Alarm, tuple[str, float]]:
    """Alarms of one probe with the diagnostic that is worst."""
    watched: dict[Alarm, dict[str, float]] = {}
    for name, value in diagnostics.items():
        for alarm in _of(name, rules):
            watched.setdefault(alarm, {})[name] = value
    found = {}
    for alarm, values in watched.items():
        beyond = {name: value for name, value in values.items() if alarm.beyond(value)}
        if beyond and progress >= alarm.after and (len(beyond) == len(values) or not alarm.everywhere):
            found[alarm] = max(beyond.items(), key=lambda item: _excess(alarm, item[1]))
    return found


def of_study(view: StudyView) -> list[ArmAlarm]:
    """Alarms of all trials that have ended, once for each arm and metric."""
    found: dict[tuple[str, str], list[tuple[int, RaisedAlarm]]] = {}
    judged: dict[str, int] = {}
    for row in view.trials:
        if row.result is None or row.state not in ("complete", "diverged"):
            continue
        judged[row.spec.arm] = judged.get(row.spec.arm, 0) + 1
        for alarm in row.result.alarms:
            found.setdefault((row.spec.arm, alarm.metric), []).append((row.number, alarm))
    return [
        ArmAlarm(
            arm=arm,
            id=metric,
            trials=tuple(sorted({number for number, _ in raised})),
            judged=judged[arm],
            text=raised[-1][1].text,
            source=raised[-1][1].source,
        )
        for (arm, metric), raised in found.items()
    ]


def _of(name: str, rules: Rules) -> Iterator[Alarm]:
    metric = name.rpartition("/")[2]
    for beginning, alarms in rules.items():
        if name.startswith(beginning):
            yield from (alarm for alarm in alarms if alarm.metric == metric)


def _excess(alarm: Alarm, value: float) -> float:
    """How far beyond the bound, for comparing values of one alarm."""
    return max(
        value - alarm.above if alarm.above is not None else 0.0,
        alarm.below - value if alarm.below is not None else 0.0,
    )
