"""Every probe against its definition: answers are found by plain search in what a model is shown, and nothing else."""

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
from scipy import stats

from components import registry
from components.probe.state_tracking import elements, products
from components.probing import Draws, Probe, Sequences
from components.spec import LEFT_OUT, search_space

ENTRIES = registry.entries("probe")
LENGTHS = {
    "mqar": 288,
    "block_recall": 272,
    "induction": 160,
    "span_copy": 192,
    "selective_copy": 256,
    "state_tracking": 40,
    "topk_saturation": 288,
    "p_hop": 192,
    "context_token": 40,
    "passkey": 96,
}
"""Tokens that the hardest settings of the grids have room in."""

every_probe: Callable[[Any], Any] = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)


def make(name: str, draws: Draws, vocab_size: int = 0, seq_len: int = 0, **options: Any) -> Sequences:
    entry = registry.get("probe", name)
    probe = cast(type[Probe], entry.cls)
    config, sizes = entry.config(options), (vocab_size or probe.vocab_size, seq_len or LENGTHS[name])
    probe.check(config, *sizes)
    return probe.make(config, *sizes, draws)


def asked(labels: np.ndarray) -> dict[int, int]:
    return {place: int(label) for place, label in enumerate(labels) if label != LEFT_OUT}


# ------------------------------------------------------------------------ answers, by definition


def recalled(tokens: list[int], keys: range) -> dict[int, int]:
    """What stood behind each key when it was first seen, wherever it is seen again."""
    known: dict[int, int] = {}
    found = {}
    for place, token in enumerate(tokens):
        if token in keys and token in known:
            found[place] = known[token]
        elif token in keys:
            known[token] = tokens[place + 1]
    return found


def mqar(tokens: list[int], vocab_size: int, options: dict[str, Any]) -> dict[int, int]:
    pairs, half = options.get("pairs", 4), vocab_size // 2
    found = recalled(tokens, range(1, half))
    counts = Counter(tokens)
    assert len(found) == pairs
    assert sum(counts[key] for key in range(1, half)) == 2 * pairs  # every key twice: nothing is overwritten
    assert [counts[value] for value in range(half, vocab_size) if counts[value]] == [1] * pairs
    first = next(place for place, token in enumerate(tokens) if token)
    assert all(tokens[first : first + 2 * pairs])
    assert first < options.get("phases", 16)
    return found


def block_recall(tokens: list[int], vocab_size: int, options: dict[str, Any]) -> dict[int, int]:
    block, distance = options.get("block", 4), options.get("distance", 32)
    last = len(tokens) - 1
    (place,) = (i for i in range(last) if tokens[i] == tokens[last])
    assert distance <= last - place < distance + block
    assert options.get("offset", -1) in (-1, place % block)
    return {last: tokens[place + 1]}


def induction(tokens: list[int], vocab_size: int, options: dict[str, Any]) -> dict[int, int]:
    place, last = (i for i, token in enumerate(tokens) if token == 0)
    assert last == len(tokens) - 1
    assert last - place >= options.get("distance", 2)
    return {last: tokens[place + 1]}


def span_copy(tokens: list[int], vocab_size: int, options: dict[str, Any]) -> dict[int, int]:
    span, distance = options.get("span", 8), options.get("distance", 32)
    mark, again = (i for i, token in enumerate(tokens) if token == 0)
    assert again - mark >= distance
    assert tokens[again + 1 :] == tokens[mark + 1 : mark + span]
    return {again + i: tokens[mark + 1 + i] for i in range(span)}


def passkey(tokens: list[int], vocab_size: int, options: dict[str, Any]) -> dict[int, int]:
    digits, depth, half = options.get("digits", 5), options.get("depth", -1.0), vocab_size // 2
    mark, again = (i for i, token in enumerate(tokens) if token == 0)
    key = tokens[mark + 1 : mark + 1 + digits]
    assert len(tokens) - again == digits
    assert tokens[again + 1 :] == key[:-1]
    assert all(token >= half for token in key)
    assert all(token < half for token in tokens[:mark] + tokens[mark + 1 + digits : again])
    if depth >= 0:
        assert mark == round(depth * (again - digits - 1))
    return {again + i: token for i, token in enumerate(key)}


