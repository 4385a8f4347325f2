"""Sequences of a capability probe in place of text: the same two views of it as of a corpus."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ablate import schema
from ablate.data.corpus import Batch, Validation
from ablate.data.refusal import refusal
from ablate.errors import BadInputError
from ablate.schema import PROBE

if TYPE_CHECKING:
    import torch

    from components.probing import Probe, Sequences
    from components.registry import Entry

CONTRACT = "1"
"""Rises when the same seed would give other sequences."""

HELD_OUT = 2**64 - 1
"""Seed of the held-out sequences, which no trial has."""

_COUNTED = 1024
"""Sequences by which frequencies of tokens are told."""


@dataclass(frozen=True)
class Generated:
    """An endless stream of sequences per seed, and held-out ones of a seed of their own."""

    name: str
    config: Any
    vocab_size: int
    fingerprint: str

    @classmethod
    def of(cls, data: schema.Data) -> "Generated":
        """The sequences that `data.source` and `data.args` describe.

        Raises:
            BadInputError: no such probe.
        """
        entry = _entry(data)
        return cls(entry.name, entry.config(data.args), data.vocab_size, fingerprint(data))

    @property
    def _probe(self) -> "type[Probe]":
        from components import registry
        from components.probing import Probe

        cls = registry.get("probe", self.name).cls
        assert issubclass(cls, Probe)
        return cls

    def batch(self, seed: int, step: int, batch_size: int, seq_len: int) -> Batch:
        """Row r of step t is sequence t * batch_size + r of the seed's stream, whatever the batch size."""
        made = self.sequences(seed, step * batch_size, batch_size, seq_len)
        inputs, labels, documents, _ = _tensors(made)
        return Batch(inputs, labels, documents)

    def sequences(self, seed: int, first: int, count: int, seq_len: int) -> "Sequences":
        """`count` sequences of a seed's stream from number `first` on."""
        from components.probing import Draws

        return self._probe.make(self.config, self.vocab_size, seq_len, Draws(seed, first, count))

    def validation(self, seq_len: int, tokens: int, separate: bool = False) -> Validation:
        """The first sequences of the held-out stream, of at most `tokens` tokens in all.

        Args:
            separate: changes nothing: a sequence is one document.

        Raises:
            BadInputError: `tokens` is less than one sequence.
        """
        count = tokens // seq_len
        if count < 1:
            raise refusal(
                "data.val_tokens",
                tokens,
                f"is less than one sequence of trainer.seq_len={seq_len}",
                f"at least {seq_len}",
            )
        made = self.sequences(HELD_OUT, 0, count, seq_len)
        inputs, labels, documents, distances = _tensors(made)
        return Validation(inputs, labels, documents, bytes=0, tokens=count * seq_len, distances=distances)

    def check(self, seq_len: int) -> None:
        """Refuse sizes that the task does not fit.

        Raises:
            BadInputError: names the key, the value and what is allowed.
        """
        try:
            self._probe.check(self.config, self.vocab_size, seq_len)
        except ValueError as error:
            raise BadInputError(f"data.source={PROBE}{self.name}: {error}.") from error

    def epochs(self, steps: int, batch_size: int, seq_len: int) -> float:
        """No sequence comes twice."""
        return 0.0

    def without_borders(self, inputs: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
        """The labels as they are: a sequence is one document."""
        return labels

    def token_counts(self, seq_len: int) -> "torch.Tensor":
        """How often each token id occurs in the first sequences: [vocab_size]."""
        import torch

        inputs = self.sequences(0, 0, _COUNTED, seq_len).inputs
        return torch.bincount(torch.from_numpy(inputs).flatten(), minlength=self.vocab_size)


def check(run: schema.Run) -> None:
    """Refuse what a probe cannot be trained with; text is not judged here.

    Raises:
        BadInputError: names the key, the value and what is allowed.
    """
    if not run.data.is_probe:
        return
    Generated.of(run.data).check(run.trainer.seq_len)
    for stretch in run.trainer.curriculum:
        if stretch.get("seq_len"):
            raise refusal(
                "trainer.curriculum",
                f"[{{seq_len: {stretch['seq_len']}}}]",
                f"would cut questions of data.source={run.data.source} off from their answers",
                "stretches without seq_len",
            )


def fingerprint(data: schema.Data) -> str:
    """Hash of everything that decides the sequences."""
    entry = _entry(data)
    parts = {
        "contract": CONTRACT,
        "source": data.source,
        "args": dataclasses.asdict(entry.config(data.args)),
        "vocab_size": data.vocab_size,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _entry(data: schema.Data) -> "Entry":
    from components import registry  # PyTorch with it, which planning text does without

    return registry.get("probe", data.source.removeprefix(PROBE))


def _tensors(made: "Sequences") -> "tuple[torch.Tensor, ...]":
    """Inputs, labels, document numbers and distances."""
    import torch

    inputs, labels, distances = map(torch.from_numpy, (made.inputs, made.labels, made.distances))
    return inputs, labels, torch.zeros_like(inputs), distances
