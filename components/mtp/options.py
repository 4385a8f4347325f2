"""Options that all kinds of multi-token prediction have."""

from dataclasses import dataclass

from components.spec import searchable


@dataclass(frozen=True, kw_only=True, slots=True)
class LossWeight:
    """What the loss of prediction layers counts beside that of the next token."""

    weight: float = searchable(0.3, low=0.05, high=1.0, log=True)
    """λ of `λ/D Σ_k L_k` over D layers; the official runs lower it to 0.1 as the learning rate decays."""

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ValueError(f"weight={self.weight} must be positive; num_nextn_predict_layers=0 is without")
