"""The verdicts as an instrument: how often they are wrong, what they detect, and what they cost.

`make instrument` prints the table. Two ways lead to each figure: `judged`, by the program's own code from
trials to verdicts, one study at a time; and `ablate.operating`, which plays the rule for many studies at once
and is shown to decide as the program does (test_instrument).
"""

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import judged_studies as studies
import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom
from scipy.stats import t as student

from ablate import confirmation, operating, rounds, sequential, verdict
from ablate.records import Plan, Verdict

ALPHA = 0.05
PAIRS = 8
FIXED: tuple[int, ...] = (PAIRS,)
ISSUE: tuple[int, ...] = (3, 5, 8)
ARMS = ("dense", "sliding_window", "csa", "hca")

SPECTRUM = {
    "hyper-connections, 4 streams, 1B (-0.032 at SD 0.002)": -15.0,
    "mHC, 27B (-0.021 at SD 0.002)": -10.5,
    "hyper-connections, 1 stream, 1B (+0.011 at SD 0.002)": 5.5,
    "sliding window for dense, 400 steps (-0.072 at SD 0.016)": -4.5,
    "HCA for dense, 400 steps (-0.077 at SD 0.023)": -3.4,
    "auxiliary-loss-free balance, 1B (-0.005 at SD 0.002)": -2.5,
    "auxiliary-loss-free balance, 3B (-0.005 at SD 0.002)": -2.5,
    "sliding window for dense, 1600 steps (-0.010 at SD 0.009)": -1.1,
    "block attention for dense (0.001 at SD 0.002)": 0.5,
    "HCA for sliding window (-0.0055 at SD 0.012)": -0.46,
    "multi-token prediction (0.729 = 0.729 bits)": 0.0,
    "Sinkhorn iterations from 5 on": 0.0,
}
"""True differences of ablations, published or measured (methodology §C2, §G), in SD of paired differences.

The speed-run's SD of 0.0014 per run, unpaired, makes the 0.002.
"""

RATIOS = (0.5, 2.5)
"""Margin over SD of paired differences: of models trained for minutes (0.01 : 0.02) and for days (0.005 : 0.002)."""


@dataclass(frozen=True)
class Noise:
    """Noise of trials. A seed's arms share a part of SD `common`; arms have SD `own`, in turn; tails are t's."""

    name: str
    common: float = 0.02
    own: tuple[float, ...] = (0.014,)
    tails: float = math.inf

    def losses(self, rng: np.random.Generator, count: int, arms: int, pairs: int) -> NDArray[np.float64]:
        """[count, 1 + arms, pairs], the baseline first, without any effect."""
        shape = (count, 1 + arms, pairs)
        own = rng.standard_normal(shape)
        if math.isfinite(self.tails):
            own = rng.standard_t(self.tails, shape) * math.sqrt(1 - 2 / self.tails)
        scale = np.resize(self.own, 1 + arms)[:, None]
        return 3.4 + rng.normal(0, self.common, (count, 1, pairs)) + own * scale


NORMAL = Noise("normal, arms alike")
UNEQUAL = Noise("normal, SD by arm as measured", own=(0.0227, 0.0113, 0.0101))
HEAVY = Noise("heavy tails (t, 4 df), SD by arm", own=(0.0227, 0.0113, 0.0101), tails=4)


def plan(
    looks: Sequence[int], margin: float = 0.01, arms: Sequence[str] = ARMS, extensions: int = 2
) -> tuple[Plan, studies.Rows]:
    """A healthy study, fixed where there is one look."""
    made, rows = studies.study(tuple(arms), looks[-1])
    confirm = dataclasses.replace(
        made.run.sweep.confirm, looks=list(looks) if len(looks) > 1 else [], margin=margin
    )
    search = dataclasses.replace(made.run.sweep.search, extensions=extensions)
    sweep = dataclasses.replace(made.run.sweep, confirm=confirm, search=search)
    return dataclasses.replace(made, run=dataclasses.replace(made.run, sweep=sweep)), rows


