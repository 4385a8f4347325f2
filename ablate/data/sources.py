"""Where documents come from: the standard library, local files for a builder, a folder, or the hub."""

import glob
import os
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ablate import schema
from ablate.data.refusal import neighbours, refusal

STDLIB = "stdlib"

BUILDERS = ("text", "json", "parquet", "arrow", "csv")
"""Builders of `datasets` that read local files."""

_ALLOWED = f"{STDLIB}; {', '.join(BUILDERS)} together with data.files; a folder; the name of a hub data set"

_NOT_SOURCE = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
"""Folders of the standard library without its own source; tests are absent from some distributions."""

_GENERATED = ("_sysconfigdata", "config-")
"""Beginnings of names that the build of this one interpreter wrote."""


def local_files(data: schema.Data) -> list[tuple[str, Path]]:
    """Every local file that text is read from, in reading order, with a name that all machines agree on.

    Empty for a data set of the hub.

    Raises:
        BadInputError: a source that is none, a pattern that matches no file, or files where none are read.
    """
    if data.source == STDLIB:
        if data.files:
            raise refusal("data.files", data.files, f"is not read by data.source={STDLIB}", "data.files=[]")
        return _stdlib_files()
    if data.source in BUILDERS:
        if not data.files:
            raise refusal(
                "data.files", "[]", "names no file", f"paths or globs, for data.source={data.source}"
            )
        matching = _matching(data.files)
        if not any(path.stat().st_size for path in matching):
            raise refusal("data.files", data.files, "has no documents", "files with text")
        return [(str(i), path) for i, path in enumerate(matching)]
    folder = Path(data.source).expanduser()
    if folder.is_dir():
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        if not found:
            raise refusal("data.source", data.source, "is an empty folder", _ALLOWED)
        return [(path.relative_to(folder).as_posix(), path) for path in found]
    _check_hub_name(data.source)
    return []


def open_stream(data: schema.Data) -> Any:
    """The documents as a `datasets.IterableDataset` with `data.text_column`; nothing is held in memory.

    Raises:
        BadInputError: it cannot be read, has no such split or column, or is empty.
    """
    try:
        splits = _load(data)
    except Exception as error:  # every builder and the hub have errors of their own
        raise _unreadable(data, error) from error
    if data.split not in splits:
        raise refusal(
            "data.split", data.split, "does not exist", ", ".join(map(str, splits)), map(str, splits)
        )
    stream = splits[data.split]
    try:
        first = next(iter(stream), None)
    except Exception as error:  # as above: files are opened by the first row
        raise _unreadable(data, error) from error
    if first is None:
        raise refusal("data.source", data.source, f"has no documents{_of(data)}", "a source with text")
    if data.text_column not in first:
        columns = list(first)
        raise refusal("data.text_column", data.text_column, "is no column", ", ".join(columns), columns)
    _check_text(data, first[data.text_column])
    return stream.select_columns([data.text_column])


def documents(data: schema.Data, stream: Any) -> Iterator[str]:
    """Every document with text in it, up to `data.max_bytes` in whole documents but never none.

    Raises:
        BadInputError: a file is broken, or the column holds something else than text.
    """
    read = 0
    for text in _texts(data, stream):
        _check_text(data, text)
        if not text:
            continue
        size = len(text.encode())
        if read and data.max_bytes and read + size > data.max_bytes:
            return
        read += size
        yield text


def _check_text(data: schema.Data, value: Any) -> None:
    if value is not None and not isinstance(value, str):
        raise refusal(
            "data.text_column", data.text_column, f"holds {type(value).__name__}", "a column of text"
        )


def _texts(data: schema.Data, stream: Any) -> Iterator[Any]:
    try:
        for rows in stream.iter(batch_size=256):
            yield from rows[data.text_column]
    except Exception as error:  # as above
        raise _unreadable(data, error) from error


def _load(data: schema.Data) -> Any:
    """Splits by name."""
    import datasets
    import datasets.config

    if data.source == STDLIB:
        rows = datasets.IterableDataset.from_generator(_stdlib_rows, gen_kwargs={"column": data.text_column})
        return {"train": rows}
    if data.source in BUILDERS:
        paths = [glob.escape(str(path)) for path in _matching(data.files)]
        return datasets.load_dataset(data.source, data_files=paths, streaming=True)
    folder = Path(data.source).expanduser()
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        saved = datasets.load_from_disk(str(folder))
        whole = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
        return {name: split.to_iterable_dataset() for name, split in whole.items()}
    # online only what is used is fetched; offline what the hub's own cache holds
    streaming = folder.is_dir() or not datasets.config.HF_HUB_OFFLINE
    loaded: Any = datasets.load_dataset(
        str(folder) if folder.is_dir() else data.source,
        data.config_name,
        data_files=data.files or None,
        streaming=streaming,
    )
    return loaded if streaming else {name: split.to_iterable_dataset() for name, split in loaded.items()}


def _stdlib_rows(column: str) -> Iterator[dict[str, str]]:
    for _, path in _stdlib_files():
        with tokenize.open(path) as file:  # by the encoding that the file declares
            yield {column: file.read()}


def _stdlib_files() -> list[tuple[str, Path]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _NOT_SOURCE and not name.startswith(_GENERATED)]
        found += [
            Path(folder, name) for name in names if name.endswith(".py") and not name.startswith(_GENERATED)
        ]
    return sorted((path.relative_to(root).as_posix(), path) for path in found)


def _matching(patterns: list[str]) -> list[Path]:
    """Files by paths and globs: in the order of the patterns, sorted within one, each once."""
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        matches = [path] if path.exists() else [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
        files = [match.resolve() for match in matches if match.is_file()]
        if not files:
            problem = "is a folder" if path.is_dir() else "matches no file"
            allowed = (
                f"files, such as {path}/*.txt" if path.is_dir() else "paths or globs of files that exist"
            )
            raise refusal("data.files", pattern, problem, allowed, neighbours(path))
        found.update(dict.fromkeys(files))
    return list(found)


def _check_hub_name(source: str) -> None:
    import difflib

    names = [STDLIB, *BUILDERS]
    if source.startswith(("/", "./", "../", "~")):
        known = neighbours(Path(source).expanduser())
        raise refusal("data.source", source, "is no folder", _ALLOWED, known)
    if "/" not in source and difflib.get_close_matches(source, names, n=1, cutoff=0.7):
        raise refusal("data.source", source, "is not known", _ALLOWED, names)


def _of(data: schema.Data) -> str:
    return f" in data.files={data.files}" if data.files else ""


def _unreadable(data: schema.Data, error: Exception) -> Exception:
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    return refusal("data.source", data.source, f"cannot be read{_of(data)} ({reason})", _ALLOWED)
