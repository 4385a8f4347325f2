"""Tokenizers: byte-level BPE trained on the corpus, plain bytes, or one that is there."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ablate import schema
from ablate.data.refusal import neighbours, refusal

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BPE, BYTES = "bpe", "bytes"

_SMALLEST_BPE = 257
"""All bytes, and the end of a document."""

END = "<|endoftext|>"
"""End-of-document token of tokenizers made here, and of those that have none."""

TRAINING_BYTES = 4_000_000
"""Text that a BPE is trained on at most: longer training changes the compression by little."""

_END_NAMES = (END, "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>", "[SEP]")
"""End tokens of published tokenizers, for a `tokenizer.json` without its `tokenizer_config.json`."""


def vocab_size(data: schema.Data) -> int:
    """Rows that an embedding needs for the tokenizer of `data`, end-of-document token included, or for a probe.

    Raises:
        BadInputError: no such tokenizer, or one that cannot be trained.
    """
    if data.is_probe:
        return data.vocab_size
    if data.tokenizer == BPE:
        if data.vocab_size < _SMALLEST_BPE:
            raise refusal(
                "data.vocab_size", data.vocab_size, "is too small for a BPE", f"at least {_SMALLEST_BPE}"
            )
        return data.vocab_size
    if data.tokenizer == BYTES:
        return 257
    tokenizer = existing(data)
    return max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1


def tokenizer_file(data: schema.Data) -> Path | None:
    """The `tokenizer.json` that is read, or None where one is made.

    Raises:
        BadInputError: no such file.
    """
    if data.tokenizer in (BPE, BYTES):
        return None
    path = Path(data.tokenizer).expanduser()
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        raise refusal(
            "data.tokenizer",
            data.tokenizer,
            "names no tokenizer",
            f"{BPE}, {BYTES}, or a folder or file with a tokenizer.json",
            [BPE, BYTES, *neighbours(Path(data.tokenizer).expanduser())],
        )
    return path


def existing(data: schema.Data) -> "Tokenizer":
    """The tokenizer that `data.tokenizer` points at, with an end-of-document token added where it has none.

    Raises:
        BadInputError: it is not there or no tokenizer.
    """
    from tokenizers import Tokenizer

    path = tokenizer_file(data)
    assert path is not None
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise refusal(
            "data.tokenizer", data.tokenizer, f"cannot be read ({error})", "a tokenizer.json of `tokenizers`"
        ) from error
    if _named_end(tokenizer, path) is None:
        tokenizer.add_special_tokens([END])
    return _plain(tokenizer)


def make(data: schema.Data, training: Iterator[str]) -> "Tokenizer":
    """The tokenizer of `data`; a BPE learns from the first `TRAINING_BYTES` of `training` alone."""
    if data.tokenizer == BPE:
        return _plain(_train(data.vocab_size, training))
    if data.tokenizer == BYTES:
        return _plain(_bytes())
    return existing(data)


def end_id(data: schema.Data, tokenizer: "Tokenizer") -> int:
    """Id of the token that ends every document."""
    path = tokenizer_file(data)
    name = END if path is None else _named_end(tokenizer, path) or END
    found = tokenizer.token_to_id(name)
    assert found is not None
    return found


def byte_lengths(tokenizer: "Tokenizer") -> list[int]:
    """Bytes per token id if tokens are strings of the byte-level alphabet; 0 for special tokens."""
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    lengths = [0] * (max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1)
    for token, i in tokenizer.get_vocab(with_added_tokens=True).items():
        lengths[i] = 0 if i in special else len(token)
    return lengths


def _train(size: int, training: Iterator[str]) -> "Tokenizer":
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first(training, TRAINING_BYTES), trainer)
    return tokenizer


def _first(texts: Iterator[str], size: int) -> Iterator[str]:
    for text in texts:
        yield text[:size]
        size -= len(text.encode())
        if size <= 0:
            return


def _bytes() -> "Tokenizer":
    """A BPE without merges whose ids are the byte values, and 256 for the end of a document."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab=_alphabet(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    return tokenizer


def _alphabet() -> dict[str, int]:
    """The byte-level alphabet: printable Latin-1 stands for itself, the other bytes for U+0100 and up."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _plain(tokenizer: "Tokenizer") -> "Tokenizer":
    """Documents are text: nothing in them is a control token, nothing is cut, nothing is added."""
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _named_end(tokenizer: "Tokenizer", path: Path) -> str | None:
    """The end token by `tokenizer_config.json`, else by a usual name."""
    beside = path.with_name("tokenizer_config.json")
    names = list(_END_NAMES)
    if beside.is_file():
        eos = json.loads(beside.read_text()).get("eos_token")
        names.insert(0, eos["content"] if isinstance(eos, dict) else eos or END)
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    return next((name for name in names if name in special), None)