def selective_copy(tokens: list[int], vocab_size: int, options: dict[str, Any]) -> dict[int, int]:
    begin, count = tokens.index(1), options.get("tokens", 16)
    said = [token for token in tokens[:begin] if token]
    assert len(said) == count == len(tokens) - begin
    assert not any(tokens[begin + 1 :])
    return {begin + i: token for i, token in enumerate(said)}


def state_tracking(tokens: list[int], vocab_size: int, options: dict[str, Any]) -> dict[int, int]:
    """By applying permutations to points, one after the other."""
    group = elements(options.get("group", "parity"))
    points = list(range(len(group[0])))
    found = {}
    for place, token in enumerate(tokens):
        points = [group[token][x] for x in points]
        found[place] = group.index(tuple(points))
    return found


def topk_saturation(tokens: list[int], vocab_size: int, options: dict[str, Any]) -> dict[int, int]:
    needles, count = options.get("needles", 8), options.get("asked", 4)
    begin = next(place for place, token in enumerate(tokens) if token)
    assert begin < options.get("phases", 16)
    stored = tokens[begin : begin + 4 * needles]
    assert sorted(stored[::2]) == [2] * needles + [3] * needles
    known = dict(zip(stored[1::2], stored[::2], strict=True))
    assert len(known) == 2 * needles
    places = [place for place, token in enumerate(tokens) if token == 1]
    assert places == list(range(len(tokens) - 2 * count, len(tokens), 2))
    return {place + 1: known[tokens[place + 1]] for place in places}


def p_hop(tokens: list[int], vocab_size: int, options: dict[str, Any]) -> dict[int, int]:
    def find(place: int) -> int | None:
        return next((j for j in range(place, 0, -1) if tokens[j - 1] == tokens[place]), None)

    found = {}
    for place in range(len(tokens)):
        at: int | None = place
        for _ in range(options.get("hops", 2)):
            at = None if at is None else find(at)
        if at is not None:
            found[place] = tokens[at]
    assert found
    return found


DEFINITIONS: dict[str, Callable[[list[int], int, dict[str, Any]], dict[int, int]]] = {
    "mqar": mqar,
    "block_recall": block_recall,
    "induction": induction,
    "span_copy": span_copy,
    "selective_copy": selective_copy,
    "state_tracking": state_tracking,
    "topk_saturation": topk_saturation,
    "p_hop": p_hop,
    "passkey": passkey,
}
"""All that can be answered from the sequence; `context_token` has to be known by heart."""
NOWHERE = ("state_tracking", "p_hop")
"""Probes whose answers do not stand at a place."""
GRID: list[tuple[str, dict[str, Any]]] = [
    (entry.name, {option: value})
    for entry in ENTRIES
    if entry.name in DEFINITIONS
    for option, bounds in search_space(entry.cls.Config).items()
    for value in bounds.choices
    if (entry.name, option, value) not in (("span_copy", "span", 32), ("span_copy", "distance", 16))
]
SPECIAL: list[tuple[str, dict[str, Any]]] = [
    ("mqar", {}),
    ("block_recall", {"offset": 0}),
    ("block_recall", {"offset": 3}),
    ("span_copy", {"span": 32, "distance": 64}),
    ("span_copy", {"span": 1, "distance": 16}),
    ("topk_saturation", {"needles": 2, "asked": 4, "phases": 1}),
]


@pytest.mark.parametrize(("name", "options"), [*GRID, *SPECIAL], ids=str)
def test_labels_are_what_a_search_finds_in_the_sequence(name: str, options: dict[str, Any]) -> None:
    usual = cast(type[Probe], registry.get("probe", name).cls).vocab_size
    vocab_size = 160 if options.get("pairs") == 64 or name == "state_tracking" else usual
    made = make(name, Draws(5, 0, 100), vocab_size, **options)
    assert made.inputs.shape == made.labels.shape == (100, LENGTHS[name])
    assert made.inputs.min() >= 0
    assert made.inputs.max() < vocab_size
    for tokens, labels, distances in zip(made.inputs.tolist(), made.labels, made.distances, strict=True):
        answers = asked(labels)
        assert answers == DEFINITIONS[name](tokens, vocab_size, options)
        back = {place: int(distance) for place, distance in enumerate(distances) if distance}
        assert set(back) == (set() if name in NOWHERE else set(answers))
        assert all(tokens[place - distance] == answers[place] for place, distance in back.items())


