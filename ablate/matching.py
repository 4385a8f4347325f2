"""`budget.match` in a model's own currencies: sizes of an arm, solved anew until it has what the baseline has.

Parameters, active parameters and bytes of cache are properties of a model, not of how long it trains. An arm
that has more or less of them than the baseline gets other sizes, as few and as little changed as will do.
"""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ablate import schema
from ablate.errors import BadInputError
from ablate.variant import Variant
from components import registry

KEYS: dict[str, tuple[str, ...]] = {
    "params": ("moe_intermediate_size", "n_routed_experts", "head_dim", "q_lora_rank", "o_lora_rank"),
    "active_params": ("moe_intermediate_size", "head_dim", "q_lora_rank", "o_lora_rank"),
    "kv_bytes": ("sliding_window", "head_dim", "index_head_dim", "num_key_value_heads"),
}
"""What `budget.resolve=auto` may change, by currency. Width and depth of the whole model are not among them:
they change the shape of nearly every tensor, and arms would no longer share an initialisation."""

WORDS = {
    "flops": "training FLOPs",
    "tokens": "training tokens",
    "params": "parameters, and training FLOPs",
    "active_params": "active parameters, and training FLOPs",
    "kv_bytes": "KV bytes, and training FLOPs",
    "wall_clock": "training time, as measured",
}
"""What `budget.match` makes equal, in words."""

BRIEF = {
    "flops": "FLOPs",
    "tokens": "tokens",
    "params": "params and FLOPs",
    "active_params": "active params and FLOPs",
    "kv_bytes": "KV bytes and FLOPs",
    "wall_clock": "wall time",
}
"""As `WORDS`, for a sentence that has many figures."""

ALLOWED = (
    *dict.fromkeys(itertools.chain.from_iterable(KEYS.values())),
    "n_shared_experts",
    "num_attention_heads",
    "index_n_heads",
    "hidden_size",
    "num_hidden_layers",
)
"""Keys of `model` that `budget.resolve` may name."""

REACH = 16
"""Times that a size may become larger or smaller."""

NEARBY = 16
"""Values of a first size from which a second one is solved, back from the farthest that is worth a look."""

Sizes = Mapping[str, int]
Resolved = dict[str, tuple[int, int]]
"""Key of `model` to its value before and after."""


def resolve(
    run: schema.Run,
    arms: Mapping[str, tuple[schema.Run, Variant]],
    build: Callable[[schema.Run, str], Variant],
) -> tuple[dict[str, tuple[schema.Run, Variant]], dict[str, Resolved]]:
    """The arms with sizes by which each has what the baseline has, and what was changed.

    Args:
        build: variant of an arm's configuration; raises BadInputError where it does not work.

    Raises:
        BadInputError: keys that cannot be re-solved, or an arm that nothing allowed brings within the tolerance.
    """
    budget = run.budget
    if budget.match not in KEYS:
        if budget.resolve != "auto":
            raise BadInputError(
                f"budget.resolve={budget.resolve} has no effect with budget.match={budget.match}. "
                f"Allowed: auto, or budget.match={', '.join(KEYS)}."
            )
        return dict(arms), {}
    keys = _keys(budget)
    target = _amount(arms[run.sweep.baseline][1], budget.match, run.trainer.seq_len)
    made, changes = dict(arms), dict[str, Resolved]()
    for name, (applied, variant) in arms.items():
        search = _Search(run, name, applied, variant, build, target)
        if search.fits({}):
            continue
        found = search.best(keys)
        made[name] = found.run, found.variant
        changes[name] = {key: (search.start[key], size) for key, size in found.sizes.items()}
    return made, changes


