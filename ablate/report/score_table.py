"""What arms get right on a probe, as a table of the report."""

import dataclasses

from ablate.records import StudyView
from ablate.report import formats
from ablate.report.arms import Arm
from ablate.report.table import Column, Row, Table
from ablate.scores import SOLVED, ranked

_REACH = "by how far back the answer stands"


def scores(view: StudyView, arms: dict[str, Arm]) -> Table | None:
    """One row per arm, best first; None where arms read text."""
    if not view.scores:
        return None
    columns = (
        Column("Arm", lambda r: arms[r["arm"]].label, numeric=False),
        Column("Accuracy", lambda r: formats.share(r["accuracy"])),
        Column("Seeds that solved it", lambda r: f"{r['solved']} of {r['n']}"),
        Column("Share that do [95 % interval]", _interval),
        Column("Steps to it, median", lambda r: formats.integer(r["steps"])),
        Column("Best accuracy in the search", lambda r: formats.share(r["searched"])),
    )
    bins = sorted({far for score in view.scores for far, _ in score.reach})
    columns += tuple(
        Column(
            f"Up to {far} tokens back",
            lambda r, far=far: formats.share(dict(r["reach"]).get(far)),
            group=_REACH,
        )
        for far in bins
    )
    caption = (
        f"Right answers on {view.plan.run.data.source}: held-out sequences, fresh seeds at the tuned learning rate; "
        f"a seed with more than {SOLVED:.0%} has solved it"
    )
    return Table(caption, columns, tuple(dataclasses.asdict(score) for score in ranked(view.scores)))


def _interval(row: Row) -> str:
    return formats.ABSENT if row["n"] == 0 else f"[{row['low']:.0%}, {row['high']:.0%}]"
