"""Which parameters weight decay acts on."""

from collections.abc import Sequence
from typing import Any

from torch import nn

DECAYED = ("matrices", "all")
"""`matrices`: tensors of two or more axes, embedding and head included. `all`: norms, biases, sinks and gates
too, as the DeepSeek-V4 report states its weight decay without exceptions."""


def check_decay(weight_decay: float, decayed: str) -> None:
    """Raise `ValueError` for a weight decay under which weights would grow, or an unknown choice of them."""
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay={weight_decay} must be at least 0")
    if decayed not in DECAYED:
        raise ValueError(f"decayed={decayed!r} is not one of {', '.join(DECAYED)}")


def decay_groups(
    parameters: Sequence[nn.Parameter], lr: float, weight_decay: float, decayed: str
) -> list[dict[str, Any]]:
    """The parameters as at most two groups of an optimizer: with weight decay, and without."""
    chosen = [p for p in parameters if decayed == "all" or p.ndim >= 2]
    others = [p for p in parameters if decayed == "matrices" and p.ndim < 2]
    groups = [
        {"params": chosen, "lr": lr, "weight_decay": weight_decay},
        {"params": others, "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
