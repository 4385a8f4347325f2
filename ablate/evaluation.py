"""Held-out loss of a model, and its accuracy on a probe."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from ablate.data import Validation
from ablate.model import LanguageModel
from ablate.scores import ACCURACY
from components.spec import LEFT_OUT

TOKENS_AT_ONCE = 4096
"""Tokens per forward pass; bounds memory, changes nothing else."""


@dataclass(frozen=True)
class Evaluation:
    """Loss in nats per label and, of text, in bits per byte.

    Attributes:
        metrics: of a probe, `accuracies`.
    """

    loss: float
    bpb: float | None
    metrics: dict[str, float]


def bits_per_byte(nats: float, held: Validation) -> float | None:
    """A sum of losses over all labels in bits per byte of their text, or None where they stand for none."""
    return nats / math.log(2) / held.bytes if held.bytes else None


def accuracies(answers: Int[Tensor, "n s"], held: Validation) -> dict[str, float]:
    """Share of right answers: of all, and by distance in steps of two, up to 1, 2, 4, … tokens back."""
    assert held.distances is not None
    right, asked = answers == held.labels, held.labels != LEFT_OUT
    found = {ACCURACY: float(right[asked].double().mean())}
    far = held.distances[asked & (held.distances > 0)].double().log2().ceil().long()
    hits = right[asked & (held.distances > 0)].double()
    for power in far.unique().tolist():
        found[f"{ACCURACY}/{2**power}"] = float(hits[far == power].mean())
    return found


@contextmanager
def inference(model: LanguageModel) -> Iterator[None]:
    """Inference mode without gradients; the model is back in its former mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def evaluate(
    model: LanguageModel,
    held: Validation,
    context: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Evaluation:
    """Evaluate in inference mode.

    Args:
        context: entered around every forward pass, for mixed precision.
    """
    total = torch.zeros((), dtype=torch.float64)
    answers: list[Tensor] = []
    with inference(model):
        for inputs, labels, documents in _batches(held, model.head.device):
            with context():
                out = model(inputs, labels, documents if held.separate else None)
            assert out.loss is not None
            total += out.loss.double().cpu() * int((labels != LEFT_OUT).sum())
            if held.distances is not None:
                answers.append(out.logits.argmax(-1).cpu())
    return Evaluation(
        loss=float(total) / held.counted,
        bpb=bits_per_byte(float(total), held),
        metrics=accuracies(torch.cat(answers), held) if answers else {},
    )


def _batches(held: Validation, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    rows = max(1, TOKENS_AT_ONCE // held.inputs.shape[1])
    for start in range(0, len(held.inputs), rows):
        part = slice(start, start + rows)
        yield held.inputs[part].to(device), held.labels[part].to(device), held.documents[part].to(device)
