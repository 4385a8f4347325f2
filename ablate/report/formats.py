"""Numbers as a report writes them. Minus signs are typographic, a value that is not there is a dash."""

import math
from collections.abc import Callable
from typing import Any

from ablate import units

ABSENT = "–"


def present(write: Callable[[Any], str]) -> Callable[[Any], str]:
    """`write`, with a dash for what is not there; an interval of one pair of seeds is infinite."""

    def text(value: Any) -> str:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ABSENT
        if isinstance(value, float) and math.isinf(value):
            return "∞" if value > 0 else "−∞"
        return write(value).replace("-", "−")

    return text


def _p(value: float) -> str:
    return "<0.0001" if value < 1e-4 else f"{value:.3g}"


def scale(largest: float, unit: str) -> tuple[float, str]:
    """Divisor and unit that make `largest` a number of one to three digits."""
    prefixes = ("", "K", "M", "G", "T", "P", "E", "Z")
    index = 0
    while float(f"{largest:.3g}") >= 1000 and index < len(prefixes) - 1:
        largest, index = largest / 1000, index + 1
    return 1000.0**index, f"{prefixes[index]}{unit}"


def _scaled(value: float, unit: str) -> str:
    """Three digits always, so that columns line up."""
    divisor, unit = scale(value, unit)
    return f"{value / divisor:#.3g}".rstrip(".") + f" {unit}" if value else "0"


loss = present(lambda value: f"{value:.4f}")
signed = present(lambda value: f"{value:+.4f}")
probability = present(_p)
rate = present(lambda value: f"{value:.3g}")
integer = present(lambda value: f"{value:,.0f}")
ratio = present(lambda value: f"{value:.2f}×")
change = present(lambda value: f"{value:+.1%}")
share = present(lambda value: f"{value:.1%}")
count = present(units.count)
flops = present(lambda value: _scaled(value, "FLOP"))
compute = present(lambda value: _scaled(value * units.MFLOP, "FLOP"))
size = present(units.size)
duration = present(units.duration)
general = present(lambda value: f"{value:.4g}")


def listing(names: list[str], limit: int = 6) -> str:
    """Names in a sentence: `a`, `a and b`, `a, b and 3 more`."""
    shown, more = names[:limit], len(names) - limit
    if more > 0:
        shown = [*shown, f"{more} more"]
    return " and ".join(part for part in (", ".join(shown[:-1]), shown[-1] if shown else "") if part)
