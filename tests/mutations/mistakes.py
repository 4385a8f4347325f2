"""What the tables of traps are made of."""

from dataclasses import dataclass

from injection import Default, Edit


@dataclass(frozen=True)
class Mistake:
    """One way to fall into a trap.

    Attributes:
        edits: what it changes in the code.
        tests: tests of the suite, by node id under `tests/`, of which at least one has to fail.
    """

    name: str
    edits: tuple[Edit | Default, ...]
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Trap:
    """One trap of the architecture, by its number in the specification.

    Attributes:
        without: forms of it that the code has no place for, and why.
    """

    number: int
    title: str
    mistakes: tuple[Mistake, ...] = ()
    without: tuple[str, ...] = ()


def edit(target: str, *changes: tuple[str, str]) -> Edit:
    """`Edit` with its changes as arguments."""
    return Edit(target, changes)
