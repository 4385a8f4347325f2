"""Files that appear whole."""

import os
import uuid
from pathlib import Path


def replace(path: Path, content: str | bytes) -> None:
    """Write beside `path` and rename over it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{uuid.uuid4().hex}.tmp")  # two may write the same report at once
    try:
        beside.write_bytes(encode(content) if isinstance(content, str) else content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def encode(text: str) -> bytes:
    """UTF-8; a lone surrogate, as a mistyped file name may hold, becomes a question mark."""
    return text.encode("utf-8", errors="replace")
