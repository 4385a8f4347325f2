"""Which trials a study wants next: rounds of learning rates, then fresh seeds. Pure functions.

The search begins with the same grid for every arm. A further round gives every arm exactly one more rate,
so tuning stays equal: outward for an arm whose best rate is the lowest or highest tried, and beside the
best for the others.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ablate import confirmation, stats
from ablate.records import Plan
from ablate.specs import Phase

_NEAR = 4.01
"""Factor of the best rate within which losses are taken for a quadratic; a little over two steps of a grid of 2."""

Tried = tuple[float, float | None, str]
"""Learning rate, loss (capped where it diverged, None where it failed), state of the trial."""


@dataclass(frozen=True)
class Slot:
    """A trial's place in the plan. `key` is unique within a study."""

    key: str
    phase: Phase
    arm: str
    replicate: int
    seed: int
    lr: float


@dataclass(frozen=True)
class Rounds:
    """Slots of all rounds so far, and whether there will be no more."""

    slots: tuple[Slot, ...]
    finished: bool
    reason: str = ""


def search(plan: Plan, tried: Mapping[str, Tried]) -> Rounds:
    """The search as far as the ended trials decide it.

    Args:
        tried: ended search trials by the key of their slot.
    """
    names = [arm.name for arm in plan.arms]
    settings = plan.run.sweep.search
    rates = {name: list(plan.lr_grid) for name in names}
    slots = [_search_slot(plan, name, i, lr) for i, lr in enumerate(plan.lr_grid) for name in names]
    for extension in range(settings.extensions + 1):
        if any(slot.key not in tried for slot in slots):
            return Rounds(tuple(slots), False)
        if extension == settings.extensions:
            break
        history = {name: [tried[_key(name, i)] for i in range(len(rates[name]))] for name in names}
        if not any(at_edge(history[name]) for name in names):
            return Rounds(tuple(slots), True, "every arm's best learning rate lies inside its grid")
        for name in names:
            lr = next_rate(history[name], settings.factor)
            slots.append(_search_slot(plan, name, len(rates[name]), lr))
            rates[name].append(lr)
    return Rounds(tuple(slots), True, f"{settings.extensions} extensions of the grid are used up")


def confirm(plan: Plan, rates: Mapping[str, float], ended: confirmation.Ended) -> tuple[Slot, ...]:
    """Trials on fresh seeds, all arms of one seed together. Arms without a rate are left out.

    Args:
        ended: losses of ended confirm trials. With looks they decide which arms get more seeds.
    """
    wanted = dict.fromkeys(rates, len(plan.confirm_seeds))
    if plan.run.sweep.confirm.looks:
        wanted = confirmation.play(plan, rates, ended).wanted
    return tuple(
        Slot(f"confirm/{arm.name}/{i}", "confirm", arm.name, i, seed, rates[arm.name])
        for i, seed in enumerate(plan.confirm_seeds)
        for arm in plan.arms
        if i < wanted.get(arm.name, 0)
    )


def best_rate(tried: Iterable[Tried]) -> float | None:
    """The learning rate of the lowest loss among trials that completed; the lower rate of equals."""
    complete = [(loss, lr) for lr, loss, state in tried if state == "complete" and loss is not None]
    return min(complete)[1] if complete else None


def tuned_rate(tried: Sequence[Tried]) -> float | None:
    """The learning rate that an arm is confirmed with: the optimum of its curve, to two digits.

    The best of a few single trials is luck as much as optimum. Arms that are the same model would often be
    confirmed at different rates by it, and then truly differ, which no interval over seeds allows for.
    Without an optimum among the rates tried, or with the best at the edge, it is the best; and it is never
    further from that than a factor of two.
    """
    best, found = best_rate(tried), quadratic(tried)
    if best is None or found is None or at_edge(tried):
        return best
    rates = [lr for lr, _, state in tried if state == "complete"]
    if not min(rates) < 2**found.x < max(rates):
        return best
    return float(f"{min(max(2**found.x, best / 2), best * 2):.2g}")


def quadratic(tried: Iterable[Tried]) -> stats.Optimum | None:
    """The quadratic in log2 of the rate through what completed within a factor of four of the best.

    None where that is not convex, or fewer than three.
    """
    complete = [(lr, loss) for lr, loss, state in tried if state == "complete" and loss is not None]
    best = min(complete, key=lambda point: point[1], default=(1.0, 0.0))[0]
    near = [(lr, loss) for lr, loss in complete if best / _NEAR <= lr <= best * _NEAR]
    return stats.quadratic_optimum([math.log2(lr) for lr, _ in near], [loss for _, loss in near])


def at_edge(tried: Sequence[Tried]) -> bool:
    """Whether the best rate is the lowest or highest with a loss, so that the optimum may lie beyond."""
    losses = _losses(tried)
    if not losses:
        return True
    best = min(losses, key=lambda lr: (losses[lr], lr))
    return best in (min(losses), max(losses))


def next_rate(tried: Sequence[Tried], factor: float) -> float:
    """One more learning rate for an arm: outward where its best is at the edge, else beside the best.

    Beside means half a grid step (the square root of `factor`) towards the neighbour with the lower loss,
    or away from it where that was tried; later, between the best and that neighbour.
    """
    used = [lr for lr, _, _ in tried]
    losses = _losses(tried)
    if not losses:
        return _fresh(min(used), 1 / factor, used)
    rates = sorted(losses)
    best = min(rates, key=lambda lr: (losses[lr], lr))
    i = rates.index(best)
    if i == 0:
        return _fresh(best, 1 / factor, used)
    if i == len(rates) - 1:
        return _fresh(best, factor, used)
    lower, upper = rates[i - 1], rates[i + 1]
    up = losses[upper] < losses[lower]
    half = math.sqrt(factor)
    for lr in (best * half, best / half) if up else (best / half, best * half):
        if not _near(lr, used):
            return _round(lr)
    between = math.sqrt(best * (upper if up else lower))
    return _fresh(between, math.sqrt(between / best), used)


def _losses(tried: Iterable[Tried]) -> dict[float, float]:
    return {lr: loss for lr, loss, state in tried if loss is not None and state != "failed"}


def _fresh(lr: float, step: float, used: Sequence[float]) -> float:
    """`lr`, moved by factors of `step` until it is new."""
    while _near(lr, used):
        lr *= step
    return _round(lr)


def _near(lr: float, used: Sequence[float]) -> bool:
    return any(math.isclose(lr, other, rel_tol=0.01) for other in used)


def _round(lr: float) -> float:
    """Six digits: the same rate reached on two ways must be the same trial."""
    return float(f"{lr:.6g}")


def _key(arm: str, index: int) -> str:
    return f"search/{arm}/{index}"


def _search_slot(plan: Plan, arm: str, index: int, lr: float) -> Slot:
    return Slot(_key(arm, index), "search", arm, 0, plan.search_seed, lr)
