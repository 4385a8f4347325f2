"""The registry: slot and name to a component class, found by importing, never by path."""

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from importlib.metadata import entry_points
from typing import Any, TypeVar

from components.slots import Registered

ENTRY_POINT_GROUP = "ablate.components"


class UnknownNameError(ValueError):
    """A slot, component or option that does not exist; the message lists what does and the nearest match."""


class PluginError(ValueError):
    """A package of components that cannot be imported; the message says which, who named it, and why."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One registered component.

    Attributes:
        summary: first line of the class's docstring.
        source: paper section or official code that defines it.
    """

    slot: str
    name: str
    cls: type[Registered]
    source: str

    @property
    def summary(self) -> str:
        return (self.cls.__doc__ or "").strip().splitlines()[0]

    def config(self, options: dict[str, Any] | None = None) -> Any:
        """The component's frozen `Config` with `options` applied.

        Raises:
            UnknownNameError: an option the component does not have.
        """
        allowed = [f.name for f in fields(self.cls.Config)]
        for key in options or {}:
            if key not in allowed:
                raise unknown(f"option of {self.slot}/{self.name}", key, allowed)
        return self.cls.Config(**(options or {}))


_entries: dict[tuple[str, str], Entry] = {}
_loaded: set[str] = set()

C = TypeVar("C", bound=type[Registered])


def register(name: str, *, source: str) -> Callable[[C], C]:
    """Class decorator: enter a component into the slot of its base class."""

    def enter(cls: C) -> C:
        key = (cls.slot, name)
        if key in _entries and _entries[key].cls.__qualname__ != cls.__qualname__:
            raise ValueError(
                f"{cls.slot}/{name} is already registered by {_entries[key].cls}; {cls} wants the same name"
            )
        cls.name = name
        _entries[key] = Entry(slot=cls.slot, name=name, cls=cls, source=source)
        return cls

    return enter


def load(plugins: Iterable[str] = ()) -> None:
    """Import every module under `components`, under what installed entry points name, and under `plugins`, once.

    Raises:
        PluginError: a package that is not there, or cannot be imported.
    """
    _import("components")
    if ENTRY_POINT_GROUP not in _loaded:
        for point in entry_points(group=ENTRY_POINT_GROUP):
            by = point.dist.name if point.dist else "an unknown distribution"
            _import_plugin(point.module, f"entry point {point.name} of {by}: {point.module}")
        _loaded.add(ENTRY_POINT_GROUP)
    for package in plugins:
        _import_plugin(package, f"plugins={package}")


def _import_plugin(package: str, named: str) -> None:
    try:
        _import(package)
    except (ImportError, ValueError) as error:
        raise PluginError(f"{named} cannot be imported: {error}.") from error


def _import(package: str) -> None:
    if package in _loaded:
        return
    module = importlib.import_module(package)
    for info in pkgutil.walk_packages(getattr(module, "__path__", []), f"{package}."):
        importlib.import_module(info.name)
    _loaded.add(package)


def get(slot: str, name: str) -> Entry:
    """The entry of that slot and name.

    Raises:
        UnknownNameError: names the nearest match and everything registered.
    """
    load()
    if (slot, name) in _entries:
        return _entries[slot, name]
    names = [entry.name for entry in entries(slot)]
    if not names:
        raise unknown("slot", slot, slots())
    raise unknown(slot, name, names)


def entries(slot: str | None = None) -> list[Entry]:
    """All entries, or those of one slot, sorted by slot and name."""
    load()
    return sorted(
        (e for e in _entries.values() if slot in (None, e.slot)), key=lambda entry: (entry.slot, entry.name)
    )


def slots() -> list[str]:
    """Names of all slots that have an entry."""
    return sorted({entry.slot for entry in entries()})


def unknown(kind: str, value: str, allowed: Iterable[str]) -> UnknownNameError:
    """The error for a name that does not exist: what it was, the nearest match, what is allowed."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(value, allowed, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return UnknownNameError(f"no {kind} named '{value}'.{hint} Allowed: {', '.join(allowed) or 'none'}.")
