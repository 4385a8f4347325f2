"""A tokenised corpus on disk, and its two views: the training stream of a replicate, and held-out blocks."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ablate.data.refusal import refusal
from components.spec import LEFT_OUT

if TYPE_CHECKING:
    import numpy as np
    import torch

SIDECAR, TOKENIZER, TRAIN, VAL, VAL_BYTES = (
    "corpus.json",
    "tokenizer.json",
    "train.bin",
    "val.bin",
    "val_bytes.bin",
)


@dataclass(frozen=True)
class Batch:
    """Token ids [b, s]. `documents` numbers, from 0 in each row, the document that a position belongs to."""

    inputs: "torch.Tensor"
    labels: "torch.Tensor"
    documents: "torch.Tensor"

    def cut(self, seq_len: int) -> "Batch":
        """The same tokens in the same order, in rows of `seq_len`, which divides that of the present ones."""
        inputs, labels, documents = (
            part.reshape(-1, seq_len) for part in (self.inputs, self.labels, self.documents)
        )
        return Batch(inputs, labels, documents - documents[:, :1])


@dataclass(frozen=True)
class Validation:
    """Held-out blocks [n, s].

    Attributes:
        bytes: the UTF-8 text of all labels that count; an end token has none, and sequences of probes neither.
        tokens: read by an evaluation, all of them.
        separate: whether documents are to see nothing of each other, and what follows their ends is left out.
        distances: of a probe, how far back each answer stands [n, s], 0 where it does not. None of text, whose
            labels are no right answers that accuracy would say something on.
    """

    inputs: "torch.Tensor"
    labels: "torch.Tensor"
    documents: "torch.Tensor"
    bytes: int
    tokens: int
    separate: bool = False
    distances: "torch.Tensor | None" = None

    @property
    def counted(self) -> int:
        """Number of labels that count."""
        return int((self.labels != LEFT_OUT).sum())


@dataclass(frozen=True)
class Corpus:
    """Tokens of the training and the held-out documents, each document followed by an end token.

    Attributes:
        bytes_per_token: of the held-out text, end tokens counted.
        facts: the whole sidecar.
    """

    folder: Path
    fingerprint: str
    vocab_size: int
    train_tokens: int
    val_tokens: int
    bytes_per_token: float
    facts: dict[str, Any]

    @classmethod
    def load(cls, folder: Path) -> "Corpus":
        """The corpus that `prepare` left in `folder`."""
        facts = json.loads((folder / SIDECAR).read_text())
        train, val = facts["train"], facts["val"]
        return cls(
            folder,
            facts["fingerprint"],
            facts["vocab_size"],
            train["tokens"],
            val["tokens"],
            val["bytes"] / val["tokens"],
            facts,
        )

    @property
    def tokenizer_path(self) -> Path:
        """Its `tokenizer.json`."""
        return self.folder / TOKENIZER

    def batch(self, seed: int, step: int, batch_size: int, seq_len: int) -> Batch:
        """Row r of step t is sequence t * batch_size + r of the seed's stream, whatever the batch size.

        The stream goes through all blocks in a random order, then again with other borders in another order.
        Every label of an epoch is another token of the text.

        Raises:
            BadInputError: the training text is shorter than one block.
        """
        import numpy as np

        blocks = self._blocks(seq_len)
        first = step * batch_size
        starts = np.empty(batch_size, dtype=np.int64)
        for row in range(batch_size):
            epoch, i = divmod(first + row, blocks)
            phase, order = _order(seed, epoch, blocks, min(seq_len, self.train_tokens - blocks * seq_len))
            starts[row] = phase + order[i] * seq_len
        return Batch(*self._cut(self.train, starts, seq_len))

    def epochs(self, steps: int, batch_size: int, seq_len: int) -> float:
        """How often such a training goes through the training text."""
        return steps * batch_size / self._blocks(seq_len)

    def without_borders(self, inputs: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
        """Labels, of which those that follow an end token are left out: they begin another document."""
        return labels.masked_fill(inputs == self.facts["end_id"], LEFT_OUT)

    def validation(self, seq_len: int, tokens: int, separate: bool = False) -> Validation:
        """Fixed blocks of at most `tokens` tokens in all, evenly spread over the held-out text.

        Args:
            separate: leave out what follows an end token.

        Raises:
            BadInputError: the held-out text, or `tokens`, is shorter than one block.
        """
        import numpy as np

        there = (self.val_tokens - 1) // seq_len
        if there < 1:
            raise self._too_short("held-out", self.val_tokens, seq_len)
        count = min(there, tokens // seq_len)
        if count < 1:
            raise refusal(
                "data.val_tokens",
                tokens,
                f"is less than one block of trainer.seq_len={seq_len}",
                f"at least {seq_len}",
            )
        starts = np.arange(count) * there // count * seq_len
        inputs, labels, documents = self._cut(self.val, starts, seq_len)
        labels = self.without_borders(inputs, labels) if separate else labels
        places = starts[:, None] + np.arange(1, seq_len + 1)
        size = self._val_bytes[places].sum(where=(labels != LEFT_OUT).numpy(), dtype=np.int64)
        return Validation(inputs, labels, documents, int(size), count * seq_len, separate)

    def token_counts(self, seq_len: int) -> "torch.Tensor":
        """How often each token id occurs in the training text, whatever the length of its pieces: [vocab_size]."""
        import numpy as np
        import torch

        counts = np.zeros(self.vocab_size, dtype=np.int64)
        piece = 1 << 24  # tokens at a time, because counting widens them to 64 bits
        for start in range(0, len(self.train), piece):
            counts += np.bincount(self.train[start : start + piece], minlength=self.vocab_size)
        return torch.from_numpy(counts)

    def decode(self, tokens: "np.ndarray | torch.Tensor") -> str:
        """Text of token ids; end tokens are written out."""
        from tokenizers import Tokenizer

        return Tokenizer.from_file(str(self.tokenizer_path)).decode(
            tokens.tolist(), skip_special_tokens=False
        )

    def _blocks(self, seq_len: int) -> int:
        """Blocks of an epoch: one less than fit, so that their borders can move by up to a block."""
        if self.train_tokens <= seq_len:
            raise self._too_short("training", self.train_tokens, seq_len)
        return max(1, self.train_tokens // seq_len - 1)

    def _too_short(self, which: str, tokens: int, seq_len: int) -> Exception:
        return refusal(
            "trainer.seq_len",
            seq_len,
            f"needs a block of {seq_len + 1} tokens, but the {which} text of data.source="
            f"{self.facts['source']} has {tokens} (training {self.train_tokens}, held-out {self.val_tokens})",
            f"at most {tokens - 1} with this text",
        )

    def _cut(self, tokens: "np.ndarray", starts: "np.ndarray", seq_len: int) -> "tuple[torch.Tensor, ...]":
        """Inputs, labels and document numbers of the blocks at `starts`."""
        import numpy as np
        import torch

        rows = tokens[starts[:, None] + np.arange(seq_len + 1)].astype(np.int64)
        ends = rows[:, : seq_len - 1] == self.facts["end_id"]
        documents = np.zeros((len(rows), seq_len), dtype=np.int64)
        np.cumsum(ends, axis=1, out=documents[:, 1:])
        inputs, labels = (
            torch.from_numpy(np.ascontiguousarray(part)) for part in (rows[:, :-1], rows[:, 1:])
        )
        return inputs, labels, torch.from_numpy(documents)

    @functools.cached_property
    def train(self) -> "np.ndarray":
        """Token ids of the training documents, mapped."""
        return self._map(TRAIN, self.facts["dtype"])

    @functools.cached_property
    def val(self) -> "np.ndarray":
        """Token ids of the held-out documents, mapped."""
        return self._map(VAL, self.facts["dtype"])

    @functools.cached_property
    def _val_bytes(self) -> "np.ndarray":
        return self._map(VAL_BYTES, "uint32")

    def _map(self, name: str, dtype: str) -> "np.ndarray":
        import numpy as np

        return np.memmap(self.folder / name, dtype=dtype, mode="r")


@functools.lru_cache(maxsize=4)
def _order(seed: int, epoch: int, blocks: int, phases: int) -> "tuple[int, np.ndarray]":
    """First border below `phases`, and order of the blocks.

    Sorted raw Philox words, because NumPy keeps these the same from version to version, not its permutations.
    """
    import numpy as np

    words = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(blocks + 1)
    return int(words[0] % phases), np.argsort(words[1:], kind="stable")
