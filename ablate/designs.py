"""Designs: from the factors of a sweep to its arms, and what these arms can tell apart. Methodology §C1.

A factor has two levels, `with` and `without` it, each a set of overrides; with `one_factor` it has any number. Designs
that cross factors are regular: every effect that they estimate is orthogonal to every other, or is the same.
"""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ablate.errors import BadInputError
from ablate.schema import Sweep

FULL, BASE = "full", "base"
"""Arms with all factors on, and with all off."""

AS_CONFIGURED = "as_configured"
"""The baseline of an open search that names none: the configuration as it is."""

CROSSED = ("full_factorial", "fractional_factorial")
"""Designs whose effects are means over the levels of all other factors."""

FACTORS = {"leave_one_out": (1, 40), "add_one_in": (1, 40), "full_factorial": (2, 6)}
FACTORS |= {"one_factor": (1, 1), "fractional_factorial": (3, 11)}
"""Fewest and most factors of a design."""

Levels = dict[str, tuple[bool, ...]]
"""Arm to whether each factor is on, in the order of the sweep."""


@dataclass(frozen=True)
class Fraction:
    """A regular two-level fraction: the last factors are products of the first.

    Attributes:
        generators: for each generated factor, the indices of the factors whose product it is.
        resolution: length of the shortest word of the defining relation; None where nothing is aliased.
    """

    basic: int
    generators: tuple[tuple[int, ...], ...]
    resolution: int | None

    @property
    def runs(self) -> int:
        """Combinations of levels."""
        return 2**self.basic

    def levels(self) -> Iterator[tuple[bool, ...]]:
        """Levels of all factors, by run; the first run has all on, since no generator has a minus sign."""
        for basic in itertools.product((True, False), repeat=self.basic):
            signs = (sum(not basic[i] for i in word) % 2 == 0 for word in self.generators)
            yield (*basic, *signs)


def arms(design: str, factors: Mapping[str, Any], resolution: int) -> tuple[dict[str, Any], str]:
    """Arms of a design by name, and which is the baseline unless the sweep says so.

    Raises:
        BadInputError: too few or too many factors, levels that are none, or two that set the same key.
    """
    least, most = FACTORS[design]
    if not least <= len(factors) <= most:
        raise BadInputError(
            f"sweep.factors has {len(factors)} factors. Allowed with sweep.design={design}: "
            + (f"{least}." if least == most else f"{least} to {most}.")
        )
    if design == "one_factor":
        made = _by_level(*next(iter(factors.items())))
        return made, next(iter(made))
    if taken := {FULL, BASE} & factors.keys():
        raise BadInputError(f"sweep.factors.{taken.pop()}: arms of a design have that name. Choose another.")
    sets = [_switch(name, given) for name, given in factors.items()]
    named = _levels(design, list(factors), resolution)
    made = {arm: _overrides(arm, list(factors), sets, on) for arm, on in named.items()}
    return made, BASE if design == "add_one_in" else FULL


def levels(sweep: Sweep) -> Levels:
    """Which factors are on in which arm; empty where a sweep names its arms or has a single factor."""
    if sweep.design in ("arms", "one_factor", "search"):
        return {}
    return _levels(sweep.design, list(sweep.factors), sweep.resolution)


def _levels(design: str, factors: Sequence[str], resolution: int) -> Levels:
    k = len(factors)
    if design == "leave_one_out":
        return {FULL: (True,) * k} | {
            f"no_{name}": tuple(j != i for j in range(k)) for i, name in enumerate(factors)
        }
    if design == "add_one_in":
        return {BASE: (False,) * k} | {
            name: tuple(j == i for j in range(k)) for i, name in enumerate(factors)
        }
    found = Fraction(k, (), None) if design == "full_factorial" else fraction(k, resolution)
    return {_combination(factors, on): on for on in found.levels()}


def _combination(factors: Sequence[str], on: Sequence[bool]) -> str:
    if all(on) or not any(on):
        return FULL if all(on) else BASE
    return "+".join(name for name, is_on in zip(factors, on, strict=True) if is_on)


@functools.cache
def fraction(k: int, resolution: int) -> Fraction:
    """The regular fraction of `k` factors with the fewest runs at that resolution or a higher one.

    Of those with as few runs, one of the highest resolution, found by search over all generators.
    """
    for basic in range(2, k):
        for reached in range(k, resolution - 1, -1):
            words = _generators(k, basic, reached)
            if words is not None:
                generators = tuple(tuple(i for i in range(basic) if word >> i & 1) for word in words)
                return Fraction(basic, generators, reached)
    return Fraction(k, (), None)


def _generators(k: int, basic: int, resolution: int) -> list[int] | None:
    """Products of basic factors, as bits, whose defining relation has no word shorter than `resolution`."""
    products = sorted(range(1, 2**basic), key=lambda word: (-word.bit_count(), word))
    long = [word for word in products if word.bit_count() >= resolution - 1]

    def grow(chosen: list[int], group: list[int], start: int) -> list[int] | None:
        if basic + len(chosen) == k:
            return chosen
        for i in range(start, len(long)):
            word = long[i] | 1 << (basic + len(chosen))
            further = [word, *(word ^ other for other in group)]
            if min(w.bit_count() for w in further) >= resolution:
                found = grow([*chosen, long[i]], [*group, *further], i + 1)
                if found is not None:
                    return found
        return None

    return grow([], [], 0)


