"""The table of traps fits the code as it is. That tests notice every mistake takes a minute: `make traps`."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from injection import Default, Edit, injected
from mistakes import Mistake, edit
from run import verdict
from traps import TRAPS

from components.attention import trunk
from components.residual.mhc import MHCConfig

EDITS = {
    f"{trap.number} {mistake.name} {place}": change
    for trap in TRAPS
    for mistake in trap.mistakes
    for place, change in enumerate(mistake.edits)
    if isinstance(change, Edit)
}
TESTS = Path(__file__).parents[1]
NORM = "components.functional:rms_norm"
WIDE = "wide = at_least_float32(x)"


def test_all_traps_of_the_specification_are_there_once_with_a_mistake() -> None:
    assert [trap.number for trap in TRAPS] == list(range(1, 46))
    assert all(trap.mistakes for trap in TRAPS)
    names = [(trap.number, mistake.name) for trap in TRAPS for mistake in trap.mistakes]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", EDITS)
def test_every_mistake_still_fits_the_code(name: str) -> None:
    EDITS[name].compiled()


def test_every_test_that_has_to_notice_exists() -> None:
    for test in {test for trap in TRAPS for mistake in trap.mistakes for test in mistake.tests}:
        file, _, function = test.partition("[")[0].partition("::")
        assert f"\ndef {function}(" in (TESTS / file).read_text(), test


def test_a_mistake_is_there_for_all_who_import_it_and_gone_after_a_failure() -> None:
    x = torch.ones(3, dtype=torch.float64)
    changes = (
        edit(NORM, (WIDE, "wide = 2 * x; eps = 12.0")),
        Default("components.residual.mhc:MHCConfig", "hc_mult", 7),
    )
    with injected(changes):
        found = trunk.rms_norm(x, None, 0.0), MHCConfig().hc_mult
    with pytest.raises(TypeError), injected(changes):
        MHCConfig(no_such_option=1)  # type: ignore[call-arg]
    assert torch.equal(found[0], x / 2)
    assert torch.equal(trunk.rms_norm(x, None, 0.0), x)
    assert (found[1], MHCConfig().hc_mult) == (7, 4)


def test_a_mistake_that_fits_nowhere_is_refused() -> None:
    with pytest.raises(ValueError, match="has 0 times: no such text"):
        edit(NORM, ("no such text", "")).compiled()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ((WIDE, "wide = 3 * x"), "caught"),
        ((WIDE, "wide = at_least_float32(x) + 0"), "survived"),
        ((WIDE, "wide = undefined"), "crashed"),
    ],
)
def test_a_harmless_change_survives_and_a_crash_is_none_that_is_caught(
    change: tuple[str, str], said: str
) -> None:
    seen = ("components/test_precision.py::test_softmax_and_norm_of_half_precision_are_computed_in_single",)
    assert verdict(Mistake("", (edit(NORM, change),), seen)).startswith(said)


@pytest.mark.slow
def test_tests_notice_every_mistake() -> None:
    command = [sys.executable, str(TESTS / "mutations" / "run.py")]
    done = subprocess.run(command, cwd=TESTS.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
