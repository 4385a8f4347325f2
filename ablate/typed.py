"""Values against type annotations: what YAML and command lines deliver, and what a dataclass field wants."""

import enum
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal, Union


def field_types(cls: type) -> dict[str, Any]:
    """Field names of a dataclass to their resolved types, in order."""
    hints = typing.get_type_hints(cls)
    return {name: hints[name] for name in getattr(cls, "__dataclass_fields__", {})}


def coerce(value: Any, kind: Any) -> Any:
    """`value` as `kind`, without loss: `1e3` is an integer, `2.5` is not, `true` is not a number.

    Raises:
        ValueError: it is not; the message says what is.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _union(value, kind, args)
    if origin is Literal:
        if value in args:
            return value
        raise ValueError("one of " + ", ".join(map(str, args)))
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            value = [value]
        if origin is tuple and args and args[-1] is not Ellipsis:
            if len(args) != len(value):
                raise ValueError(f"a list of {len(args)}")
            return tuple(coerce(v, a) for v, a in zip(value, args, strict=True))
        try:
            return origin(coerce(v, args[0] if args else Any) for v in value)
        except ValueError as error:
            raise ValueError(f"a list, each {error}") from None
    if origin is dict or kind is dict:
        if isinstance(value, Mapping):
            return dict(value)
        raise ValueError("a mapping")
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        try:
            return kind(value)
        except ValueError:
            raise ValueError("one of " + ", ".join(str(m.value) for m in kind)) from None
    return _scalar(value, kind)


def _union(value: Any, kind: Any, args: tuple[Any, ...]) -> Any:
    if value is None and type(None) in args:
        return None
    reasons = []
    for arg in args:
        if arg is not type(None):
            try:
                return coerce(value, arg)
            except ValueError as error:
                reasons.append(str(error))
    raise ValueError(" or ".join([*reasons, *(["null"] if type(None) in args else [])]))


def _scalar(value: Any, kind: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is bool:
        if isinstance(value, bool):
            return value
        raise ValueError("true or false")
    if kind is int:
        if number and float(value).is_integer():
            return int(value)
        raise ValueError("an integer")
    if kind is float:
        if number:
            return float(value)
        raise ValueError("a number")
    if kind is str:
        if isinstance(value, str) or number:
            return str(value)
        raise ValueError("text")
    if isinstance(kind, type) and isinstance(value, kind):
        return value
    raise ValueError(getattr(kind, "__name__", str(kind)))
