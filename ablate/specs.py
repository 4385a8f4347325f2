"""A trial as it is to be trained and paid for. Frozen, JSON-able: stored with the trial."""

from dataclasses import dataclass
from typing import Any, Literal

from ablate.stages import EVALUATION, Staged

Phase = Literal["search", "confirm"]


@dataclass(frozen=True, kw_only=True)
class TrialSpec(Staged):
    """One training run, complete enough to repeat it anywhere. Stored as JSON.

    Attributes:
        fingerprint: content hash of all that decides the result (not of arm, phase or study names).
        run: `schema.to_dict` of the arm's configuration, learning rate applied.
        steps: optimizer steps that the allowance pays for.
    """

    fingerprint: str
    arm: str
    phase: Phase
    replicate: int
    seed: int
    lr: float
    run: dict[str, Any]
    data_fingerprint: str

    @property
    def allowance_mflop(self) -> int:
        """What training costs in the whole trial."""
        return self.mflop

    def bill(self, first: int, until: int) -> dict[str, int]:
        """MFLOP of the steps from `first` to `until` and of their evaluations, by the phases that pay for any."""
        evaluated = self.evaluated(until) - self.evaluated(first)
        amounts = {EVALUATION: evaluated, self.phase: self.charge(until) - self.charge(first)}
        return {phase: mflop for phase, mflop in amounts.items() if mflop}
