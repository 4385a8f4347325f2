"""Optimizers from their configuration, and the learning rate as a function of compute progress."""

import math
from typing import Any

import torch
from torch import nn

from ablate.schema import Optimizer


def build(model: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """AdamW; weight decay acts on matrices alone, not on norms, biases, sinks and gates.

    Every group carries its peak rate as `peak_lr`; `set_rate` derives the current one from it.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [{**group, "peak_lr": settings.lr} for group in groups if group["params"]],
        lr=settings.lr,
        betas=(settings.betas[0], settings.betas[1]),
        eps=settings.eps,
        fused=True,
    )


def rate(progress: float, settings: Optimizer) -> float:
    """Share of the peak learning rate at a share of the allowance: linear rise, constant, `1 - sqrt` to zero.

    Args:
        progress: useful compute over allowance, in [0, 1].

    Source: Hägele et al. 2024, arXiv 2405.18392 (cooldown form); methodology §A5.
    """
    rise = min(1.0, progress / settings.warmup) if settings.warmup else 1.0
    start = 1.0 - settings.decay
    fall = 1.0 - math.sqrt((progress - start) / settings.decay) if progress > start else 1.0
    return rise * fall


def set_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set every group to that share of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share


def state_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors, and what is no tensor."""
    tensors, rest = {}, {}
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}/{key}"] = value
            else:
                rest[f"{index}/{key}"] = value
    return tensors, rest


def load_state(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], rest: dict[str, Any]
) -> None:
    """Inverse of `state_tensors`, into an optimizer that was built the same way."""
    state: dict[int, dict[str, Any]] = {}
    for name, value in {**tensors, **rest}.items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
