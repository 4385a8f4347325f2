"""Optimizers from their configuration, and the learning rate as a function of compute progress."""

import math
from typing import Any, cast

import torch
from torch import nn

from ablate.model import shape_of
from ablate.schema import Optimizer
from ablate.variant import Variant
from components import native, registry, slots
from components.native.gradients import clip_norm


def build(model: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """The optimizer that the settings name.

    Every group carries its peak rate as `peak_lr`; `set_rate` derives the current one from it.
    """
    cls, config = _component(settings)
    optimizer = cls.build(config, model, settings.lr)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    # A fused step could undo the scaling of half-precision gradients itself. But clipping comes after that,
    # and before the step, so it is left to the scaler, for all optimizers alike.
    optimizer._step_supports_amp_scaling = False  # pyright: ignore[reportAttributeAccessIssue]
    return optimizer


def flops_per_step(settings: Optimizer, variant: Variant) -> int:
    """FLOPs of the optimizer's own matrix products in one step; allocates nothing."""
    cls, config = _component(settings)
    return cls.flops_per_step(config, shape_of(variant))


def _component(settings: Optimizer) -> tuple[type[slots.Optimizer], Any]:
    entry = registry.get("optimizer", settings.name)
    return cast(type[slots.Optimizer], entry.cls), entry.config(settings.args)


def clip(optimizer: torch.optim.Optimizer, limit: float) -> None:
    """Scale all gradients so that the norm of all together is at most `limit`."""
    found = (p.grad for group in optimizer.param_groups for p in group["params"])
    gradients = [grad for grad in found if grad is not None]
    if native.takes(*gradients) and all(grad.is_contiguous() for grad in gradients):
        clip_norm(gradients, limit)
    else:
        norm = nn.utils.get_total_norm(gradients)
        nn.utils.clip_grads_with_norm_([p for g in optimizer.param_groups for p in g["params"]], limit, norm)


def rate(progress: float, settings: Optimizer) -> float:
    """Share of the peak learning rate at a share of the allowance: linear rise, constant, `1 - sqrt` to zero.

    Args:
        progress: useful compute over allowance, in [0, 1].

    Source: Hägele et al. 2024, arXiv 2405.18392 (cooldown form); methodology §A5.
    """
    rise = min(1.0, progress / settings.warmup) if settings.warmup else 1.0
    start = 1.0 - settings.decay
    fall = 1.0 - math.sqrt((progress - start) / settings.decay) if decays(progress, settings) else 1.0
    return rise * fall


def decays(progress: float, settings: Optimizer) -> bool:
    """Whether the rate has begun to fall."""
    return progress > 1.0 - settings.decay


def set_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    """Set every group to that share of its peak."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share


def state_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """An optimizer's state as named tensors, and the numbers that it counts, of parameters and of groups."""
    tensors, rest = {}, {}
    for index, entries in optimizer.state_dict()["state"].items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}/{key}"] = value
            else:
                rest[f"{index}/{key}"] = value
    for index, group in enumerate(optimizer.param_groups):
        rest |= {f"group/{index}/{key}": v for key, v in group.items() if isinstance(v, int | float)}
    return tensors, rest


def load_state(
    optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], rest: dict[str, Any]
) -> None:
    """Inverse of `state_tensors`, into an optimizer that was built the same way."""
    state: dict[int, dict[str, Any]] = {}
    groups = optimizer.state_dict()["param_groups"]
    for name, value in {**tensors, **rest}.items():
        index, _, key = name.partition("/")
        if index == "group":
            index, _, key = key.partition("/")
            groups[int(index)][key] = value
        else:
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({"state": state, "param_groups": groups})
