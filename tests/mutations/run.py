"""Puts every known mistake into the running code, one at a time, and counts those that the tests notice.

`python tests/mutations/run.py [NUMBER ...]`, from the root of the repository; all traps without numbers. A
mistake is caught where a test of its row fails by an assertion. A crash does not count: it may be the
mistake's clumsiness. Exits with 1 if a mistake is not caught, or a test fails without one.
"""

import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from injection import injected
from mistakes import Mistake
from rich.console import Console
from rich.table import Table
from traps import TRAPS

from components import native

TESTS = Path(__file__).parents[1]
NO_OUTPUT = ("-p", "no:terminal", "-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=")


@dataclass
class Outcomes:
    """Takes note of a run of pytest."""

    passed: int = 0
    noticed: list[str] = field(default_factory=list)
    crashed: list[str] = field(default_factory=list)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        """Sort failures into assertions and crashes."""
        yield
        if call.excinfo is None:
            self.passed += call.when == "call"
        elif call.excinfo.errisinstance((AssertionError, pytest.fail.Exception)):
            self.noticed.append(item.nodeid)
        else:
            self.crashed.append(f"{item.nodeid}: {call.excinfo.exconly()}")


def run(tests: Iterable[str], *, stop: bool = True) -> Outcomes:
    """Run tests of the suite in this process.

    Raises:
        ValueError: a test does not exist.
    """
    outcomes = Outcomes()
    ids = [str(TESTS / test) for test in tests]
    options = [*NO_OUTPUT, *(["-x"] if stop else []), f"--rootdir={TESTS.parent}"]
    status = pytest.main([*options, *ids], plugins=[outcomes])
    if status not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise ValueError(f"pytest ends with {status!r} on {', '.join(tests)}")
    return outcomes


def verdict(mistake: Mistake) -> str:
    """`caught`, `survived`, or how the tests crashed.

    Mistakes are put into the PyTorch code, which fused kernels stand in for. That they equal it is tested
    elsewhere, so they are off here, unless the mistake is in when they are taken.
    """
    kernels = any(change.target.startswith("components.native") for change in mistake.edits)
    with injected(mistake.edits), nullcontext() if kernels else native.switched_off():
        outcomes = run(mistake.tests)
    if outcomes.noticed:
        return "caught"
    return f"crashed: {outcomes.crashed[0]}" if outcomes.crashed else "survived"


def main(numbers: list[int]) -> int:
    """Print a row per trap and the count; 0 if all are caught."""
    torch.set_num_threads(1)
    started = time.perf_counter()
    traps = [trap for trap in TRAPS if not numbers or trap.number in numbers]
    sound = run(sorted({test for trap in traps for m in trap.mistakes for test in m.tests}), stop=False)
    if sound.noticed or sound.crashed:
        print("Fail without a mistake:", *sound.noticed, *sound.crashed, sep="\n  ")
        return 1
    table = Table("", "trap", "mistakes", "caught", "left")
    caught = total = whole = 0
    for trap in traps:
        found = {mistake.name: verdict(mistake) for mistake in trap.mistakes}
        hits = sum(value == "caught" for value in found.values())
        missed = [f"{name}: {value}" for name, value in found.items() if value != "caught"]
        caught, total, whole = caught + hits, total + len(found), whole + (hits == len(found) > 0)
        left = [*missed, *(f"no place for {reason}" for reason in trap.without)]
        table.add_row(str(trap.number), trap.title, str(len(found)), str(hits), "\n".join(left))
    applicable = sum(bool(trap.mistakes) for trap in traps)
    console = Console(width=max(Console().width, 140))
    console.print(table)
    seconds = time.perf_counter() - started
    console.print(
        f"{whole} of {applicable} applicable traps caught; {caught} of {total} mistakes; "
        f"{sound.passed} tests; {seconds:.0f} s"
    )
    return int(whole < applicable)


if __name__ == "__main__":
    sys.path.insert(0, str(TESTS.parent))
    sys.exit(main([int(number) for number in sys.argv[1:]]))