def test_modes_have_permutations_of_their_own_that_are_the_same_in_every_sequence() -> None:
    found: dict[tuple[int, int], set[int]] = {}
    for seed in (0, 2**64 - 1):
        made = make("context_token", Draws(seed, 0, 300), vocab_size=20, modes=3)
        assert (made.labels[:, 0] == LEFT_OUT).all()
        for tokens, labels in zip(made.inputs.tolist(), made.labels.tolist(), strict=True):
            assert tokens[0] < 3 <= min(tokens[1:])
            for token, label in zip(tokens[1:], labels[1:], strict=True):
                found.setdefault((tokens[0], token), set()).add(label)
    meanings = [[found[mode, token] for token in range(3, 20)] for mode in range(3)]
    for meaning in meanings:
        assert sorted(label for (label,) in meaning) == list(range(3, 20))
    assert all(a != b for a, b in itertools.combinations(meanings, 2))


def test_groups_are_groups_of_their_sizes() -> None:
    for group, size in {"parity": 2, "affine5": 20, "a5": 60, "s5": 120}.items():
        table = products(group)
        assert table.shape == (size, size)
        assert all(len(set(row)) == size for row in (*table.tolist(), *table.T.tolist()))
        a, b, c = np.random.default_rng(0).integers(size, size=(3, 200))
        assert np.array_equal(table[table[a, b], c], table[a, table[b, c]])


# ------------------------------------------------------------------------ streams


@every_probe
def test_a_sequence_is_a_function_of_seed_and_number_alone(entry: registry.Entry) -> None:
    whole = make(entry.name, Draws(7, 0, 50))
    for first, count in ((0, 1), (13, 4), (49, 1)):
        part = make(entry.name, Draws(7, first, count))
        assert np.array_equal(part.inputs, whole.inputs[first : first + count])
        assert np.array_equal(part.labels, whole.labels[first : first + count])


@every_probe
def test_no_sequence_comes_twice_in_a_stream_or_in_two(entry: registry.Entry) -> None:
    rows = [
        row.tobytes()
        for seed in (0, 1, 1001, 2**64 - 1)
        for row in make(entry.name, Draws(seed, 0, 3000), seq_len=96).inputs
    ]
    assert len(set(rows)) == len(rows)


def uniform(values: np.ndarray, count: int) -> bool:
    """Whether values from 0 to `count - 1` are equally frequent."""
    return stats.chisquare(np.bincount(values, minlength=count)).pvalue > 1e-4


