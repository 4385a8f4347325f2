"""One form for everything that is wrong with a data configuration."""

import difflib
from collections.abc import Iterable
from pathlib import Path

from ablate.errors import BadInputError


def refusal(key: str, value: object, problem: str, allowed: str, known: Iterable[str] = ()) -> BadInputError:
    """The error that names key, value, problem, what is allowed, and the nearest of `known`."""
    near = difflib.get_close_matches(str(value), list(known), n=1, cutoff=0.5)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return BadInputError(f"{key}={value} {problem}. Allowed: {allowed}.{hint}")


def neighbours(path: Path) -> list[str]:
    """Paths that `path` may be a slip of: what lies beside its first part that is missing."""
    while not path.parent.is_dir():
        path = path.parent
    try:
        return [str(found) for found in path.parent.iterdir()]
    except OSError:
        return []