def terms(k: int) -> list[tuple[int, ...]]:
    """Main effects and two-way interactions of `k` factors, by indices."""
    return [(i,) for i in range(k)] + list(itertools.combinations(range(k), 2))


def aliases(named: Levels) -> dict[tuple[int, ...], list[tuple[int, ...]]]:
    """Main effects and two-way interactions that a crossed design cannot tell from each other.

    A term to those that it is the same as; only the first of each set is a key. Generators have no minus
    sign, so aliased effects add up.
    """
    k = len(next(iter(named.values())))
    found: dict[tuple[bool, ...], list[tuple[int, ...]]] = {}
    for term in terms(k):
        column = tuple(sum(not on[i] for i in term) % 2 == 0 for on in named.values())
        found.setdefault(column, []).append(term)
    return {same[0]: same[1:] for same in found.values()}


def resolution(sweep: Sweep) -> int | None:
    """Resolution of a fraction; None for other designs, and where the fraction is the whole."""
    if sweep.design != "fractional_factorial":
        return None
    return fraction(len(sweep.factors), sweep.resolution).resolution


def term_name(term: Sequence[int], factors: Sequence[str]) -> str:
    """A main effect or an interaction as it is written."""
    return " × ".join(factors[i] for i in term)


def describe(sweep: Sweep) -> str:
    """The design in one sentence, with what it cannot tell apart; empty where arms are just named."""
    k = len(sweep.factors)
    if sweep.design == "arms":
        return ""
    if sweep.searches:
        search = sweep.search
        control = f", {search.control:.0%} of them drawn at random" if search.control else ""
        return (
            f"open search: {search.trials} models proposed by {search.sampler}{control}; the best "
            f"{search.finalists} are tuned and confirmed as the baseline is"
        )
    if sweep.design == "one_factor":
        return f"one factor, {next(iter(sweep.factors))}, at {len(sweep.arms)} levels"
    if sweep.design == "leave_one_out":
        return f"leave one out: each of {k} factors off while all others are on"
    if sweep.design == "add_one_in":
        return f"add one in: each of {k} factors on while all others are off"
    named = levels(sweep)
    reached = resolution(sweep)
    if reached is None:
        return f"full factorial: all {len(named)} combinations of {k} factors, nothing is aliased"
    names = list(sweep.factors)
    chosen = fraction(k, sweep.resolution)
    made = ", ".join(
        f"{name} = {term_name(word, names)}"
        for name, word in zip(names[chosen.basic :], chosen.generators, strict=True)
    )
    sets = [[first, *rest] for first, rest in aliases(named).items() if rest]
    told = "; ".join(" = ".join(term_name(term, names) for term in same) for same in sets)
    return (
        f"fractional factorial: {len(named)} of {2**k} combinations of {k} factors ({made}), "
        f"resolution {roman(reached)}; "
        + (f"aliased: {told}" if told else "no main effect or two-way interaction is aliased with another")
    )


def roman(number: int) -> str:
    """A resolution as it is written in the literature."""
    return {3: "III", 4: "IV", 5: "V", 6: "VI", 7: "VII", 8: "VIII", 9: "IX", 10: "X", 11: "XI"}[number]


def _by_level(factor: str, given: Any) -> dict[str, Any]:
    """Arms of one factor: a list holds values of a configuration key, a mapping names sets of overrides."""
    if isinstance(given, Mapping):
        made = {str(name): dict(overrides or {}) for name, overrides in given.items()}
    elif isinstance(given, list | tuple):
        made = {f"{factor.rpartition('.')[2]}_{value}": {factor: value} for value in given}
    else:
        raise BadInputError(
            f"sweep.factors.{factor}={given} has no levels. Allowed: a list of values of a configuration key, "
            "such as {model.index_topk: [4, 8]}, or names of levels to their overrides."
        )
    if len(made) < 2:
        raise BadInputError(f"sweep.factors.{factor} has {len(made)} level; a comparison needs at least 2.")
    return made


def _switch(factor: str, given: Any) -> dict[bool, dict[str, Any]]:
    """Overrides of a factor's two levels; a level that is left out is the configuration as it is."""
    wrong = (
        not isinstance(given, Mapping)
        or not set(given) <= {"with", "without"}
        or given.get("with") == given.get("without")
    )
    if wrong or not all(isinstance(level, Mapping) for level in given.values()):
        raise BadInputError(
            f"sweep.factors.{factor}={given} has no two levels. Allowed: {{with: OVERRIDES, without: OVERRIDES}}, "
            "such as {without: {residual: prenorm}}; a level that is left out is the configuration as it is."
        )
    return {True: dict(given.get("with", {})), False: dict(given.get("without", {}))}


def _overrides(
    arm: str, factors: Sequence[str], sets: Sequence[dict[bool, dict[str, Any]]], on: Sequence[bool]
) -> dict[str, Any]:
    """What an arm sets, all of its factors together."""
    made: dict[str, Any] = {}
    setter: dict[str, str] = {}
    for factor, switch, is_on in zip(factors, sets, on, strict=True):
        for key, value in switch[is_on].items():
            if key in made and made[key] != value:
                raise BadInputError(
                    f"sweep.factors: in arm '{arm}' both {setter[key]} and {factor} set {key} "
                    f"({made[key]} and {value}), so they cannot be crossed. Make them levels of one factor."
                )
            made[key], setter[key] = value, factor
    return made
