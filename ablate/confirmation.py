"""Where a confirmation with looks stands: which pairs each arm's looks have seen, and who needs more seeds.

The scheduler asks for the seeds and the verdict for the looks. Both are played again from the ended trials, so
what stopped an arm is what its verdict rests on; a pair that no planned look has seen decides nothing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ablate import sequential, stats
from ablate.records import Plan
from ablate.sequential import Decision
from ablate.stats import Contrast

Ended = Mapping[tuple[str, int], float | None]
"""(arm, replicate) of every ended confirm trial to its loss; None where it failed."""


@dataclass(frozen=True)
class Looks:
    """Attributes:
    seen: contrasts with the baseline at every arm's looks so far, none for an arm that is not confirmed.
    decisions: what the latest look of all led to, by arm that was looked at.
    wanted: seeds by arm that the next look takes, the baseline included; empty when all is decided.
    """

    seen: dict[str, list[Contrast]]
    decisions: dict[str, Decision]
    wanted: dict[str, int]


def play(plan: Plan, arms: Iterable[str], ended: Ended) -> Looks:
    """The looks that the ended trials allow.

    Args:
        arms: those that are confirmed, the baseline among them.
    """
    settings, base = plan.run.sweep.confirm, plan.baseline.name
    looks = tuple(settings.looks)
    seen: dict[str, list[Contrast]] = {arm.name: [] for arm in plan.arms if not arm.is_baseline}
    live = [name for name in seen if name in set(arms)]
    decisions: dict[str, Decision] = {}
    for n in looks:
        if not live:
            break
        wanted = dict.fromkeys([base, *live], n)
        if any((name, i) not in ended for name in wanted for i in range(n)):
            return Looks(seen, decisions, wanted)
        for name in live:
            pairs = [(ended[name, i], ended[base, i]) for i in range(n)]
            both = [(a, b) for a, b in pairs if a is not None and b is not None]
            if both:
                own, other = zip(*both, strict=True)
                seen[name].append(stats.contrast(own, other, settings.margin))
        judged = {name: past for name, past in seen.items() if past}
        decisions = sequential.decide(seen, settings.alpha, settings.margin, looks) if judged else {}
        live = [name for name in live if seen[name] and decisions[name] == "continue"]
    return Looks(seen, {name: decisions[name] for name in decisions if seen[name]}, {})
