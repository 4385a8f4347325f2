"""What an open search has come to: its proposals, and what is best of them. Frozen, JSON-able."""

from dataclasses import dataclass
from typing import Any, Literal

ProposalState = Literal[
    "queued", "running", "complete", "diverged", "failed", "duplicate", "infeasible", "invalid"
]


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """A point of the space, and what became of it.

    Attributes:
        sampler: who proposed it.
        params: values as the sampler knows them; `overrides`, what they set.
        schedule: canonical form of the layers, whatever text it was drawn as.
        state: of its trial; or why it has none: `duplicate` of an earlier one, `infeasible` by a constraint,
            `invalid` where no such model can be built or trained. `reason` says which.
        value: held-out loss of its trial on the search's seed, capped where it diverged; of a duplicate, the
            earlier one's. Never evidence.
        costs: known costs by name; empty where it is invalid.
        mflop: charged for it; zero where it was not trained here.
        trial: number of its trial, or of the trial that it repeats.
    """

    number: int
    sampler: str
    params: dict[str, Any]
    overrides: dict[str, Any]
    lr: float
    schedule: str
    state: ProposalState
    reason: str
    value: float | None
    costs: dict[str, float]
    mflop: int
    trial: int | None

    @property
    def trained(self) -> bool:
        """Whether it is a model of its own with a loss of its own."""
        return self.state == "complete" and self.value is not None


@dataclass(frozen=True, kw_only=True)
class Finalist:
    """An arm that the search has found.

    Attributes:
        search, tuned: loss of its proposal, and lowest over its learning rates, both on the search's seed.
        confirmed: mean over its fresh seeds, at the rate of `tuned`; `seeds` of them.
        shrinkage: confirmed less tuned, in nats. The baseline's own tells how much of it is a change of seeds.
    """

    arm: str
    proposal: int
    search: float
    tuned: float | None
    confirmed: float | None
    seeds: int
    shrinkage: float | None


@dataclass(frozen=True, kw_only=True)
class Searched:
    """An open search so far.

    Attributes:
        objectives: names, the loss first. front: numbers of proposals that no other one beats in all of them.
        curve: after each trained proposal, MFLOP charged so far and the lowest loss so far.
        counts: proposals by state.
    """

    objectives: tuple[str, ...]
    proposals: tuple[Proposal, ...]
    front: tuple[int, ...]
    curve: tuple[tuple[int, float], ...]
    finalists: tuple[Finalist, ...]
    baseline_shrinkage: float | None
    counts: dict[str, int]
