"""Held-out loss of a model, its accuracy on a probe, and the diagnostics that its components return on the way."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ablate.data import Validation
from ablate.data.corpus import LEFT_OUT
from ablate.model import LanguageModel
from ablate.scores import ACCURACY

TOKENS_AT_ONCE = 4096
"""Tokens per forward pass; bounds memory, changes nothing else."""


@dataclass(frozen=True)
class Evaluation:
    """Loss in nats per label and, of text, in bits per byte.

    Attributes:
        metrics: the mean of every `diag/…` scalar over the text; of a probe the share of right answers.
    """

    loss: float
    bpb: float | None
    metrics: dict[str, float]


def bits_per_byte(nats: float, held: Validation) -> float | None:
    """A sum of losses over all labels in bits per byte of their text, or None where they stand for none."""
    return nats / math.log(2) / held.bytes if held.bytes else None


@torch.no_grad()
def evaluate(
    model: LanguageModel,
    held: Validation,
    context: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Evaluation:
    """Evaluate in inference mode; the model is back in its former mode afterwards.

    Args:
        context: entered around every forward pass, for mixed precision.
    """
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64)
    sums: dict[str, Tensor] = {}
    rows = right = 0
    for inputs, labels, documents in _batches(held, model.head.device):
        with context():
            out = model(inputs, labels, documents if held.separate else None)
        assert out.loss is not None
        total += out.loss.double().cpu() * int((labels != LEFT_OUT).sum())
        if held.scored:
            right += int((out.logits.argmax(-1) == labels).sum())
        for key, value in out.aux.items():
            if key.startswith("diag/"):
                sums[key] = sums.get(key, torch.zeros(())) + value.detach().float().cpu() * len(inputs)
        rows += len(inputs)
    model.train(was_training)
    return Evaluation(
        loss=float(total) / held.counted,
        bpb=bits_per_byte(float(total), held),
        metrics={
            **({ACCURACY: right / held.counted} if held.scored else {}),
            **{key: float(value) / rows for key, value in sums.items()},
        },
    )


def _batches(held: Validation, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    rows = max(1, TOKENS_AT_ONCE // held.inputs.shape[1])
    for start in range(0, len(held.inputs), rows):
        part = slice(start, start + rows)
        yield held.inputs[part].to(device), held.labels[part].to(device), held.documents[part].to(device)
