"""Records as JSON that every reader takes, for commands and pages alike."""

import dataclasses
import math
from pathlib import Path
from typing import Any


def jsonable(value: Any) -> Any:
    """Dataclasses, tuples and paths as JSON; a variant as its canonical form; infinities and NaN as null."""
    if hasattr(value, "canonical") and hasattr(value, "fingerprint"):
        return {"fingerprint": value.fingerprint, **jsonable(value.canonical())}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
