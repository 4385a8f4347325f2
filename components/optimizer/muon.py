"""Muon on matrices beside AdamW on everything else, as DeepSeek-V4 trains."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from components.optimizer.adamw import AdamWConfig, adamw, check_share
from components.optimizer.matrices import as_matrices, row_blocks
from components.optimizer.newton_schulz import STEPS, flops, orthogonalise
from components.precision import at_least_float32
from components.registry import register
from components.slots import Optimizer
from components.spec import searchable

_AT_ONCE = 1 << 24
"""Entries of equal matrices that are iterated together; bounds the memory that it takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MuonConfig(AdamWConfig):
    """Options of `optimizer/muon`. Those of AdamW are for what is no matrix; both share `weight_decay`."""

    newton_schulz: str = searchable("hybrid", choices=tuple(STEPS))
    """`hybrid`: eight fast steps and two exact ones. `quintic`: Jordan's five."""
    momentum: float = searchable(0.95, low=0.8, high=0.98)
    """Decay of the sum of gradients that matrices move by."""
    update_rms: float = searchable(0.18, low=0.1, high=0.4, log=True)
    """Root mean square of an update over the learning rate, where all singular values are 1."""

    def __post_init__(self) -> None:
        AdamWConfig.__post_init__(self)
        if self.newton_schulz not in STEPS:
            raise ValueError(f"newton_schulz={self.newton_schulz!r} is not one of {', '.join(STEPS)}")
        check_share("momentum", self.momentum)
        if not self.update_rms > 0:
            raise ValueError(f"update_rms={self.update_rms} must be above 0")


@register("muon", source="DeepSeek-V4 report §2.4, §4.2; Jordan et al. 2024; Moonlight, arXiv 2502.16982")
class Muon(Optimizer):
    """Steps with equal singular values for matrices, AdamW for the rest, at one learning rate.

        M <- momentum M + G
        O  = NewtonSchulz(momentum M + G) sqrt(max(rows, columns)) update_rms
        W <- W (1 - lr λ) - lr O

    A matrix is what acts as one linear map: each expert, gate and up projection apart, and each group of the
    grouped output projection; a query projection is one for all heads, the mapping of mHC one for all its
    outputs. AdamW has embedding and head, the collapse before the head, all vectors, biases per position, and
    filters per channel.
    """

    Config = MuonConfig

    @staticmethod
    def build(config: MuonConfig, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        blocks = row_blocks(model)
        others = adamw(config, [p for p, count in blocks if not count], lr)
        matrices = {
            "params": [p for p, count in blocks if count],
            "row_blocks": [count for _, count in blocks if count],
            "lr": lr,
            "weight_decay": config.weight_decay,
        }
        return MuonAdamW(matrices, others, config)

    @staticmethod
    def flops_per_step(config: MuonConfig, model: nn.Module) -> int:
        """Those of Newton-Schulz, for every matrix, whether a step has a gradient for it or not."""
        return sum(
            p.numel()
            // (p.shape[-1] * (p.shape[-2] // count))
            * flops(p.shape[-2] // count, p.shape[-1], config.newton_schulz)
            for p, count in row_blocks(model)
            if count
        )


class MuonAdamW(torch.optim.Optimizer):
    """Both rules as one optimizer, so that whoever drives, clips and saves it need not know."""

    def __init__(self, matrices: dict[str, Any], others: torch.optim.AdamW, config: MuonConfig) -> None:
        self._others, self._config = others, config
        super().__init__([matrices, *others.param_groups], {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Loading a saved state replaces both containers, so they are handed over at every step.
        self._others.state = self.state
        self._others.param_groups = [g for g in self.param_groups if "row_blocks" not in g]
        self._others.step()
        for group in self.param_groups:
            if "row_blocks" in group:
                self._step_matrices(group)
        return loss

    def _step_matrices(self, group: dict[str, Any]) -> None:
        weights, blocks, ahead = [], [], []
        for p, count in zip(group["params"], group["row_blocks"], strict=True):
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(p)
            buffer = state["momentum_buffer"].mul_(self._config.momentum).add_(p.grad)
            weights.append(p)
            blocks.append(count)
            ahead.append(p.grad.add(buffer, alpha=self._config.momentum))
        for p, update in zip(weights, equalised(ahead, blocks, self._config), strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"])


def equalised(directions: Sequence[Tensor], blocks: Sequence[int], config: MuonConfig) -> list[Tensor]:
    """Each direction with the singular values of its matrices equal, at root mean square `update_rms`.

    Matrices of one shape, or its transpose, go through the iteration together.
    """
    by_shape: dict[tuple[int, int], list[tuple[int, Tensor]]] = defaultdict(list)
    for index, (direction, count) in enumerate(zip(directions, blocks, strict=True)):
        matrices = as_matrices(at_least_float32(direction), count)
        wide = matrices.mT if matrices.shape[1] > matrices.shape[2] else matrices
        by_shape[wide.shape[1], wide.shape[2]].append((index, wide))
    found: dict[int, Tensor] = {}
    for (rows, columns), members in by_shape.items():
        stack = torch.cat([wide for _, wide in members])
        pieces = stack.split(max(1, _AT_ONCE // (rows * columns)))
        done = torch.cat([orthogonalise(piece, config.newton_schulz) for piece in pieces])
        done *= math.sqrt(columns) * config.update_rms
        for (index, _), part in zip(members, done.split([len(wide) for _, wide in members]), strict=True):
            direction, count = directions[index], blocks[index]
            tall = direction.shape[-2] // count > direction.shape[-1]
            found[index] = (part.mT if tall else part).reshape(direction.shape).to(direction.dtype)
    return [found[index] for index in range(len(directions))]
