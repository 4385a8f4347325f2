"""Loss of a model on held-out text."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ablate.data import Validation
from ablate.data.corpus import LEFT_OUT
from ablate.model import LanguageModel

TOKENS_AT_ONCE = 4096
"""Tokens per forward pass; bounds memory, changes nothing else."""


@dataclass(frozen=True)
class Evaluation:
    """Loss in nats per token and bits per byte."""

    loss: float
    bpb: float


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
    for inputs, labels, documents in _batches(held, model.head.device):
        with context():
            out = model(inputs, labels, documents if held.separate else None)
        assert out.loss is not None
        total += out.loss.double().cpu() * int((labels != LEFT_OUT).sum())
    model.train(was_training)
    return Evaluation(
        loss=float(total) / held.counted,
        bpb=float(total) / math.log(2) / held.bytes,
    )


def _batches(held: Validation, device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    rows = max(1, TOKENS_AT_ONCE // held.inputs.shape[1])
    for start in range(0, len(held.inputs), rows):
        part = slice(start, start + rows)
        yield held.inputs[part].to(device), held.labels[part].to(device), held.documents[part].to(device)
