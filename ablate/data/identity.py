"""The fingerprint: a hash of everything that decides the tokens, taken without making them."""

import hashlib
import json
from pathlib import Path

from ablate import schema
from ablate.data import generated
from ablate.data.sources import local_files
from ablate.data.vocabulary import BPE, TRAINING_BYTES, tokenizer_file

CONTRACT = "1"
"""Rises when the same text would become other tokens, another split, or another file layout."""


def fingerprint(data: schema.Data) -> str:
    """Hash of source text, tokenizer and split; of a data set of the hub, its name. Writes nothing.

    Raises:
        BadInputError: files or a tokenizer that are not there.
    """
    if data.is_probe:
        return generated.fingerprint(data)
    files = local_files(data)
    path = tokenizer_file(data)
    if path is not None:
        config = path.with_name("tokenizer_config.json")
        tokenizer = [_digest(path), _digest(config) if config.is_file() else None]
    else:
        tokenizer = [data.tokenizer, *([data.vocab_size, TRAINING_BYTES] if data.tokenizer == BPE else [])]
    parts = {
        "contract": CONTRACT,
        "source": data.source if not files or data.files else "files",
        "files": [[name, _digest(file)] for name, file in files] or data.files,
        "config_name": data.config_name,
        "split": data.split,
        "text_column": data.text_column,
        "tokenizer": tokenizer,
        "val_fraction": data.val_fraction,
        "max_bytes": data.max_bytes,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
