"""Options that all kinds of multi-token prediction have."""

from dataclasses import dataclass

from components.spec import searchable

AHEAD = {
    "loss": "nats per token of a prediction layer, unweighted",
    "accept": "share of its tokens that the model says itself one step later, so that greedy decoding takes them",
}
"""What is measured of every prediction layer; a toy's is low, and no bound means that one is broken."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossWeight:
    """What the loss of prediction layers counts beside that of the next token."""

    weight: float = searchable(0.3, low=0.05, high=1.0, log=True)
    """λ of `λ/D Σ_k L_k` over D layers, until the learning rate decays."""
    decay_weight: float = searchable(0.1, low=0.01, high=1.0, log=True)
    """λ from there on, as in the official runs; equal to `weight` it stays what it was."""

    def __post_init__(self) -> None:
        for name in ("weight", "decay_weight"):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"{name}={value} must be positive; num_nextn_predict_layers=0 is without")