def steps(
    match: str, allowance: int, step_mflop: Mapping[str, int], step_seconds: Mapping[str, float]
) -> dict[str, int]:
    """Steps of every arm that `allowance` MFLOP pay for, so that arms have equal FLOPs, tokens or time.

    Args:
        step_seconds: needed for `wall_clock` only. All arms train as long as the quickest takes to its allowance.
    """
    counts = {name: allowance // mflop for name, mflop in step_mflop.items()}
    if match == "tokens":
        return dict.fromkeys(counts, min(counts.values()))
    if match == "wall_clock":
        limit = min(count * step_seconds[name] for name, count in counts.items())
        # rounding must not take the last step from the arm that sets the limit
        return {name: math.floor(limit / step_seconds[name] + 1e-9) for name in counts}
    return counts


def told(changes: Resolved) -> list[str]:
    """Changes for people: `moe_intermediate_size 64 → 52`."""
    return [f"{key} {before} → {after}" for key, (before, after) in changes.items()]


def _keys(budget: schema.Budget) -> tuple[str, ...]:
    if budget.resolve == "auto":
        return KEYS[budget.match]
    named = [budget.resolve] if isinstance(budget.resolve, str) else budget.resolve
    if not isinstance(named, list) or not named:
        raise BadInputError(
            f"budget.resolve={budget.resolve} names nothing. Allowed: auto, or a list of {', '.join(ALLOWED)}."
        )
    for name in named:
        if str(name).removeprefix("model.") not in ALLOWED:
            error = registry.unknown("size that can be re-solved", str(name), ALLOWED)
            raise BadInputError(f"budget.resolve={budget.resolve}: {error}")
    return tuple(dict.fromkeys(str(name).removeprefix("model.") for name in named))


def _amount(variant: Variant, currency: str, seq_len: int) -> int:
    return getattr(variant.costs(seq_len).total, currency)


@dataclass(frozen=True)
class _Found:
    """An arm with other sizes; `run` and `variant` are checked."""

    sizes: Sizes
    run: schema.Run
    variant: Variant
    amount: int


class _Search:
    """Sizes of one arm. Every currency grows with every size, so a size is found by bisection.

    Attributes:
        start: sizes that the arm has.
    """

    def __init__(
        self,
        run: schema.Run,
        name: str,
        applied: schema.Run,
        variant: Variant,
        build: Callable[[schema.Run, str], Variant],
        target: int,
    ) -> None:
        self._run, self._name, self._applied, self._build = run, name, applied, build
        self._target, self._room = target, run.budget.tolerance * target
        self._known: dict[tuple[tuple[str, int], ...], _Found | None] = {}
        self.start = {key: getattr(variant.dims, key) for key in ALLOWED}

    def fits(self, sizes: Sizes) -> bool:
        """Whether the arm has what the baseline has, up to the tolerance."""
        found = self._at(sizes)
        return found is not None and abs(found.amount - self._target) <= self._room

    def best(self, keys: tuple[str, ...]) -> _Found:
        """The smallest change that fits: of one size if that will do, else of two.

        Of two sizes one goes just past the target or as far as it may, else up to `NEARBY` values less, and
        the other closes the rest.

        Raises:
            BadInputError: nothing does; names what comes nearest.
        """
        usable = [key for key in keys if self.start[key] > 0]  # of what an arm is without there is no size
        tried = [found for key in usable for found in self._around(key, {})]
        for before in (0, 1, NEARBY):
            if before:
                tried += (
                    found
                    for first, second in itertools.permutations(usable, 2)
                    for half in self._around(first, {}, before)
                    for found in self._around(second, half.sizes)
                )
            if fitting := [found for found in tried if self.fits(found.sizes)]:
                return min(fitting, key=lambda found: (self._change(found.sizes), self._off(found)))
        raise self._unreachable(keys, tried)

    def _at(self, sizes: Sizes) -> _Found | None:
        """The arm with some sizes replaced; None where components refuse them."""
        key = tuple(sorted(sizes.items()))
        if key not in self._known:
            model = dataclasses.replace(self._applied.model, **sizes)
            run = dataclasses.replace(self._applied, model=model)
            try:
                variant = self._build(run, self._name)
            except BadInputError:
                self._known[key] = None
            else:
                amount = _amount(variant, self._run.budget.match, self._run.trainer.seq_len)
                self._known[key] = _Found(dict(sizes), run, variant, amount)
        return self._known[key]

    def _around(self, key: str, given: Sizes, before: int = 1) -> list[_Found]:
        """The arm with `key` at the first legal size that reaches the target's near side, and at those before.

        Where no size within reach gets there: at the farthest, and those before.
        """
        start, here = self.start[key], self._at(given)
        if here is None:
            return []
        grows = here.amount < self._target
        span = start * (REACH - 1) if grows else start - max(1, start // REACH)
        sign = 1 if grows else -1
        near = self._target - sign * self._room

        def legal(distances: Iterable[int]) -> _Found | None:
            tried = (self._at({**given, key: start + sign * distance}) for distance in distances)
            return next((found for found in tried if found is not None), None)

        def reaches(distance: int) -> bool:
            found = legal(range(distance, span + 1))
            return found is None or sign * (found.amount - near) >= 0

        distance = bisect.bisect_left(range(1, span + 1), True, key=reaches) + 1
        beyond = legal(range(distance, span + 1))
        short = (self._at({**given, key: start + sign * step}) for step in range(distance - 1, 0, -1))
        some = itertools.islice((found for found in short if found is not None), before)
        return [*([beyond] if beyond is not None else []), *some]

    def _change(self, sizes: Sizes) -> float:
        """How much is changed: sum over sizes of the logarithm of their ratio."""
        return round(sum(abs(math.log(size / self.start[key])) for key, size in sizes.items()), 9)

    def _off(self, found: _Found) -> int:
        return abs(found.amount - self._target)

    def _unreachable(self, keys: tuple[str, ...], tried: list[_Found]) -> BadInputError:
        budget, base = self._run.budget, self._run.sweep.baseline
        nearest = min(tried, key=lambda found: (self._off(found), self._change(found.sizes)), default=None)
        nearest = nearest or self._at({})
        assert nearest is not None  # the arm as it is has been built before
        off = nearest.amount / self._target - 1
        changes = told({key: (self.start[key], size) for key, size in nearest.sizes.items()})
        further = [key for key in ALLOWED if key not in keys and self._moves(key)]
        freed = f", or free more in budget.resolve: [{', '.join([*keys, *further])}]" if further else ""
        return BadInputError(
            f"arm '{self._name}': budget.match={budget.match} asks for {self._target:,}, as '{base}' has, within "
            f"{budget.tolerance:.3g}. The nearest that {', '.join(keys)} reach is {nearest.amount:,} ({off:+.2%}): "
            f"{', '.join(changes) or 'as it is'}. Allowed: budget.tolerance={math.ceil(abs(off) * 1e4) / 1e4:g} or "
            f"more{freed}, or another baseline."
        )

    def _moves(self, key: str) -> bool:
        """Whether a size, by itself, brings the arm nearer to the target."""
        here = self._at({})
        assert here is not None
        found = self._around(key, {}) if self.start[key] > 0 else []
        return any(self._off(other) < self._off(here) for other in found)
