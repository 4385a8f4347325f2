"""AdamW."""

from dataclasses import dataclass

import torch
from torch import nn

from components.optimizer.decay import DECAYED, check_decay, decay_groups
from components.registry import register
from components.slots import Optimizer
from components.spec import searchable


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamWConfig:
    """Options of `optimizer/adamw`; defaults are DeepSeek-V4's."""

    beta1: float = searchable(0.9, low=0.8, high=0.95)
    """Decay of the running mean of gradients."""
    beta2: float = searchable(0.95, low=0.9, high=0.999)
    """Decay of the running mean of their squares."""
    eps: float = searchable(1e-20, low=1e-20, high=1e-6, log=True)
    """Added to the root mean square that a step is divided by."""
    weight_decay: float = searchable(0.1, low=0.01, high=1.0, log=True)
    """Share of a weight that a step takes away, per unit of the learning rate."""
    decayed: str = searchable("matrices", choices=DECAYED)
    """What weight decay acts on: `matrices` (tensors of two or more axes), or `all` parameters."""

    def __post_init__(self) -> None:
        for key in ("beta1", "beta2"):
            check_share(key, getattr(self, key))
        if not self.eps > 0:
            raise ValueError(f"eps={self.eps} must be above 0")
        check_decay(self.weight_decay, self.decayed)


def check_share(key: str, value: float) -> None:
    """Raise `ValueError` for the weight of a running mean that is none."""
    if not 0 <= value < 1:
        raise ValueError(f"{key}={value} must be at least 0 and below 1")


@register("adamw", source="Loshchilov & Hutter 2017, arXiv 1711.05101; DeepSeek-V4 report §4.2")
class AdamW(Optimizer):
    """Adam's steps, divided by running root mean squares, with weight decay beside them.

    `W <- W (1 - lr λ) - lr m̂ / (sqrt(v̂) + eps)`, for every parameter alike.
    """

    Config = AdamWConfig

    @staticmethod
    def build(config: AdamWConfig, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        trainable = [p for p in model.parameters() if p.requires_grad]
        return adamw(config, trainable, lr)


def adamw(config: AdamWConfig, parameters: list[nn.Parameter], lr: float) -> torch.optim.AdamW:
    """PyTorch's own, over these parameters."""
    return torch.optim.AdamW(
        decay_groups(parameters, lr, config.weight_decay, config.decayed),
        lr=lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )
