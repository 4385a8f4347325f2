"""Curricula as they are written, and the stages of a trial that come of them.

A curriculum says how training gets to the configured model: with shorter sequences, or with attention that reads
all that it could choose from. It ends in the configuration itself, which is what evaluations and verdicts are
about. Every step of every stage has the same number of tokens, so step t of any two curricula reads the same text.
"""

import bisect
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from ablate.errors import BadInputError
from ablate.schema import Stretch, Trainer
from ablate.typed import coerce, field_types
from components import registry

KEY = "trainer.curriculum"
SPARSE, DENSE, WARMUP = "sparse", "dense", "warmup"
ATTENTION = (SPARSE, DENSE, WARMUP)
"""What a stretch may do with attention that chooses."""

EVALUATION = "evaluation"
"""The phase of a budget that pays for evaluations, whatever phase their trial is of."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Steps that train otherwise than configured, before those that train as configured.

    Attributes:
        seq_len: tokens per sequence.
        batch_size: sequences per step; times `seq_len`, it is the same in all stages of a trial.
        attention: one of `ATTENTION`.
        step_mflop: charge of one step, rounded up.
    """

    seq_len: int
    batch_size: int
    attention: str
    steps: int
    step_mflop: int


@dataclass(frozen=True, kw_only=True)
class Staged:
    """What a trial trains for: the steps of its early stages, then all others as configured.

    Attributes:
        steps: in all.
        step_mflop: charge of a step, rounded up, but for those of `early`.
        early: stages of a curriculum before the last; none without one.
        evaluations: after which steps the model is evaluated, each with its charge in MFLOP.
    """

    steps: int
    step_mflop: int
    early: tuple[Stage, ...] = ()
    evaluations: tuple[tuple[int, int], ...] = ()

    @property
    def mflop(self) -> int:
        """What training costs in one trial."""
        return self.charge(self.steps)

    @property
    def evaluation_mflop(self) -> int:
        """What evaluations cost in one trial."""
        return self.evaluated(self.steps)

    @property
    def counts(self) -> tuple[int, ...]:
        """Steps of every stage, the last one included."""
        before = [stage.steps for stage in self.early]
        return (*before, self.steps - sum(before))

    def charge(self, steps: int) -> int:
        """MFLOP of the first `steps` steps, evaluations left out."""
        total, rest = 0, steps
        for stage in self.early:
            done = min(rest, stage.steps)
            total, rest = total + done * stage.step_mflop, rest - done
        return total + rest * self.step_mflop

    def evaluated(self, steps: int) -> int:
        """MFLOP of the evaluations that belong to the first `steps` steps: an evaluation to the step before it."""
        return sum(mflop for step, mflop in self.evaluations if step <= steps)

    def stage(self, step: int) -> Stage | None:
        """The early stage that step number `step` (from 0) belongs to, or None where it trains as configured."""
        for stage in self.early:
            if step < stage.steps:
                return stage
            step -= stage.steps
        return None

    def progress(self, step: int) -> float:
        """Share of the compute that is spent when step number `step` is half done."""
        return (self.charge(step) + self.charge(step + 1)) / (2 * self.mflop)

    def reached(self, parts: int) -> set[int]:
        """Numbers of steps that spend 1, 2, … of `parts` equal shares of the compute; all of them at last."""
        steps = range(self.steps + 1)
        return {
            bisect.bisect_left(steps, self.mflop * i, key=lambda step: self.charge(step) * parts)
            for i in range(1, parts + 1)
        }


def exact(share: float) -> Fraction:
    """A share as the decimal number that was written."""
    return Fraction(repr(share))


def typed(values: Sequence[Mapping[str, Any]], where: Callable[[], str] = str) -> list[dict[str, Any]]:
    """The stretches of a curriculum, complete and each checked by itself and all together.

    Args:
        where: says where the value stands, for messages.

    Raises:
        BadInputError: an unknown key, a value that is not allowed, or shares that do not sum to one.
    """
    found = [_stretch(f"{KEY}[{i}]", stretch, where) for i, stretch in enumerate(values)]
    total = sum(exact(stretch["share"]) for stretch in found)
    if found and total != 1:
        shares = " + ".join(f"{stretch['share']:g}" for stretch in found)
        raise BadInputError(f"{KEY}: shares {shares} sum to {float(total):g}{where()}. Allowed: a sum of 1.")
    return found


def _stretch(key: str, values: Mapping[str, Any], where: Callable[[], str]) -> dict[str, Any]:
    types = field_types(Stretch)
    for name in values:
        if name not in types:
            raise BadInputError(
                f"{key}.{name}={values[name]}{where()}: {registry.unknown('key of a stretch', name, types)}"
            )
    if "share" not in values:
        raise BadInputError(f"{key} has no share{where()}. Give the part of a trial's compute that it gets.")
    made = {}
    for name, value in values.items():
        try:
            made[name] = coerce(value, types[name])
        except ValueError as error:
            raise BadInputError(
                f"{key}.{name}={value}{where()} has the wrong type. Allowed: {error}."
            ) from None
    complete = dataclasses.asdict(Stretch(**made))
    allowed = {
        "share": ("above 0 and at most 1", 0 < complete["share"] <= 1),
        "seq_len": (
            "at least 2, or 0 for trainer.seq_len",
            complete["seq_len"] not in (1,) and complete["seq_len"] >= 0,
        ),
        "attention": (", ".join(ATTENTION), complete["attention"] in ATTENTION),
    }
    for name, (text, holds) in allowed.items():
        if not holds:
            raise BadInputError(f"{key}.{name}={complete[name]} is not allowed{where()}. Allowed: {text}.")
    return complete


def check(trainer: Trainer, place: str = "") -> None:
    """Whether a curriculum fits the sequence length, and ends in the configuration.

    Args:
        place: where it stands, for messages.

    Raises:
        BadInputError: names the stretch, the value and what is allowed.
    """
    whole, last = trainer.seq_len, len(trainer.curriculum) - 1
    for index, stretch in enumerate(read(trainer) if trainer.curriculum else ()):
        key = f"{KEY}[{index}]"
        if whole % stretch.seq_len:
            divisors = [str(n) for n in range(2, whole + 1) if whole % n == 0]
            raise BadInputError(
                f"{key}.seq_len={stretch.seq_len} does not divide trainer.seq_len={whole}, whose sequences it "
                f"cuts into pieces{place}. Allowed: {', '.join(divisors)}."
            )
        if index == last and (stretch.seq_len, stretch.attention) != (whole, SPARSE):
            name, value = (
                ("seq_len", stretch.seq_len) if stretch.seq_len != whole else ("attention", stretch.attention)
            )
            raise BadInputError(
                f"{key}.{name}={value}: the last stretch trains the model as configured{place}. Allowed: a further "
                f"stretch, such as {{share: 0.5}}, after it."
            )


def read(trainer: Trainer) -> tuple[Stretch, ...]:
    """The stretches of a trainer, lengths filled in; a single one without a curriculum."""
    found = [Stretch(**values) for values in trainer.curriculum] or [Stretch(share=1.0)]
    return tuple(dataclasses.replace(s, seq_len=s.seq_len or trainer.seq_len) for s in found)


def text(trainer: Trainer) -> str:
    """A curriculum in one line, such as `20% at 64 tokens dense, 80% at 256 tokens`; empty without one."""
    if not trainer.curriculum:
        return ""
    return ", ".join(
        f"{s.share * 100:.4g}% at {s.seq_len} tokens" + (f" {s.attention}" if s.attention != SPARSE else "")
        for s in read(trainer)
    )