def judged(
    losses: NDArray[np.float64], looks: Sequence[int], margin: float
) -> tuple[tuple[Verdict, ...], int]:
    """Verdicts of one study and its confirm trials, by the program's own scheduling, looks and verdicts.

    Args:
        losses: [1 + arms, pairs], in the order of `ARMS`.
    """
    names = ARMS[: len(losses)]
    made, rows = plan(looks, margin, names)
    by_arm = dict(zip(names, losses, strict=True))
    rows = studies.with_losses(rows, lambda spec: float(by_arm[spec.arm][spec.replicate]))
    if len(looks) > 1:
        ended: dict[tuple[str, int], float | None] = {}
        while wanted := confirmation.play(made, names, ended).wanted:
            ended |= {(arm, i): float(by_arm[arm][i]) for arm, n in wanted.items() for i in range(n)}
        rows = tuple(r for r in rows if r.spec.phase == "search" or (r.spec.arm, r.spec.replicate) in ended)
    return verdict.verdicts(made, rows), sum(row.spec.phase == "confirm" for row in rows)


def differences(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """[studies, arms, pairs] to the baseline."""
    return losses[:, 1:] - losses[:, :1]


def intervals(d: NDArray[np.float64], played: operating.Played, looks: Sequence[int]) -> NDArray[np.float64]:
    """[2, studies, arms]: what the looks' intervals that each arm had have in common; if nothing, the last."""
    low, high = np.full(d.shape[:2], -np.inf), np.full(d.shape[:2], np.inf)
    last = np.stack([low, high])
    for n, level in zip(looks, sequential.levels(ALPHA, looks), strict=True):
        mean, sd = d[:, :, :n].mean(axis=2), d[:, :, :n].std(axis=2, ddof=1)
        half = float(student.isf(level / 2, n - 1)) * sd / math.sqrt(n)
        had = played.pairs >= n
        low = np.where(had, np.maximum(low, mean - half), low)
        high = np.where(had, np.minimum(high, mean + half), high)
        last = np.where(had, np.stack([mean - half, mean + half]), last)
    return np.where(low <= high, np.stack([low, high]), last)


@dataclass(frozen=True)
class Rates:
    """Of equal arms: studies that claim a difference, and the share of intervals that cover zero."""

    wrong: int
    studies: int
    covered: float

    @property
    def binomial(self) -> tuple[int, int]:
        """95 % of studies at the nominal rate lie in it."""
        low, high = binom.interval(0.95, self.studies, ALPHA)
        return int(low), int(high)


def equal_arms(noise: Noise, looks: Sequence[int], count: int, arms: int = 3, seed: int = 0) -> Rates:
    """By the program's own code, one study at a time."""
    wrong, covered = 0, []
    for losses in noise.losses(np.random.default_rng(seed), count, arms, PAIRS):
        found, _ = judged(losses, looks, margin=0.01)
        wrong += any(v.kind in ("helps", "hurts") for v in found)
        covered += [v.low <= 0 <= v.high for v in found]
    return Rates(wrong, count, float(np.mean(covered)))


def equal_arms_played(noise: Noise, looks: Sequence[int], count: int, arms: int = 3, seed: int = 0) -> Rates:
    """The same, many studies at once."""
    d = differences(noise.losses(np.random.default_rng(seed), count, arms, PAIRS))
    played = operating.play(d, ALPHA, 0.01, looks)
    low, high = intervals(d, played, looks)
    wrong = (played.decisions == "difference").any(axis=1).sum()
    return Rates(int(wrong), count, float(((low <= 0) & (high >= 0)).mean()))


def search(made: Plan, loss: Callable[[str, float], float]) -> dict[str, list[rounds.Tried]]:
    """All rounds of a search, by the program's own rule; `loss` of an arm at a rate is asked once for each trial."""
    tried: dict[str, rounds.Tried] = {}
    asked = rounds.search(made, tried)
    while not asked.finished:
        new = [slot for slot in asked.slots if slot.key not in tried]
        tried |= {slot.key: (slot.lr, loss(slot.arm, slot.lr), "complete") for slot in new}
        asked = rounds.search(made, tried)
    return {arm.name: [tried[s.key] for s in asked.slots if s.arm == arm.name] for arm in made.arms}


def tuned_apart(
    rule: Callable[[list[rounds.Tried]], float | None],
    count: int,
    ratio: float,
    steepness: float,
    seed: int = 4,
) -> float:
    """Share of studies of three equal arms that claim a difference, each arm tuned by single noisy trials.

    Args:
        rule: which of the rates tried arms are confirmed with.
        ratio: SD of a trial over the curvature of the loss in octaves of the rate, 0.02 nats.
        steepness: of the loss above its optimum, over that below.
    """
    rng, curvature = np.random.default_rng(seed), 0.02
    made, _ = plan(FIXED)
    losses = Noise("", own=(ratio * curvature,)).losses(rng, count, len(ARMS) - 1, PAIRS)

    def excess(octaves: float) -> float:
        return curvature * octaves**2 * (steepness if octaves > 0 else 1.0)

    kept = np.ones(count, dtype=bool)
    for i in range(count):
        optimum = math.log2(studies.RATE) + rng.uniform(-0.5, 0.5)

        def loss(arm: str, lr: float, optimum: float = optimum) -> float:
            return 3.4 + excess(math.log2(lr) - optimum) + rng.normal(0, ratio * curvature)

        for j, own in enumerate(search(made, loss).values()):
            kept[i] &= not rounds.at_edge(own)
            losses[i, j] += excess(math.log2(rule(own) or 1.0) - optimum)
    played = operating.play(differences(losses), ALPHA, curvature / 4, FIXED)
    return float(((played.decisions == "difference").any(axis=1) & kept).mean())


def spectrum(count: int, arms: int, seed: int = 1) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Differences [count, arms, pairs] with effects drawn from `SPECTRUM`, and these; SD of differences is 1."""
    rng = np.random.default_rng(seed)
    effects = rng.choice(list(SPECTRUM.values()), (count, arms))
    losses = Noise("", common=1.0, own=(math.sqrt(0.5),)).losses(rng, count, arms, PAIRS)
    return differences(losses) + effects[:, :, None], effects


@dataclass(frozen=True)
class Race:
    """A sequential design against the fixed one on the same seeds.

    Attributes:
        cost: confirm trials over those of the fixed design.
        study: the same with five search trials per arm on either side.
        same: share of verdicts that are the same.
        both: share where one found a difference and the other equivalence, and both are true: the arm differs
            by less than the margin.
        opposite: verdicts on which the two contradict each other otherwise.
        again: share of verdicts that two fixed designs on different seeds have in common.
        covered: share of intervals that cover the true difference.
    """

    cost: float
    study: float
    same: float
    both: float
    opposite: int
    again: float
    covered: float


def claims(d: NDArray[np.float64], played: operating.Played) -> NDArray[np.str_]:
    """Verdicts without caveats: helps, hurts, equivalent or inconclusive."""
    mean = np.take_along_axis(d.cumsum(axis=2), played.pairs[:, :, None] - 1, axis=2)[:, :, 0]
    kinds = np.where(played.decisions == "equivalent", "equivalent", "inconclusive")
    return np.where(played.decisions == "difference", np.where(mean < 0, "helps", "hurts"), kinds)


def raced(looks: Sequence[int], count: int, seed: int = 3) -> tuple[float, float]:
    """Cost and share of same verdicts by the program's own code, arms and margins of the spectrum in turn."""
    same = verdicts = used = whole = 0
    for i in range(count):
        ratio = RATIOS[i % len(RATIOS)]
        d, _ = spectrum(1, 1 + i % 3, seed + i)
        losses = np.concatenate([np.zeros_like(d[0, :1]), d[0]]) * 0.01 + 3.4
        mine, paid = judged(losses, looks, margin=0.01 * ratio)
        fixed, full = judged(losses, FIXED, margin=0.01 * ratio)
        same += sum(a.kind == b.kind for a, b in zip(mine, fixed, strict=True))
        verdicts, used, whole = verdicts + len(fixed), used + paid, whole + full
    return used / whole, same / verdicts


def race(looks: Sequence[int], count: int, arms: int, ratio: float, seed: int = 1) -> Race:
    """How it goes for studies of `arms` from the spectrum, at that margin over SD."""
    d, effects = spectrum(count, arms, seed)
    other = spectrum(count, arms, seed + 1000)[0] - spectrum(count, arms, seed + 1000)[1][:, :, None]
    played, whole = (operating.play(d, ALPHA, ratio, one) for one in (looks, FIXED))
    again = other + effects[:, :, None]
    mine, fixed = claims(d, played), claims(d, whole)
    repeated = claims(again, operating.play(again, ALPHA, ratio, FIXED))
    low, high = intervals(d, played, looks)
    other_word = (mine != "inconclusive") & (fixed != "inconclusive") & (mine != fixed)
    both = other_word & ((mine == "equivalent") | (fixed == "equivalent")) & (np.abs(effects) < ratio)
    searched = 5 * count * (1 + arms)
    return Race(
        cost=float(played.trials.sum() / whole.trials.sum()),
        study=float((searched + played.trials.sum()) / (searched + whole.trials.sum())),
        same=float((mine == fixed).mean()),
        both=float(both.mean()),
        opposite=int((other_word & ~both).sum()),
        again=float((repeated == fixed).mean()),
        covered=float(((low <= effects) & (effects <= high)).mean()),
    )


def found(looks: Sequence[int], count: int, arms: int, ratio: float, seed: int = 2) -> float:
    """Share of studies that find one arm which differs by the detectable effect; the others are equal."""
    effect = operating.detectable(ALPHA / arms, looks)
    d = differences(Noise("", own=(math.sqrt(0.5),)).losses(np.random.default_rng(seed), count, arms, PAIRS))
    d[:, 0] += effect
    return float((operating.play(d, ALPHA, ratio, looks).decisions[:, 0] == "difference").mean())


def main(count: int = 1000, many: int = 20_000) -> None:
    """Print the table."""
    designs = {"fixed, 8 pairs": FIXED, "looks 3, 5, 8": ISSUE, "looks 3, 4, 5, 6, 8": sequential.LOOKS}
    print(
        f"Equal arms: family-wise error over 3 contrasts after Holm (nominal {ALPHA:.0%}), coverage of 95 %."
    )
    for name, looks in designs.items():
        for noise in (NORMAL, UNEQUAL, HEAVY):
            played = equal_arms_played(noise, looks, many)
            line = f"  {name:20} {noise.name:34} {played.wrong / many:6.2%} of {many}, covers {played.covered:.1%}"
            if noise is HEAVY:
                own = equal_arms(noise, looks, count)
                line += (
                    f"; by the program {own.wrong} of {count} {list(own.binomial)}, covers {own.covered:.1%}"
                )
            print(line, flush=True)
    print("One contrast:")
    for name, looks in designs.items():
        one = equal_arms_played(NORMAL, looks, many, arms=1)
        print(f"  {name:20} {one.wrong / many:6.2%} of {many}, covers {one.covered:.1%}")
    print(
        "Equal arms tuned on one seed: family-wise error of the rate used, and were it the best rate tried:"
    )
    for steepness in (0.4, 1.0, 2.5):
        for ratio in (0.1, 0.35, 1.0):
            used, best = (
                tuned_apart(r, count, ratio, steepness) for r in (rounds.tuned_rate, rounds.best_rate)
            )
            print(
                f"  noise of a trial {ratio:4} of the curvature, {steepness:3} times as steep above the optimum: "
                f"{used:.1%}, {best:.1%} of {count}",
                flush=True,
            )
    print("One arm of 1, 3 or 7 differs by the detectable effect, found in (nominal 80 %):")
    for name, looks in designs.items():
        rates = ", ".join(f"{found(looks, many, arms, ratio=0.5):.1%}" for arms in (1, 3, 7))
        effects = ", ".join(f"{operating.detectable(ALPHA / arms, looks):.2f}" for arms in (1, 3, 7))
        print(f"  {name:20} {rates}  (effects {effects} SD)")
    print("Differences as in published ablations, against the fixed design on the same seeds:")
    for name, looks in list(designs.items())[1:]:
        cost, same = raced(looks, count // 2)
        print(
            f"  {name:20} by the program, {count // 2} studies of 1 to 3 contrasts: {cost:.1%} of the confirm "
            f"trials, same verdict {same:.1%}",
            flush=True,
        )
        for arms in (1, 3, 7):
            for ratio in RATIOS:
                r = race(looks, many // 4, arms, ratio)
                print(
                    f"  {name:20} {arms} contrasts, margin {ratio} SD: {r.cost:.1%} of the confirm trials "
                    f"({r.study:.1%} with the search), same verdict {r.same:.1%}, both true {r.both:.1%}, "
                    f"contradictions {r.opposite} (fixed again on other seeds: same {r.again:.1%}), "
                    f"covers {r.covered:.1%}",
                    flush=True,
                )


if __name__ == "__main__":
    main(*(int(value) for value in sys.argv[1:]))
