"""Diagnostics of a model on a fixed probe batch, and of one step of its optimizer."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from ablate import schema
from ablate.data import Validation
from ablate.evaluation import inference
from ablate.model import LanguageModel
from components.spec import LEFT_OUT
from components.watching import watching

_CLOSE = 0.01
"""Nats within which a shorter context is as good as the whole one (methodology §E)."""

_ENDS = 16
"""A context's worth is measured on the last sixteenth of the sequences."""

Weights = dict[str, Tensor]


def watched_rows(trainer: schema.Trainer, rows: int) -> int:
    """Sequences of the probe batch, of `rows` held-out ones that there are; 0 where nothing is watched."""
    if trainer.watch_tokens == 0:
        return 0
    return min(rows, max(1, trainer.watch_tokens // trainer.seq_len))


def is_due(trainer: schema.Trainer, evaluation: int, evaluations: int) -> bool:
    """Whether the probe follows that evaluation, counted from 1. It does the last one, whatever the interval."""
    if trainer.watch_tokens == 0:
        return False
    return evaluation == evaluations or evaluation % trainer.watch_every == 0


def watched_tokens(trainer: schema.Trainer, rows: int, evaluations: int) -> int:
    """Tokens of all forward passes that a trial's diagnostics take, at most.

    Args:
        rows: held-out sequences that there are.
        evaluations: of the trial.
    """
    times = sum(is_due(trainer, i, evaluations) for i in range(1, evaluations + 1))
    once = watched_rows(trainer, rows)
    shorter = sum(_lengths(trainer.seq_len)) if times else 0
    return once * (times * trainer.seq_len + shorter)


def diagnose(
    model: LanguageModel,
    held: Validation,
    rows: int,
    context: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[str, float]:
    """Every `diag/…` that components return on the first `rows` held-out sequences, all in one forward pass.

    The model is left as it was: parameters, buffers, mode and random numbers.

    Args:
        context: entered around the forward pass, for mixed precision.
    """
    inputs, labels, documents = _batch(model, held, rows)
    with inference(model), context(), watching(model):
        aux = model(inputs, labels, documents if held.separate else None).aux
    found = {key: float(value) for key, value in aux.items() if key.startswith("diag/")}
    return {key: value for key, value in found.items() if math.isfinite(value)}


def effective_context(
    model: LanguageModel,
    held: Validation,
    rows: int,
    context: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> dict[str, float]:
    """`diag/effective_context`: tokens of context with which the ends of the probe's sequences are predicted within
    0.01 nats of what all of it gives, by halving it; takes as many tokens again as the probe."""
    inputs, labels, documents = _batch(model, held, rows)
    length = inputs.shape[1]
    ends = max(1, length // _ENDS)

    def loss(tokens: int) -> float:
        part = slice(length - tokens, None)
        with context():
            logits = model(inputs[:, part], None, documents[:, part] if held.separate else None).logits
        last = logits[:, -ends:].float().flatten(0, 1)
        return float(
            torch.nn.functional.cross_entropy(last, labels[:, -ends:].flatten(), ignore_index=LEFT_OUT)
        )

    with inference(model):
        whole, needed = loss(length), length
        for tokens in _lengths(length)[1:]:
            if loss(tokens) - whole > _CLOSE:
                break
            needed = tokens
    return {"diag/effective_context": float(needed)}


def _lengths(seq_len: int) -> list[int]:
    """Contexts to compare: the whole one, and its halves as long as they hold the end that is predicted."""
    lengths = [seq_len]
    while lengths[-1] // 2 > max(1, seq_len // _ENDS):
        lengths.append(lengths[-1] // 2)
    return lengths


def weights(model: LanguageModel) -> Weights:
    """A copy of all parameters, to be compared with those after a step."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@torch.no_grad()
def update_ratios(model: LanguageModel, before: Mapping[str, Tensor]) -> dict[str, float]:
    """`diag/…/update_ratio` of each part of a layer: RMS(ΔW) / RMS(W) of a step since `before`."""
    squares: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        old = before[name].float()
        change = (parameter.detach().float() - old).square().sum()
        moved, size = squares.setdefault(_part(name), [torch.zeros_like(change), torch.zeros_like(change)])
        moved += change
        size += old.square().sum()
    ratios = {part: float((moved / size).sqrt()) for part, (moved, size) in squares.items()}
    return {f"diag/{part}/update_ratio": ratio for part, ratio in ratios.items() if math.isfinite(ratio)}


def _part(name: str) -> str:
    """`layers.3.ffn.router.weight` belongs to `layers.3/ffn`, as diagnostics of that module do."""
    pieces = name.split(".")
    if pieces[0] == "layers":
        return f"layers.{pieces[1]}/{pieces[2]}"
    return f"mtp/{pieces[1]}" if pieces[0] == "mtp" else pieces[0]


def _batch(model: LanguageModel, held: Validation, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    device = model.head.device
    inputs, labels, documents = (x[:rows].to(device) for x in (held.inputs, held.labels, held.documents))
    return inputs, labels, documents
