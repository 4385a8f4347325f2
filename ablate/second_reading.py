"""A study read a second time, in the currency that its budget leaves open: what was found, and what a plan foresees."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A paired difference at equal amounts of another currency, read before the learning rate decays.

    Attributes:
        currency: `tokens` or `flops`.
        amount: tokens, or MFLOP, at which every curve is read.
        delta, low, high: mean paired difference in nats and its 95 % t-interval.
    """

    currency: str
    amount: int
    n: int
    delta: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Foreseen:
    """What the second reading of a study will be, and what a study for it alone would cost.

    Attributes:
        amount: tokens, or MFLOP, at which arms are read before the decay; None where no evaluations of all arms
            lie there.
        cost_mflop: of the same study with the other currency equal to the end; trials that both have are free.
    """

    currency: str
    amount: int | None
    cost_mflop: int