def test_pairs_begin_in_every_phase_and_are_asked_at_every_distance_alike() -> None:
    made = make("mqar", Draws(3, 0, 4000), seq_len=64, pairs=1, power=1.0)
    begins = (made.inputs != 0).argmax(axis=1)
    gaps = ((made.labels != LEFT_OUT).argmax(axis=1) - begins - 2) // 2
    assert uniform(begins, 16)
    assert uniform(gaps, (64 - 15 - 2) // 2)
    assert uniform(made.inputs[np.arange(4000), begins] - 1, 31)
    assert uniform(made.inputs[np.arange(4000), begins + 1] - 32, 32)


def test_distances_follow_the_power_law_of_the_source() -> None:
    made = make("mqar", Draws(3, 0, 4000), seq_len=64, pairs=1, power=0.3)
    begins = (made.inputs != 0).argmax(axis=1)
    gaps = ((made.labels != LEFT_OUT).argmax(axis=1) - begins - 2) // 2
    weights = np.array([(g + 1) ** (0.3 - 1) for g in range((64 - 15 - 2) // 2)])
    expected = 4000 * weights / weights.sum()
    assert stats.chisquare(np.bincount(gaps, minlength=len(weights)), expected).pvalue > 1e-4


def test_which_key_is_asked_where_does_not_depend_on_where_it_stood() -> None:
    made = make("mqar", Draws(3, 0, 4000), seq_len=64, pairs=4)
    places = []
    for tokens, labels in zip(made.inputs.tolist(), made.labels, strict=True):
        place = min(asked(labels))
        begin = next(i for i, token in enumerate(tokens) if token)
        places.append((tokens.index(tokens[place]) - begin) // 2)
    assert uniform(np.array(places), 4)


def test_a_key_stands_at_every_place_of_its_block() -> None:
    made = make("block_recall", Draws(3, 0, 4000), seq_len=64)
    places = [row.index(row[-1]) % 4 for row in made.inputs.tolist()]
    assert uniform(np.array(places), 4)


# ------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("name", "sizes", "options", "said"),
    [
        ("mqar", (64, 30), {"phases": 16}, "trainer.seq_len=30 .* at least 31"),
        ("mqar", (9, 64), {}, "data.vocab_size=9 .* at least 10"),
        ("mqar", (64, 64), {"pairs": 0}, "pairs=0"),
        ("mqar", (64, 64), {"power": 0.0}, "power=0"),
        ("block_recall", (64, 35), {}, "trainer.seq_len=35 .* at least 36"),
        ("block_recall", (64, 64), {"offset": 4}, "offset=4 .* -1 to 3"),
        ("block_recall", (2, 64), {}, "data.vocab_size=2"),
        ("induction", (16, 2), {}, "trainer.seq_len=2 .* at least 3"),
        ("induction", (16, 64), {"distance": 1}, "distance=1"),
        ("span_copy", (64, 39), {}, "trainer.seq_len=39 .* at least 40"),
        ("span_copy", (64, 64), {"span": 32}, "distance=32 .* span=32"),
        ("selective_copy", (16, 31), {}, "trainer.seq_len=31 .* at least 32"),
        ("selective_copy", (3, 64), {}, "data.vocab_size=3 .* at least 4"),
        ("state_tracking", (59, 64), {"group": "a5"}, "data.vocab_size=59 .* at least 60"),
        ("state_tracking", (9, 64), {"group": "z9"}, "group=z9 .* a5"),
        ("topk_saturation", (132, 54), {}, "trainer.seq_len=54 .* at least 55"),
        ("topk_saturation", (19, 64), {}, "data.vocab_size=19 .* at least 20"),
        ("topk_saturation", (64, 64), {"needles": 2, "asked": 5}, "asked=5 .* needles=2"),
        ("p_hop", (4, 63), {}, "trainer.seq_len=63 .* at least 64"),
        ("p_hop", (4, 64), {"hops": 0}, "hops=0"),
        ("context_token", (3, 64), {}, "data.vocab_size=3 .* at least 4"),
        ("passkey", (64, 10), {}, "trainer.seq_len=10 .* at least 11"),
        ("passkey", (3, 64), {}, "data.vocab_size=3 .* at least 4"),
        ("passkey", (64, 64), {"depth": 1.5}, "depth=1.5"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    name: str, sizes: tuple[int, int], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        make(name, Draws(0, 0, 1), *sizes, **options)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("mqar", (10, 31)),
        ("block_recall", (3, 36)),
        ("induction", (3, 3)),
        ("span_copy", (3, 40)),
        ("selective_copy", (4, 32)),
        ("state_tracking", (2, 2)),
        ("topk_saturation", (20, 55)),
        ("p_hop", (2, 32)),
        ("passkey", (4, 11)),
    ],
)
def test_the_smallest_sizes_that_are_allowed_work(name: str, sizes: tuple[int, int]) -> None:
    made = make(name, Draws(0, 0, 50), *sizes)
    for tokens, labels in zip(made.inputs.tolist(), made.labels, strict=True):
        assert asked(labels) == DEFINITIONS[name](tokens, sizes[0], {})
