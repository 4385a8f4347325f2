"""What a corpus is, in facts that a person or a program can check."""

from typing import Any

from ablate import schema
from ablate.data.preparation import prepare
from ablate.home import Home

_SAMPLE_TOKENS = 64


def describe(data: schema.Data, home: Home) -> dict[str, Any]:
    """Sizes, compression, fingerprint and the first words of the held-out text; tokenises on first use.

    Raises:
        BadInputError: the data cannot be prepared.
    """
    corpus = prepare(data, home)
    held = corpus.validation(min(_SAMPLE_TOKENS, corpus.val_tokens - 1), data.val_tokens)
    return {
        "name": data.name,
        **corpus.facts,
        "bytes_per_token": corpus.bytes_per_token,
        "folder": str(corpus.folder),
        "sample": corpus.decode(held.inputs[0]),
    }
