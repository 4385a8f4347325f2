"""Checkpoints that are whole or not there: safetensors and JSON under a manifest of SHA-256 sums, renamed into place.

No pickle is written or read. A checkpoint is read back before it gets its name, and the one before it is kept,
for the case that the newest is damaged later. A save never touches newer checkpoints than its own: a process
that was thought dead and wakes up takes nothing from the attempt that went on.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate import faults

if TYPE_CHECKING:  # whoever only forgets checkpoints does not wait for PyTorch
    from torch import Tensor

STATE, META, MANIFEST = "state.safetensors", "meta.json", "manifest.json"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
"""Final weights of a trial, and the configuration that builds the model they belong to."""
INDEX = "model.safetensors.index.json"
"""Which file has which tensor, where weights from elsewhere lie in several."""

KEPT = 2
"""Checkpoints of a trial that are kept: the newest, and one to fall back to."""

_PREFIX = "step-"
PART = ".part-"
"""Beginning of the names of what is not finished; the next attempt removes it."""


@dataclass(frozen=True)
class Checkpoint:
    """What a trial needs to go on after `step` optimizer steps.

    Attributes:
        tensors: by name, `model/…`, `optimizer/…`, `rng/…`.
        meta: everything that is no tensor, JSON-able.
    """

    step: int
    tensors: "dict[str, Tensor]"
    meta: dict[str, Any]


def save(folder: Path, checkpoint: Checkpoint) -> None:
    """Write, read back, give it its name, then forget old ones. When this returns, it survives a loss of power.

    Raises:
        OSError: no space, no permission, or other bytes read than written; what was there before is untouched.
    """
    from safetensors.torch import save_file

    target = folder / f"{_PREFIX}{checkpoint.step:09d}"
    tensors = _on_cpu(checkpoint.tensors)
    folder.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{PART}{target.name}-", dir=folder))
    try:
        save_file(tensors, part / STATE)
        faults.point("checkpoint.half")
        (part / META).write_text(json.dumps({"step": checkpoint.step, **checkpoint.meta}))
        _verify(part / STATE, tensors)
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
        faults.point("checkpoint.renamed")
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    older = [other for other in _newest_first(folder) if other.name < target.name]
    for old in older[KEPT - 1 :]:
        shutil.rmtree(old, ignore_errors=True)


def load(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, and what is wrong with those that were passed over for it.

    What a save left behind that did not come to its end is removed.
    """
    from safetensors.torch import load_file

    for half in folder.glob(f"{PART}*"):
        shutil.rmtree(half, ignore_errors=True)
    passed_over = []
    for candidate in _newest_first(folder):
        if fault := damage(candidate):
            passed_over.append(f"checkpoint {candidate.name} is damaged: {fault}")
            continue
        meta = json.loads((candidate / META).read_text())
        return Checkpoint(meta.pop("step"), load_file(candidate / STATE), meta), passed_over
    return None, passed_over


def damage(candidate: Path) -> str:
    """What is wrong with a checkpoint; empty where every file is there and as it was written."""
    try:
        sums: Mapping[str, str] = json.loads((candidate / MANIFEST).read_text())
        if set(sums) != {STATE, META}:
            return f"{MANIFEST} names {sorted(sums)}"
        wrong = [name for name in sums if _sha256(candidate / name) != sums[name]]
    except (OSError, ValueError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return ", ".join(f"the SHA-256 of {name} is not that of its manifest" for name in wrong)


def publish(
    folder: Path, weights: "Mapping[str, Tensor]", config: Mapping[str, Any], allowed: Callable[[], None]
) -> None:
    """Write final weights and the configuration of their model, and give them their names.

    Args:
        allowed: is asked last and raises where another attempt has taken over.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PART, dir=folder) as part:
        save_file(_on_cpu(weights), Path(part, WEIGHTS))
        Path(part, CONFIG).write_text(json.dumps(config, indent=2))
        allowed()
        for name in (CONFIG, WEIGHTS):
            Path(part, name).replace(folder / name)


def remove(folder: Path) -> None:
    """Forget all checkpoints of a trial that needs none any more."""
    for candidate in [*_newest_first(folder), *folder.glob(f"{PART}*")]:
        shutil.rmtree(candidate, ignore_errors=True)


def _on_cpu(tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
    """As safetensors takes them."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_PREFIX}*"), reverse=True)


def _verify(path: Path, tensors: "Mapping[str, Tensor]") -> None:
    """Compare what the file system gives back with what is in memory, one tensor at a time."""
    import torch
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        for name, tensor in tensors.items():
            if not torch.equal(_bytes(file.get_tensor(name)), _bytes(tensor)):
                raise OSError(f"{path}: '{name}' reads back otherwise than it was written")


def _bytes(tensor: "Tensor") -> "Tensor":
    """Bits as they are, so that NaN equals itself."""
    import torch

    return tensor.reshape(-1).view(torch.uint8)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
