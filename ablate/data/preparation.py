"""Tokenising a corpus once, in batches, under a lock, into a folder that appears complete or not at all."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ablate import schema
from ablate.data import vocabulary
from ablate.data.corpus import SIDECAR, TOKENIZER, TRAIN, VAL, VAL_BYTES, Corpus
from ablate.data.generated import Generated
from ablate.data.identity import CONTRACT, fingerprint
from ablate.data.refusal import refusal
from ablate.data.sources import documents, open_stream
from ablate.home import Home

if TYPE_CHECKING:
    import numpy as np
    from tokenizers import Encoding, Tokenizer

_BATCH_CHARACTERS = 1 << 20
"""Text tokenised at once; bounds memory, changes nothing else."""


def prepare(data: schema.Data, home: Home) -> Corpus | Generated:
    """The corpus of `data`, tokenised on first use and mapped ever after; or a probe, which needs no preparation.

    Raises:
        BadInputError: text or tokenizer cannot be read (nothing is written then), or no document is held out.
    """
    if data.is_probe:
        return Generated.of(data)
    name = fingerprint(data)
    folder = home.tokens / name
    if not folder.is_dir():
        from filelock import FileLock

        stream = open_stream(data)
        vocabulary.vocab_size(data)
        home.create().tokens.mkdir(exist_ok=True)
        with FileLock(home.tokens / f"{name}.lock"):
            if not folder.is_dir():
                _build(data, stream, name, folder)
    return Corpus.load(folder)


def position(text: str) -> float:
    """Place of a document in [0, 1); those below `data.val_fraction` are held out.

    By its text alone: equal documents are on the same side, and none moves when others are added.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def _build(data: schema.Data, stream: Any, name: str, folder: Path) -> None:
    part = folder.with_name(f"{name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a process that died; the lock is ours
    part.mkdir()
    try:
        training = (t for t in documents(data, stream) if position(t) >= data.val_fraction)
        tokenizer = vocabulary.make(data, training)
        tokenizer.save(str(part / TOKENIZER))
        facts = _write(data, stream, tokenizer, part)
        sidecar = {"contract": CONTRACT, "fingerprint": name, **facts}
        (part / SIDECAR).write_text(json.dumps(sidecar, indent=2))
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)


@dataclass
class _Split:
    """One side of the split while it is written."""

    file: BinaryIO
    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    digest: Any = field(default_factory=hashlib.sha256)

    def add(self, ids: "np.ndarray", texts: list[str]) -> None:
        self.file.write(ids.tobytes())
        self.digest.update(ids.tobytes())
        self.documents += len(texts)
        self.tokens += len(ids)
        self.bytes += sum(len(text.encode()) for text in texts)

    def facts(self) -> dict[str, Any]:
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "sha256": self.digest.hexdigest(),
        }


def _write(data: schema.Data, stream: Any, tokenizer: "Tokenizer", part: Path) -> dict[str, Any]:
    """Tokens of both sides into `part`; what the sidecar says of them."""
    import numpy as np

    rows = vocabulary.vocab_size(data)
    dtype = np.dtype(np.uint16 if rows <= 1 << 16 else np.uint32)
    end = vocabulary.end_id(data, tokenizer)
    lengths = np.array(vocabulary.byte_lengths(tokenizer), dtype=np.uint32)
    nearest = 1.0
    with (
        (part / TRAIN).open("wb") as train,
        (part / VAL).open("wb") as val,
        (part / VAL_BYTES).open("wb") as sizes,
    ):
        splits = {False: _Split(train), True: _Split(val)}
        for texts in _batches(documents(data, stream)):
            positions = [position(text) for text in texts]
            nearest = min(nearest, *positions)
            for held, split in splits.items():
                chosen = [t for t, p in zip(texts, positions, strict=True) if (p < data.val_fraction) == held]
                if not chosen:
                    continue
                encode = tokenizer.encode_batch if held else tokenizer.encode_batch_fast
                encodings = encode(chosen, add_special_tokens=False)
                split.add(_joined(encodings, end, dtype), chosen)
                if held:
                    for text, encoding in zip(chosen, encodings, strict=True):
                        sizes.write(_token_bytes(text, encoding, lengths).tobytes())
    train, val = splits[False].facts(), splits[True].facts()
    if not val["documents"]:
        raise refusal(
            "data.val_fraction",
            data.val_fraction,
            f"holds out none of {train['documents']} documents",
            f"more documents, or more than {nearest:.4f}",
        )
    if not train["documents"]:
        raise refusal(
            "data.val_fraction",
            data.val_fraction,
            f"holds out all of {val['documents']} documents",
            "more documents",
        )
    return {
        "source": data.source,
        "tokenizer": data.tokenizer,
        "vocab_size": rows,
        "end_id": end,
        "dtype": dtype.name,
        "train": train,
        "val": val,
    }


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _joined(encodings: "list[Encoding]", end: int, dtype: "np.dtype[Any]") -> "np.ndarray":
    """Token ids of documents, each followed by the end token."""
    import numpy as np

    return np.concatenate([np.array([*encoding.ids, end], dtype=dtype) for encoding in encodings])


def _token_bytes(text: str, encoding: "Encoding", lengths: "np.ndarray") -> "np.ndarray":
    """UTF-8 bytes per token of a document and its end token; they add up to the document's.

    Byte-level tokens have as many as they stand for. Other tokenizers drop or rewrite characters: there a
    token has what lies between the end of the one before and its own, and the end token what is left.
    """
    import numpy as np

    total = len(text.encode())
    direct = np.append(lengths[encoding.ids], np.uint32(0)).astype(np.uint32)
    if int(direct.sum(dtype=np.int64)) == total:
        return direct
    code = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    before = np.concatenate([[0], np.cumsum(1 + (code >= 0x80) + (code >= 0x800) + (code >= 0x10000))])
    offsets = np.array([end for _, end in encoding.offsets], dtype=np.int64)
    ends = np.maximum.accumulate(np.concatenate([[0], before[offsets], [total]]))
    return np.diff(ends).astype(np.uint32)
