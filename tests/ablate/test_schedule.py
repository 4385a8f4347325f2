"""Schedules: grammar, official lists, shortest text, and what errors say."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ablate.errors import BadInputError
from ablate.schedule import canonical, parse
from components.spec import Layer

DEFAULTS: dict[str, dict[str, Any]] = {
    "dense": {},
    "sliding_window": {},
    "csa": {"ratio": 0, "overlap": True, "topk": 8},
    "hca": {"ratio": 0},
}


def tokens(value: Any, length: int, prediction: int = 0) -> list[tuple[str, int]]:
    return [(layer.attention, layer.ratio) for layer in parse(value, length, DEFAULTS, prediction)]


def test_grammar() -> None:
    layers = parse("swa*2,(csa@4,hca@112)*12,csa@4,swa", 28, DEFAULTS)
    assert [layer.index for layer in layers] == list(range(28))
    assert layers[0] == Layer(index=0, attention="sliding_window")
    assert layers[2] == Layer(index=2, attention="csa", ratio=4, overlap=True, topk=8)
    assert layers[3] == Layer(index=3, attention="hca", ratio=112)
    assert layers[27].attention == "sliding_window"
    assert parse(" swa * 2 , dense ", 3, DEFAULTS)[2].attention == "dense"
    assert tokens("((swa,hca@8)*2,dense)*2", 10)[4] == ("dense", 0)


def test_options_change_one_thing_only() -> None:
    plain, wide, narrow = parse("csa@4,csa@4:k32,csa@8:no_overlap", 3, DEFAULTS)
    assert (plain.topk, wide.topk, narrow.topk) == (8, 32, 8)
    assert (plain.overlap, wide.overlap, narrow.overlap) == (True, True, False)
    assert narrow.ratio == 8


def test_official_integers_in_every_form() -> None:
    wanted = [("sliding_window", 0), ("csa", 4), ("hca", 128)]
    for value in ([0, 4, 128], "[0, 4, 128]", "0,4,128", ["swa", 4, "hca@128"], ["0", "csa@4,hca@128"]):
        assert tokens(value, 3) == wanted


def test_official_lists_may_describe_prediction_layers_too() -> None:
    assert tokens([0, 4, 128, 0], 3, prediction=1) == tokens([0, 4, 128], 3)
    assert len(tokens([0, 4, 128, 0], 4, prediction=1)) == 4
    with pytest.raises(BadInputError, match="must be 0"):
        tokens([0, 4, 128, 4], 3, prediction=1)
    with pytest.raises(BadInputError, match="4 entries, expected 3"):
        tokens([0, 4, 128, 0], 3)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("swa*27", "has 27 entries, expected 28"),
        ("swa*27,cas@4", "'csa'"),
        ("swa*27,hca@abc", "'hca@abc' is not a token"),
        ("swa*27,csa", "needs a ratio"),
        ("swa*27,csa@0", "needs a ratio"),
        ("swa*27,swa@4", "does not compress"),
        ("swa*27,csa@4:no_overlp", "Did you mean 'no_overlap'"),
        ("swa*27,csa@4:k0", "no option 'k0'"),
        ("swa*27,hca@8:k4", "Allowed: none"),
        ("(swa*28", "never closed"),
        ("swa*28)", "unexpected ')'"),
        ("swa**28", "not a count"),
        ("swa*0,swa*28", "not a count"),
        ("swa*99999999999", "not a count"),
        ("swa*27,", "empty"),
        ("", "empty"),
        ([], "not a schedule"),
        (7, "not a schedule"),
        (None, "not a schedule"),
        ([0, 4.5], "4.5 is neither"),
        ([True] * 28, "True is neither"),
    ],
)
def test_errors_name_the_key_the_value_and_the_cure(value: Any, said: str) -> None:
    with pytest.raises(BadInputError) as caught:
        parse(value, 28, DEFAULTS)
    assert "model.compress_ratios" in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("text", "shortest"),
    [
        ("swa,swa,csa@4,hca@112,csa@4,hca@112,csa@4,swa", "swa*2,(csa@4,hca@112)*2,csa@4,swa"),
        ("swa*2,(csa@4,hca@112)*12,csa@4,swa", "swa*2,(csa@4,hca@112)*12,csa@4,swa"),
        ("hca@128*2,(csa@4,hca@128)*29,csa@4", "hca@128,(hca@128,csa@4)*30"),
        ("csa@4:overlap:k8,csa@4", "csa@4*2"),
        ("dense", "dense"),
        ("(swa*3,(hca@8,csa@4)*4)*3", "(swa*3,(hca@8,csa@4)*4)*3"),
    ],
)
def test_canonical_text_is_the_shortest(text: str, shortest: str) -> None:
    length = next(n for n in range(1, 200) if _fits(text, n))
    assert canonical(parse(text, length, DEFAULTS), DEFAULTS) == shortest


def _fits(text: str, length: int) -> bool:
    try:
        parse(text, length, DEFAULTS)
    except BadInputError:
        return False
    return True


layer = st.one_of(
    st.just({"attention": "dense"}),
    st.just({"attention": "sliding_window"}),
    st.builds(lambda ratio: {"attention": "hca", "ratio": ratio}, st.sampled_from([4, 8, 128])),
    st.builds(
        lambda ratio, overlap, topk: {"attention": "csa", "ratio": ratio, "overlap": overlap, "topk": topk},
        st.sampled_from([2, 4]),
        st.booleans(),
        st.sampled_from([8, 32]),
    ),
)
blocks = st.lists(
    st.tuples(st.lists(layer, min_size=1, max_size=3), st.integers(1, 4)), min_size=1, max_size=4
)


@settings(max_examples=150, deadline=None)
@given(blocks)
def test_canonical_text_reads_back_and_is_stable(parts: list[tuple[list[dict[str, Any]], int]]) -> None:
    fields = [one for block, times in parts for _ in range(times) for one in block]
    layers = tuple(Layer(index=index, **values) for index, values in enumerate(fields))
    text = canonical(layers, DEFAULTS)
    assert parse(text, len(layers), DEFAULTS) == layers
    assert canonical(parse(text, len(layers), DEFAULTS), DEFAULTS) == text
    assert len(text) <= len(",".join(canonical([one], DEFAULTS) for one in layers))


def test_a_hundred_layers_take_no_time() -> None:
    text = "swa*3,(csa@4,hca@128,csa@4:k32,hca@16)*24,dense"
    assert canonical(parse(text, 100, DEFAULTS), DEFAULTS) == text
