"""What the model of the ledger's world knows: a few numbers per trial, per attempt, and per worker's hand."""

from dataclasses import dataclass

import small_studies

from ablate import queue
from ablate.meter import TrialMeter

STEPS = 12
MFLOP = small_studies.STEP_MFLOP
ALLOWANCE = STEPS * MFLOP
EVALUATIONS = small_studies.EVALS * small_studies.EVALUATION_MFLOP
CAPS = {
    "search": 6 * ALLOWANCE,
    "confirm": 3 * ALLOWANCE + 5,
    "evaluation": 5 * EVALUATIONS + 2,
    "contingency": 9 * MFLOP + 2,
}
TOTAL = sum(CAPS.values())
MAX_ATTEMPTS = 3
WORKERS = 8
STUDIES = 2
"""That share fingerprints, so that one finds what the other has paid for."""


def evaluated(steps: int) -> int:
    """MFLOP of the evaluations in so many steps: one after every quarter of a trial."""
    return steps // (STEPS // small_studies.EVALS) * small_studies.EVALUATION_MFLOP


def cost(steps: int) -> int:
    """MFLOP of so many steps with their evaluations."""
    return steps * MFLOP + evaluated(steps)


@dataclass
class Trial:
    """What the model knows of one trial.

    Attributes:
        paid: steps that its phase has paid for. wasted: MFLOP that the contingency has.
        saved: steps in the checkpoint that the next attempt goes on from.
    """

    id: int
    number: int
    study: str
    phase: str
    fingerprint: str
    state: str
    paid: int = 0
    wasted: int = 0
    attempt: int = 0
    losses: int = 0
    saved: int = 0
    reused: bool = False

    @property
    def live(self) -> bool:
        return self.state in ("queued", "running")

    @property
    def accounts(self) -> dict[str, list[int]]:
        """MFLOP spent and in reserve, by the phase that pays."""
        accounts = {
            self.phase: (self.paid * MFLOP, ALLOWANCE),
            "evaluation": (evaluated(self.paid), EVALUATIONS),
        }
        return {phase: [paid, self.live * (whole - paid)] for phase, (paid, whole) in accounts.items()}


@dataclass
class Attempt:
    """A running attempt, in the database's eyes."""

    worker: str
    trial: Trial
    number: int
    expired: bool = False


@dataclass
class Hand:
    """What a worker believes to hold.

    Attributes:
        step: steps that are computed, by this attempt or in the checkpoint it began from.
        asked: steps up to which the meter was asked to pay; None before the first payment.
    """

    claim: queue.Claim
    trial: Trial
    meter: "Paying"
    step: int
    asked: int | None = None
    doomed: bool = False

    @property
    def computed(self) -> int:
        return self.claim.paid_steps if self.asked is None else self.asked


class Paying(TrialMeter):
    """A meter that remembers its last transaction, which a lost answer makes it repeat."""

    def _settle(self, start: int, until: int, first: bool = False) -> int:
        self.last = {"start": start, "until": until, "first": first}
        return super()._settle(start, until, first)
