"""Lion, from the `pytorch_optimizer` library."""

from dataclasses import dataclass

import torch
from torch import nn

from components.optimizer.adamw import check_share
from components.optimizer.decay import DECAYED, check_decay, decay_groups
from components.registry import register
from components.slots import Optimizer
from components.spec import searchable


@register("lion", source="Chen et al. 2023, arXiv 2302.06675; implementation: pytorch_optimizer")
class Lion(Optimizer):
    """The sign of an interpolated momentum: every entry moves by the same amount.

    `W <- W (1 - s lr λ) - s lr sign(beta1 m + (1 - beta1) G)`, then `m <- beta2 m + (1 - beta2) G`.

    A sign is longer than what Adam divides, so that the paper takes rates of a third to a tenth of AdamW's
    with weight decay larger by as much. The factor s = `lr_scale` stands for that: the tuned `optimizer.lr`
    then has about the same optimum as for AdamW, and arms share one grid. Short runs want the upper end.
    """

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Config:
        """Options of `optimizer/lion`."""

        lr_scale: float = searchable(0.3, low=0.1, high=1.0, log=True)
        """Its learning rate as a multiple of `optimizer.lr`."""
        beta1: float = searchable(0.9, low=0.8, high=0.98)
        """Share of the momentum in what the sign is taken of."""
        beta2: float = searchable(0.99, low=0.9, high=0.999)
        """Decay of the momentum."""
        weight_decay: float = searchable(0.3, low=0.03, high=3.0, log=True)
        """Share of a weight that a step takes away, per unit of the scaled learning rate."""
        decayed: str = searchable("matrices", choices=DECAYED)
        """What weight decay acts on: `matrices` (tensors of two or more axes), or `all` parameters."""

        def __post_init__(self) -> None:
            if not self.lr_scale > 0:
                raise ValueError(f"lr_scale={self.lr_scale} must be above 0")
            for key in ("beta1", "beta2"):
                check_share(key, getattr(self, key))
            check_decay(self.weight_decay, self.decayed)

    @staticmethod
    def build(config: Config, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        from pytorch_optimizer import Lion as Rule  # seconds, for those alone who choose it

        scaled = lr * config.lr_scale
        trainable = [p for p in model.parameters() if p.requires_grad]
        groups = decay_groups(trainable, scaled, config.weight_decay, config.decayed)
        return Rule(groups, lr=scaled, betas=(config.beta1, config.beta2))
