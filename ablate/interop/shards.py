"""Folders of safetensors files: read with every header checked first, written one file at a time."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ablate.checkpoint import INDEX, WEIGHTS
from ablate.errors import BadInputError


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says about a tensor before it is read.

    Attributes:
        dtype: as safetensors spells it, such as `BF16`.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]


class Shards:
    """Tensors of a folder by name. One file is open at a time, and nothing of it is read before it is asked for."""

    def __init__(self, folder: Path) -> None:
        """Find the files and read their headers.

        Raises:
            BadInputError: no safetensors files; an index that does not fit them or names files elsewhere.
        """
        self.folder = folder
        self._open: tuple[str, Any] | None = None
        listed = _index(folder)
        self.headers: dict[str, Header] = {}
        for file in sorted(set(listed.values())) if listed is not None else [WEIGHTS]:
            self.headers |= self._headers(file)
        if listed is not None:
            for name, file in listed.items():
                if name not in self.headers or self.headers[name].file != file:
                    raise BadInputError(f"{folder / INDEX} says that {file} has '{name}', but it has not.")
            if beyond := sorted(set(self.headers) - set(listed)):
                raise BadInputError(f"{folder / INDEX} does not list '{beyond[0]}', which is in a file.")

    def read(self, name: str, where: tuple[slice, ...] = ()) -> Tensor:
        """A tensor, or the part of it that `where` cuts out."""
        source = self._file(self.headers[name].file)
        return source.get_slice(name)[where] if where else source.get_tensor(name)

    def _file(self, file: str) -> Any:
        if self._open is None or self._open[0] != file:
            self._open = None  # before the next one opens
            try:
                self._open = (file, safe_open(self.folder / file, "pt"))
            except (OSError, SafetensorError) as error:
                raise BadInputError(f"{self.folder / file} cannot be read as safetensors: {error}") from error
        return self._open[1]

    def _headers(self, file: str) -> dict[str, Header]:
        source, found = self._file(file), {}
        for name in source.keys():  # noqa: SIM118 - no mapping
            part = source.get_slice(name)
            found[name] = Header(file, part.get_dtype(), tuple(part.get_shape()))
        if double := sorted(found.keys() & self.headers.keys()):
            raise BadInputError(f"'{double[0]}' is both in {self.headers[double[0]].file} and in {file}.")
        return found


def _index(folder: Path) -> dict[str, str] | None:
    """Names to files, or None where one file has everything."""
    path = folder / INDEX
    if not path.is_file():
        if (folder / WEIGHTS).is_file():
            return None
        if others := [p.name for p in folder.glob("*") if p.suffix in (".bin", ".pt", ".pth", ".ckpt")]:
            raise BadInputError(
                f"{folder} has weights in {others[0]}, which may run code when loaded. Allowed: safetensors."
            )
        raise BadInputError(
            f"{folder} has no weights. Allowed: {WEIGHTS}, or {INDEX} with the files it lists."
        )
    listed = read_json(path).get("weight_map")
    if not isinstance(listed, dict) or not listed:
        raise BadInputError(f"{path} has no weight_map from names to files.")
    for name, file in listed.items():
        if not isinstance(file, str) or not re.fullmatch(r"[\w][\w.-]*\.safetensors", file):
            raise BadInputError(
                f"{path}: '{name}' is said to be in {file!r}. Allowed: names of safetensors files in that folder."
            )
    missing = sorted(file for file in set(listed.values()) if not (folder / file).is_file())
    if missing:
        raise BadInputError(f"{path} lists {missing[0]}, which is not there ({len(missing)} of its files).")
    return listed


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        BadInputError: no such file, or something else in it.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInputError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise BadInputError(f"{path} holds no JSON object.")
    return found


class Writer:
    """Tensors to files of at most `limit` bytes (one larger tensor has a file of its own), and their index."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._waiting: dict[str, Tensor] = {}
        self._held: set[int] = set()
        self._bytes = self._total = 0
        self._files: list[list[str]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Keep a tensor for the current file, and write that when it is full."""
        if self._waiting and self._bytes + tensor.nbytes > self.limit:
            self._flush()
        # A part of something larger would keep all of it in memory, and one tensor under two names is refused.
        storage = tensor.untyped_storage()
        own = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in self._held
        tensor = tensor.contiguous() if own else tensor.clone(memory_format=torch.contiguous_format)
        self._held.add(tensor.untyped_storage().data_ptr())
        self._waiting[name] = tensor
        self._bytes += tensor.nbytes

    def close(self) -> list[Path]:
        """Write what is left, give files their final names, and return them with the index."""
        self._flush()
        count = len(self._files)
        names = (
            [WEIGHTS]
            if count == 1
            else [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
        )
        paths = [self._part(i).rename(self.folder / name) for i, name in enumerate(names)]
        if count > 1:
            listed = {tensor: name for name, held in zip(names, self._files, strict=True) for tensor in held}
            index = {"metadata": {"total_size": self._total}, "weight_map": dict(sorted(listed.items()))}
            (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
            paths.append(self.folder / INDEX)
        return paths

    def _flush(self) -> None:
        save_file(self._waiting, self._part(len(self._files)), {"format": "pt"})
        self._files.append(list(self._waiting))
        self._total += self._bytes
        self._waiting, self._held, self._bytes = {}, set(), 0

    def _part(self, number: int) -> Path:
        return self.folder / f".part-{number:05d}"
