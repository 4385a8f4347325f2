"""Small generated text, and data configurations that read it."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ablate import data, schema
from ablate.home import Home

PLAIN = ("def", "return", "self", "näive", "東京", "🙂", "κόσμε", "token\tblock\r\n", "", "\u00a0", "x=1")
WORDS = (*PLAIN, "<|endoftext|>", "[SEP]")


def texts(count: int = 60, seed: int = 0, words: Sequence[str] = WORDS) -> list[str]:
    """Different documents of different lengths with everything that tokenizers trip over."""
    rng = random.Random(seed)
    return [" ".join(rng.choices(words, k=rng.randint(1, 60))) + f" {i}" for i in range(count)]


def write_json(folder: Path, documents: list[str]) -> Path:
    """A JSON Lines file with a column `text` and a column of numbers."""
    path = folder / "documents.jsonl"
    path.write_text("".join(json.dumps({"text": text, "n": i}) + "\n" for i, text in enumerate(documents)))
    return path


def settings(path: Path, **changes: Any) -> schema.Data:
    """Data that reads `path` byte by byte, a fifth of it held out, with `changes`."""
    values: dict[str, Any] = {
        "source": "json",
        "files": [str(path)],
        "tokenizer": "bytes",
        "val_fraction": 0.2,
    }
    return schema.Data(name="generated", **(values | changes))


def corpus(folder: Path, **changes: Any) -> data.Corpus:
    """A prepared corpus of generated text below `folder`."""
    folder.mkdir(exist_ok=True)
    return data.prepare(settings(write_json(folder, texts()), **changes), Home(folder / "home"))


def split(corpus: data.Corpus) -> tuple[list[str], list[str]]:
    """Training and held-out documents, decoded from what is on disk."""
    import numpy as np

    sides = []
    for tokens in (corpus.train, corpus.val):
        ends = np.flatnonzero(tokens == corpus.facts["end_id"])
        assert ends[-1] == len(tokens) - 1
        starts = [0, *(ends[:-1] + 1)]
        sides.append([corpus.decode(tokens[a:b]) for a, b in zip(starts, ends, strict=True)])
    return sides[0], sides[1]
