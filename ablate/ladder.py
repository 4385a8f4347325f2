"""A sweep over sizes: one study per rung, the largest as the sweep says, the smaller ones by its `ladder`.

Each rung is a study like any other, resumed and reused as such; what they say together is a compute multiplier.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from ablate import config, multiplier, schema
from ablate.errors import BadInputError
from ablate.home import Home
from ablate.jsonable import jsonable
from ablate.multiplier import Multiplier
from ablate.planning import make_plan
from ablate.records import Plan, StudyView
from ablate.report import files


def rungs(loaded: schema.Run, overrides: Sequence[str], config_dirs: Sequence[Path]) -> list[schema.Run]:
    """Configurations from the smallest size to the sweep's own; just that where it has no ladder.

    Raises:
        BadInputError: a rung that does not compose.
    """
    made = []
    for i, rung in enumerate(loaded.sweep.ladder):
        try:
            made.append(config.load([*overrides, *rung], config_dirs))
        except BadInputError as error:
            raise BadInputError(f"sweep.ladder[{i}]: {error}") from error
    return [*made, loaded]


def plans(made: Sequence[schema.Run], home: Home) -> list[Plan]:
    """A plan for every rung.

    Raises:
        BadInputError: a rung that cannot be planned, or too few amounts of compute for a multiplier.
    """
    found = [make_plan(run, home) for run in made]
    sizes = {plan.trial_mflop for plan in found}
    if len(found) > 1 and len(sizes) < multiplier.SIZES:
        raise BadInputError(
            f"sweep.ladder={made[-1].sweep.ladder} has {len(sizes)} amounts of compute per trial, with that of "
            f"the sweep itself. Allowed: at least {multiplier.SIZES}, ten times apart in all."
        )
    return found


def write(found: Sequence[Multiplier], views: Sequence[StudyView], folder: Path) -> Path:
    """Multipliers as data beside the largest study's report; returns the file."""
    path = folder / "ladder.json"
    values = {"studies": [view.name for view in views], "multipliers": jsonable(list(found))}
    files.replace(path, json.dumps(values, indent=1, allow_nan=False) + "\n")
    return path
