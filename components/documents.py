"""Packed documents: several in one sequence, each of which attention sees as a sequence of its own."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Mix = Callable[[Tensor, Tensor], tuple[Tensor, dict[str, Tensor]]]
"""An attention layer: tokens [n, l, d] and which of them are real [n, l], to outputs and auxiliary values."""


@dataclass(frozen=True, slots=True)
class Documents:
    """How to lay the documents of a batch side by side, for layers that mix tokens.

    Positions, windows, blocks, recurrences and whatever else a layer counts from the beginning of a sequence
    then begin with each document, without the layer knowing of documents. Documents of similar length go
    together, so that filling them up to equal length at most doubles the work.

    Attributes:
        groups: indices [n, l] into the flat batch of n documents. Shorter ones repeat their last token:
            what follows a document cannot reach it, because attention is causal.
        real: which of these are not repetitions.
        places: [b*s] where each token of the batch stands in the groups, laid one after another.
    """

    groups: tuple[Int[Tensor, "n l"], ...]
    real: tuple[Bool[Tensor, "n l"], ...]
    places: Int[Tensor, "m"]

    @classmethod
    def of(cls, doc_ids: Int[Tensor, "b s"]) -> "Documents":
        """Find the documents: runs of equal ids within a sequence.

        Raises:
            ValueError: ids decrease along a sequence, so that a document would be in two pieces.
        """
        before, after = doc_ids[:, :-1], doc_ids[:, 1:]
        if (after < before).any():
            raise ValueError("doc_ids decrease along a sequence. Allowed: ids that stay or increase")
        begins = torch.ones_like(doc_ids, dtype=torch.bool)
        begins[:, 1:] = after != before
        starts = begins.flatten().nonzero().flatten()
        ends = torch.cat((starts[1:], starts.new_tensor([doc_ids.numel()])))
        sizes = [(length - 1).bit_length() for length in (ends - starts).tolist()]
        groups, real = [], []
        for size in sorted(set(sizes)):
            chosen = starts.new_tensor([i for i, other in enumerate(sizes) if other == size])
            start, end = starts[chosen].unsqueeze(1), ends[chosen].unsqueeze(1)
            index = start + torch.arange(int((end - start).max()), device=starts.device)
            groups.append(index.minimum(end - 1))
            real.append(index < end)
        tokens = torch.cat([group.flatten() for group in groups])
        slots = torch.cat([mask.flatten() for mask in real]).nonzero().flatten()
        places = torch.empty_like(slots)
        places[tokens[slots]] = slots
        return cls(tuple(groups), tuple(real), places)

    def each(self, mix: Mix, x: Float[Tensor, "b s d"]) -> tuple[Float[Tensor, "b s d"], dict[str, Tensor]]:
        """Apply `mix` to every document; its auxiliary values are averaged with the numbers of tokens."""
        flat = x.flatten(0, 1)
        outputs: list[Tensor] = []
        found: dict[str, list[tuple[Tensor, Tensor]]] = {}
        for group, real in zip(self.groups, self.real, strict=True):
            y, aux = mix(flat[group], real)
            outputs.append(y.flatten(0, 1))
            for key, value in aux.items():
                found.setdefault(key, []).append((value, real.sum()))
        y = torch.cat(outputs).index_select(0, self.places).view_as(x)
        return y, {
            key: (_known if key.startswith("diag/") else _weighted)(values) for key, values in found.items()
        }


def _weighted(values: list[tuple[Tensor, Tensor]]) -> Tensor:
    total = torch.stack([count for _, count in values]).sum()
    return torch.stack([value * count for value, count in values]).sum() / total


def _known(values: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The same over what is a number: a diagnostic may have nothing to say of short documents."""
    return _weighted(
        [(torch.where(value.isnan(), 0.0, value), count * ~value.isnan()) for value, count in values]
    )
