"""Checkpoints from one format to another: `ablate export` and `ablate import`."""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ablate import generate
from ablate.errors import BadInputError
from ablate.home import Home

if TYPE_CHECKING:
    from ablate.interop.layout import Place

SHARD_GB = 5.0
"""Size of one file of weights at most, in 10^9 bytes."""


def export(
    trained: str, form: str, to: Path, home: Home, dtype: str = "stored", shard_gb: float = SHARD_GB
) -> list[Path]:
    """Write weights, configuration and tokenizer of a checkpoint, or of a study's best trial, into `to`.

    Weights go through memory one file at a time. Prediction layers that are none of DeepSeek-V4's stay behind
    in format `hf`, whose reader has none.

    Args:
        trained: folder of a trial or of a checkpoint in any of the formats, or a study.

    Returns:
        The files.

    Raises:
        BadInputError: nothing to export, no such format, a component that the format cannot express, or a
            folder that already holds something.
    """
    from ablate.interop import tokens, writing
    from ablate.interop.folders import Folder

    writing.check(form, dtype)
    with new_folder(to) as part:
        folder = generate.find(trained, home)
        source = Folder(folder, further=form != "hf" or Folder.predicts(folder))
        corpus = None
        if not (folder / tokens.TOKENIZER).is_file() and source.run.data.name != "???":
            corpus = generate.corpus_of(folder, source.run, home)
        ends = tokens.ends_in(corpus) if corpus else tokens.ends_of(folder)
        writing.write(source, source.run, part, form, dtype, limit(shard_gb), ends, watched)
        if corpus:
            dims = source.variant.dims
            tokens.of_corpus(corpus, part, dims.vocab_size, dims.max_position_embeddings)
        else:
            tokens.copy(folder, part, ends)
    return sorted(to.iterdir())


def limit(shard_gb: float) -> int:
    """Bytes of a file at most.

    Raises:
        BadInputError: nothing fits in.
    """
    if not 0 < shard_gb < float("inf"):
        raise BadInputError(f"shard-gb={shard_gb} is not allowed. Allowed: a positive number of 10^9 bytes.")
    return max(1, int(shard_gb * 1e9))


@contextmanager
def new_folder(to: Path) -> Iterator[Path]:
    """A folder to write to that becomes `to` when all went well, and else is gone.

    Raises:
        BadInputError: `to` already holds something.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise BadInputError(f"out={to} already holds something. Name a new or an empty folder.")
    part = to.with_name(f".{to.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
        if to.exists():
            to.rmdir()
        part.rename(to)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def watched(places: "Iterable[Place]", count: int) -> "Iterator[Place]":
    """Go through tensors with a progress bar on the terminal's error output."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(
        places, "weights", total=count, console=console, transient=True, disable=not console.is_terminal
    )
