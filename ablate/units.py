"""Amounts of compute, counts and bytes: what people type and read, and the integers that programs keep.

The ledger counts integer MFLOP (1 MFLOP = 10^6 FLOP).
"""

import math
import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from ablate.errors import BadInputError

MFLOP = 10**6

_SECONDS = {"s": 1, "sec": 1, "second": 1, "min": 60, "minute": 60, "h": 3600, "hour": 3600, "day": 86400}
_TIME = re.compile(rf"([\d._]+)\s*(?:(gpu|cpu)[\s-]*)?({'|'.join(_SECONDS)})s?", re.IGNORECASE)
_PREFIXES = {"": 0, "K": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18, "Z": 21}
_AMOUNT = re.compile(r"([-+]?[\d._]+(?:e[-+]?\d+)?)\s*(?:([kmgtpez]?)flops?)?", re.IGNORECASE)
_ALLOWED = (
    "a number of FLOPs such as 3e15, text with a unit such as '500 GFLOP' or '2 PFLOP' (K M G T P E Z), or a time "
    "such as '20 min', '2 gpu-hours' or '1 cpu-hour'"
)


@dataclass(frozen=True)
class Time:
    """An amount of time: of the clock on the wall, or of one `gpu` or `cpu`."""

    seconds: float
    device: str


def time(value: Any) -> Time | None:
    """A time such as `20 min`, `2 h`, `2 gpu-hours` or `90 cpu-min`; None where the value is none."""
    match = _TIME.fullmatch(str(value).strip())
    try:
        seconds = float(match[1]) * _SECONDS[match[3].lower().removesuffix("s") or "s"] if match else 0.0
    except ValueError:
        return None
    return Time(seconds, (match[2] or "").lower()) if match and seconds > 0 else None


def mflop(value: Any, key: str) -> int:
    """Integer MFLOP of an amount such as `3e15`, `2 PFLOP` or `500 GFLOP`, rounded down.

    Raises:
        BadInputError: not an amount, not positive, below one MFLOP, or a unit that is not FLOPs.
    """
    text = str(value).strip()
    match = _AMOUNT.fullmatch(text)
    if isinstance(value, bool) or match is None:
        raise BadInputError(f"{key}={text} is not an amount of compute. Allowed: {_ALLOWED}.")
    try:
        amount = Decimal(match[1].replace("_", ""))
    except InvalidOperation as error:
        raise BadInputError(f"{key}={text} is not an amount of compute. Allowed: {_ALLOWED}.") from error
    flop = amount.scaleb(_PREFIXES[(match[2] or "").upper()])
    if flop < MFLOP:
        raise BadInputError(f"{key}={text} is less than one MFLOP. Allowed: {_ALLOWED}.")
    return int(flop) // MFLOP


def _scaled(value: float, prefixes: tuple[str, ...], base: int, digits: int) -> tuple[str, str]:
    """Mantissa with that many significant digits, and prefix; rounding may carry into the next prefix."""
    index = 0
    while index < len(prefixes) - 1 and abs(float(f"{value:.{digits}g}")) >= base:
        value /= base
        index += 1
    rounded = float(f"{value:.{digits}g}")
    whole = len(str(int(abs(rounded))))
    return f"{rounded:.{max(digits - whole, 0) if rounded % 1 else 0}f}", prefixes[index]


def flops(value: float) -> str:
    """FLOPs for people: `1.24 TFLOP`."""
    number, prefix = _scaled(value, ("", "K", "M", "G", "T", "P", "E", "Z"), 1000, 3)
    return f"{number} {prefix}FLOP"


def compute(mflops: int) -> str:
    """MFLOP for people: `1.24 TFLOP`."""
    return flops(mflops * MFLOP)


def count(value: float) -> str:
    """A count for people: `3.1M`."""
    number, prefix = _scaled(value, ("", "k", "M", "B", "T"), 1000, 3)
    return f"{number}{prefix}"


def size(value: float) -> str:
    """Bytes for people: `1.5 MiB`."""
    number, prefix = _scaled(value, ("B", "KiB", "MiB", "GiB", "TiB"), 1024, 3)
    return f"{number} {prefix}"


def duration(seconds: float) -> str:
    """Seconds for people: `45 s`, `4 min 10 s`, `2 h 05 min`."""
    total = math.ceil(seconds) if seconds < 60 else round(seconds)
    if total < 60:
        return f"{total} s"
    if total < 3600:
        return f"{total // 60} min {total % 60:02d} s"
    return f"{total // 3600} h {total % 3600 // 60:02d} min"
