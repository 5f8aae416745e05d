"""What a setting may be: its type as the dataclass declares it, and its range."""

from __future__ import annotations

import functools
import math
import types
import typing
from typing import Any, Literal

from typeguard import TypeCheckError, check_type

from regraft.errors import UsageError, nearest


def within(section: str, name: str, value: float | None, low: float, high: float, *, open_low: bool = False) -> None:
    """Raise `UsageError` with the allowed range unless `low <= value <= high` (`low <` if `open_low`)."""
    if value is None:
        return
    endless = isinstance(value, float) and math.isinf(value)
    if endless or not low <= value <= high or (open_low and value == low):
        start = f"above {low:g}" if open_low else f"from {low:g}"
        end = "" if high == math.inf else f"{',' if open_low else ''} up to {high:g}"
        raise UsageError(f"{section}.{name} is {value}: give a number {start}{end}")


def settle(settings: Any, section: str) -> None:
    """Give each field of a dataclass the type it declares, so that a recipe has one hash however it was written."""
    for name, hint in hints(type(settings)).items():
        path = f"{section}.{name}" if section else name
        object.__setattr__(settings, name, typed(getattr(settings, name), hint, "recipe", path))


@functools.cache
def hints(kind: type) -> dict[str, Any]:
    """Field name -> declared type of a dataclass."""
    return typing.get_type_hints(kind)


def typed(value: Any, hint: Any, where: str, name: str) -> Any:
    """The value in the type of its field: whole numbers serve as floats, lists as tuples; nothing else is converted.

    Raises `UsageError`, with the nearest of the names where there are some; `where` says who gave the value.
    """
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    if float in options and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**1023 else math.inf
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        value = tuple(value)
    known = [word for option in options if typing.get_origin(option) is Literal for word in typing.get_args(option)]
    if known and not (value in known or (value is None and types.NoneType in options)):
        raise UsageError(f"{where}: {name} is {value!r}: {nearest(str(value), known)}")
    try:
        if isinstance(value, bool) and bool not in options:
            raise TypeCheckError("is a truth value")
        return check_type(value, hint)
    except TypeCheckError:
        allowed = " or ".join(getattr(o, "__name__", str(o)) for o in options).replace("NoneType", "null")
        raise UsageError(f"{where}: {name} is {value!r}: give {allowed}") from None
