"""Amounts of compute: what people type comes back as the integers that the ledger counts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ablate import units
from ablate.errors import BadInputError


@pytest.mark.parametrize(
    ("text", "mflop"),
    [
        ("3e15", 3 * 10**9),
        ("2 PFLOP", 2 * 10**9),
        ("2pflops", 2 * 10**9),
        ("500 GFLOP", 500_000),
        ("1_000_000", 1),
        (10**7, 10),
        (1e18, 10**12),
        ("1.5 TFLOP", 1_500_000),
        ("1999999", 1),
    ],
)
def test_amounts(text: object, mflop: int) -> None:
    assert units.mflop(text, "budget.total") == mflop


@pytest.mark.parametrize(
    "text", ["", "many", "-3e15", "0", "5", "nan", "inf", "2 XFLOP", "1e15 tokens", True, "--3", [1], "1.2.3"]
)
def test_refused_amounts_name_key_value_and_what_is_allowed(text: object) -> None:
    with pytest.raises(BadInputError, match=r"budget\.total=.*Allowed: .*3e15") as caught:
        units.mflop(text, "budget.total")
    assert str(text) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds", "device"),
    [
        ("20 gpu-min", 1200, "gpu"),
        ("3 h", 10800, ""),
        ("45 s", 45, ""),
        ("10min", 600, ""),
        ("2 hours", 7200, ""),
        ("1 CPU-hour", 3600, "cpu"),
        ("1.5 gpu days", 129600, "gpu"),
    ],
)
def test_times(text: str, seconds: float, device: str) -> None:
    assert units.time(text) == units.Time(seconds, device)


@pytest.mark.parametrize(
    "text", ["", "3e15", "2 PFLOP", "5 m", "-3 s", "0 s", "3", "h", "1.2.3 s", None, "3 tpu-hours"]
)
def test_what_is_no_time(text: object) -> None:
    assert units.time(text) is None


@given(st.integers(1, 10**18))
def test_integers_survive_exactly(mflop: int) -> None:
    assert units.mflop(str(mflop * units.MFLOP), "k") == mflop
    assert units.mflop(f"{mflop} MFLOP", "k") == mflop


@given(st.integers(1, 10**16), st.sampled_from(["", "K", "M", "G", "T", "P", "E"]))
def test_what_is_printed_reads_back_within_rounding(mflop: int, prefix: str) -> None:
    printed = units.compute(mflop)
    assert units.mflop(printed, "k") == pytest.approx(mflop, rel=5.1e-3, abs=1)


@given(st.floats(0, 1e20))
def test_printed_numbers_stay_short(value: float) -> None:
    for printed in (units.flops(value), units.count(value), units.size(min(value, 1e12))):
        assert len(printed) <= 13


@pytest.mark.parametrize(
    ("value", "text"), [(1.236e12, "1.24 TFLOP"), (999.9, "1 KFLOP"), (3.0, "3 FLOP"), (3.1e6, "3.10 MFLOP")]
)
def test_flops_for_people(value: float, text: str) -> None:
    assert units.flops(value) == text


def test_other_amounts_for_people() -> None:
    assert units.count(3_123_456) == "3.12M"
    assert units.size(1536) == "1.50 KiB"
    assert units.duration(12.2) == "13 s"
    assert units.duration(250) == "4 min 10 s"
    assert units.duration(7500) == "2 h 05 min"
