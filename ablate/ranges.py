"""Ranges and choices of configuration values that need no other knowledge than the value itself."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ablate.errors import BadInputError


@dataclass(frozen=True)
class Bound:
    """Smallest and largest allowed number; `open_low` and `open_high` exclude the ends."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Whether `value` is inside."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        parts = []
        if self.low > -math.inf:
            parts.append(f"{'above' if self.open_low else 'at least'} {self.low:g}")
        if self.high < math.inf:
            parts.append(f"{'below' if self.open_high else 'at most'} {self.high:g}")
        return " and ".join(parts)


_COUNT = Bound(low=1)
_SIZE = Bound(low=0)
_POSITIVE = Bound(low=0, open_low=True)
_SHARE = Bound(low=0, high=1, open_high=True)

BOUNDS: dict[str, Bound] = {
    "model.vocab_size": _SIZE,
    "model.hidden_size": _COUNT,
    "model.num_hidden_layers": _COUNT,
    "model.num_attention_heads": _COUNT,
    "model.num_key_value_heads": _SIZE,
    "model.head_dim": _COUNT,
    "model.qk_rope_head_dim": _SIZE,
    "model.q_lora_rank": _SIZE,
    "model.o_groups": _COUNT,
    "model.o_lora_rank": _SIZE,
    "model.sliding_window": _COUNT,
    "model.index_n_heads": _COUNT,
    "model.index_head_dim": _SIZE,
    "model.index_topk": _SIZE,
    "model.moe_intermediate_size": _COUNT,
    "model.n_routed_experts": _COUNT,
    "model.n_shared_experts": _SIZE,
    "model.num_experts_per_tok": _COUNT,
    "model.num_hash_layers": _SIZE,
    "model.num_nextn_predict_layers": _SIZE,
    "model.routed_scaling_factor": _POSITIVE,
    "model.rms_norm_eps": _POSITIVE,
    "model.initializer_range": _POSITIVE,
    "model.max_position_embeddings": _COUNT,
    "data.vocab_size": Bound(low=2, high=1_000_000),
    "data.val_fraction": Bound(low=0, high=0.5, open_low=True),
    "data.val_tokens": _COUNT,
    "data.max_bytes": _SIZE,
    "budget.contingency": _SHARE,
    "budget.tolerance": _SHARE,
    "optimizer.lr": _POSITIVE,
    "optimizer.grad_clip": _SIZE,
    "optimizer.warmup": _SHARE,
    "optimizer.decay": Bound(low=0, high=1),
    "trainer.seq_len": Bound(low=2),
    "trainer.batch_size": _COUNT,
    "trainer.evals": _COUNT,
    "trainer.watch_tokens": _SIZE,
    "trainer.watch_every": _COUNT,
    "trainer.checkpoint_seconds": _POSITIVE,
    "trainer.checkpoint_steps": _SIZE,
    "sweep.resolution": Bound(low=3, high=11),
    "sweep.search.points": Bound(low=5, high=99),
    "sweep.search.factor": Bound(low=1, open_low=True),
    "sweep.search.extensions": _SIZE,
    "sweep.search.trials": Bound(low=1, high=100_000),
    "sweep.search.control": Bound(low=0, high=1),
    "sweep.search.finalists": Bound(low=1, high=99),
    "sweep.confirm.replicates": Bound(low=2, high=999),
    "sweep.confirm.margin": _POSITIVE,
    "sweep.confirm.alpha": Bound(low=0, high=0.5, open_low=True),
    "launcher.workers": _SIZE,
    "launcher.threads": _COUNT,
    "launcher.lease_seconds": Bound(low=1),
    "launcher.max_attempts": _COUNT,
    "tracking.seconds": _POSITIVE,
    "seed": Bound(low=0, high=2**31 - 1),
}

CHOICES: dict[str, tuple[str, ...]] = {
    "sweep.design": (
        "arms",
        "one_factor",
        "leave_one_out",
        "add_one_in",
        "full_factorial",
        "fractional_factorial",
        "search",
    ),
    "sweep.search.sampler": ("tpe", "gp", "nsga2", "cmaes", "qmc", "brute_force", "random"),
    "budget.match": ("flops", "tokens", "params", "active_params", "kv_bytes", "wall_clock"),
    "trainer.keep_weights": ("none", "search", "confirm", "all"),
    "trainer.precision": ("32-true", "bf16-mixed", "bf16-true", "16-mixed", "64-true"),
}

PATTERNS: dict[str, tuple[str, str]] = {
    "trainer.device": (r"auto|cpu|mps|cuda(:\d+)?", "auto, cpu, cuda, cuda:N, mps"),
}


def check(key: str, value: Any, where: Callable[[], str] = str) -> None:
    """Refuse a value outside the range or choices of `key`.

    Args:
        where: says where the value stands; asked only for a message, since files are read for it.

    Raises:
        BadInputError: names the key, the value and what is allowed.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise BadInputError(f"{key}={value} is not a finite number{where()}.")
    if key in BOUNDS and not BOUNDS[key].holds(value):
        raise BadInputError(f"{key}={value} is out of range{where()}. Allowed: {BOUNDS[key]}.")
    if key in CHOICES and value not in CHOICES[key]:
        raise BadInputError(f"{key}={value} is not supported{where()}. Allowed: {', '.join(CHOICES[key])}.")
    if key in PATTERNS and not re.fullmatch(PATTERNS[key][0], str(value)):
        raise BadInputError(f"{key}={value} is not supported{where()}. Allowed: {PATTERNS[key][1]}.")
