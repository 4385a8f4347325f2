"""Checkpoints that are whole or not there: safetensors and JSON under a manifest of SHA-256 sums, renamed into place.

No pickle is written or read. The previous checkpoint is kept until a newer one has been read back and verified.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ablate import faults

STATE, META, MANIFEST = "state.safetensors", "meta.json", "manifest.json"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
"""Final weights of a trial, and the configuration that builds the model they belong to."""

_PREFIX = "step-"


@dataclass(frozen=True)
class Checkpoint:
    """What a trial needs to go on after `step` optimizer steps.

    Attributes:
        tensors: by name, `model/…`, `optimizer/…`, `rng/…`.
        meta: everything that is no tensor, JSON-able.
    """

    step: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write, verify, then forget older ones. When this returns, the checkpoint survives a loss of power.

    Raises:
        OSError: no space or no permission; what was there before is untouched.
    """
    from safetensors.torch import save_file

    target = folder / f"{_PREFIX}{checkpoint.step:09d}"
    part = folder / f".part-{os.getpid()}-{target.name}"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        save_file(
            {name: t.detach().cpu().contiguous() for name, t in checkpoint.tensors.items()}, part / STATE
        )
        (part / META).write_text(json.dumps({"step": checkpoint.step, **checkpoint.meta}))
        sums = {name: _sha256(part / name) for name in (STATE, META)}
        (part / MANIFEST).write_text(json.dumps(sums))
        for name in (STATE, META, MANIFEST):
            _sync(part / name)
        _sync(part)
        faults.point("checkpoint.pre_rename")
        if target.exists():
            shutil.rmtree(target)
        part.rename(target)
        _sync(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    for old in _newest_first(folder):
        if old != target:
            shutil.rmtree(old, ignore_errors=True)


def load(folder: Path) -> Checkpoint | None:
    """The newest checkpoint whose sums are right, or None. Damaged and half-written ones are passed over."""
    from safetensors.torch import load_file

    for candidate in _newest_first(folder):
        if is_whole(candidate):
            meta = json.loads((candidate / META).read_text())
            return Checkpoint(meta.pop("step"), load_file(candidate / STATE), meta)
    return None


def is_whole(candidate: Path) -> bool:
    """Whether every file of a checkpoint is there and as it was written."""
    try:
        sums: Mapping[str, str] = json.loads((candidate / MANIFEST).read_text())
        return set(sums) == {STATE, META} and all(_sha256(candidate / name) == sums[name] for name in sums)
    except (OSError, ValueError):
        return False


def remove(folder: Path) -> None:
    """Forget all checkpoints of a trial that needs none any more."""
    for candidate in [*_newest_first(folder), *folder.glob(".part-*")]:
        shutil.rmtree(candidate, ignore_errors=True)


def _newest_first(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.glob(f"{_PREFIX}*"), reverse=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
