"""An alarm of a trial, as it is stored with the result. Frozen, JSON-able."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RaisedAlarm:
    """A diagnostic beyond its bound: something is broken.

    Attributes:
        metric: the last part of its name, which the bound is declared for.
        diagnostic: the whole name of the worst one.
        value: of that.
        since: step of the probe that found it first; all later ones did.
        text: value, bound and what is broken.
        source: where the bound is from.
    """

    metric: str
    diagnostic: str
    value: float
    since: int
    text: str
    source: str
