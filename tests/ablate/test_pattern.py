"""Families of schedules: what fits any depth, what is spread evenly, what changes in depth."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablate import config
from ablate.errors import BadInputError
from ablate.schedule import canonical, parse
from ablate.variant import Variant

DEFAULTS = {
    "dense": {},
    "sliding_window": {},
    "csa": {"ratio": 0, "overlap": True, "topk": 8},
    "hca": {"ratio": 0},
}
KINDS = ("dense", "swa", "csa@4", "hca@16", "hca@128")


def spelled(text: str, length: int) -> str:
    """Each layer's token, without repetition."""
    return ",".join(canonical([layer], DEFAULTS) for layer in parse(text, length, DEFAULTS))


@pytest.mark.parametrize(
    ("text", "length", "same"),
    [
        ("csa@4*", 5, "csa@4*5"),
        ("(csa@4,hca@128)*", 5, "csa@4,hca@128,csa@4,hca@128,csa@4"),
        ("swa*2,(csa@4,hca@112)*,swa", 28, "swa*2,(csa@4,hca@112)*12,csa@4,swa"),
        ("swa*2,(csa@4,hca@128)*", 43, "swa*2,(csa@4,hca@128)*20,csa@4"),
        ("hca@128*2,(csa@4,hca@128)*", 61, "hca@128*2,(csa@4,hca@128)*29,csa@4"),
        ("ramp(swa,csa@4,hca@128)", 3, "swa,csa@4,hca@128"),
        ("ramp(swa,csa@4,hca@128)*", 8, "swa*3,csa@4*3,hca@128*2"),
        ("dense,ramp(swa,csa@4)*5,dense*", 8, "dense,swa*3,csa@4*2,dense*2"),
        ("interleave(csa@4*2,hca@16*2)", 4, "csa@4,hca@16,csa@4,hca@16"),
        ("interleave(dense,swa*4)", 5, "swa*2,dense,swa*2"),
        ("swa,interleave(dense*2,swa*)", 9, "swa*2,dense,swa*3,dense,swa*2"),
        ("interleave(dense*2,(csa@4,hca@16)*)", 6, "csa@4,dense,hca@16,csa@4,dense,hca@16"),
        ("interleave(swa,dense)*3", 6, "(swa,dense)*3"),
    ],
)
def test_families_are_the_layers_they_stand_for(text: str, length: int, same: str) -> None:
    assert spelled(text, length) == spelled(same, length)
    assert canonical(parse(text, length, DEFAULTS), DEFAULTS) == canonical(
        parse(same, length, DEFAULTS), DEFAULTS
    )


counts = st.lists(st.integers(1, 6), min_size=1, max_size=4)


@settings(max_examples=100, deadline=None)
@given(counts, st.integers(0, 3))
def test_interleaving_is_even_everywhere(sizes: list[int], filled: int) -> None:
    """At every place each part has had its share of the layers so far, to less than one and a half."""
    parts = [f"{kind}*{size}" for kind, size in zip(KINDS, sizes, strict=False)]
    if filled < len(parts):
        parts[filled] = parts[filled].split("*")[0] + "*"
    total = sum(sizes)
    found = spelled(f"interleave({','.join(parts)})", total).split(",")
    assert Counter(found) == dict(zip(KINDS, sizes, strict=False))
    for place in range(1, total + 1):
        for kind, size in zip(KINDS, sizes, strict=False):
            assert abs(found[:place].count(kind) - place * size / total) < 1.5


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 5), st.integers(0, 20))
def test_a_ramp_goes_through_its_levels_once_in_nearly_equal_runs(levels: int, more: int) -> None:
    kinds = KINDS[:levels]
    found = spelled(f"ramp({','.join(kinds)})*", levels + more).split(",")
    runs = [(kind, len(list(run))) for kind, run in itertools.groupby(found)]
    assert [kind for kind, _ in runs] == list(kinds)
    lengths = [length for _, length in runs]
    assert sorted(lengths, reverse=True) == lengths
    assert lengths[0] - lengths[-1] <= 1


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 3), st.integers(0, 2), st.integers(0, 2), st.integers(1, 15))
def test_a_pattern_fills_any_depth_between_its_ends(unit: int, first: int, last: int, left: int) -> None:
    parts = [*["dense"] * first, f"({','.join(KINDS[2 : 2 + unit])})*", *["swa"] * last]
    found = spelled(",".join(parts), first + left + last).split(",")
    middle = found[first : first + left]
    assert found[:first] == ["dense"] * first
    assert found[first + left :] == ["swa"] * last
    assert middle == [KINDS[2 + i % unit] for i in range(left)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("swa*,dense*", "'swa*' and 'dense*' cannot both take what is left"),
        ("swa*8,csa@4*", "needs at least 9"),
        ("ramp(swa,csa@4,hca@8)*,dense*6", "needs at least 9"),
        ("(swa,csa@4*)*2", "'swa,csa@4*' takes what is left and cannot be repeated"),
        ("ramp(swa*,csa@4)*", "a ramp gives its levels their counts"),
        ("ramp(swa,csa@4,hca@8)*2", "not a count of layers from 3"),
        ("interleave(swa*7", "never closed"),
        ("ramp()*", "empty"),
        ("swa*x", "not a count"),
    ],
)
def test_errors_name_the_key_and_the_cure(text: str, said: str) -> None:
    with pytest.raises(BadInputError) as caught:
        parse(text, 8, DEFAULTS)
    assert f"model.compress_ratios={text}" in str(caught.value)
    assert said in str(caught.value)


def test_arms_give_patterns_that_fit_the_model() -> None:
    run = config.load(
        ["model=tiny", "model.compress_ratios=swa,interleave(dense*2,csa@4*)"], require_sweep=False
    )
    assert Variant.from_run(run, 300).schedule == "swa,csa@4,dense,csa@4*3,dense,csa@4"
    run = config.load(
        ["model=v4_mini_3b", "model.compress_ratios=swa*2,(csa@4,hca@112)*,swa"], require_sweep=False
    )
    preset = config.load(["model=v4_mini_3b"], require_sweep=False)
    assert Variant.from_run(run).fingerprint == Variant.from_run(preset).fingerprint
