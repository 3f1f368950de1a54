"""Arguments on their way into C: what ctypes would cut, wrap or leave out is refused, by its name."""

from __future__ import annotations

import ctypes
import operator
import os
from typing import Any, TypeVar

from ._abi import UNSET_U32, UNSET_U64
from ._library import invalid

Struct = TypeVar("Struct", bound=ctypes.Structure)

# The largest number of a sort; the one above stands for "not given".
LARGEST_U32, LARGEST_U64 = UNSET_U32 - 1, UNSET_U64 - 1
LARGEST_I32 = 2**31 - 1
_LARGEST: dict[Any, int] = {ctypes.c_uint32: LARGEST_U32, ctypes.c_uint64: LARGEST_U64}


def whole(value: Any, argument: str, largest: int = LARGEST_U64) -> int:
    """A whole number that is not negative, of any library's integer type."""
    try:
        number = operator.index(value)
    except TypeError:
        raise invalid(f"{argument}: {value!r} is no whole number") from None
    if not 0 <= number <= largest:
        raise invalid(f"{argument}: {number} is not between 0 and {largest}")
    return number


def text(value: Any, argument: str) -> bytes:
    if not isinstance(value, str):
        raise invalid(f"{argument}: {value!r} is no text")
    try:
        encoded = value.encode()
    except UnicodeEncodeError:
        raise invalid(f"{argument}: {value!r} cannot be written in UTF-8") from None
    if b"\0" in encoded:
        raise invalid(f"{argument}: {value!r} has a NUL in it, where text ends in C")
    return encoded


def real(value: Any, argument: str) -> float:
    """A number of any library's type."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise invalid(f"{argument}: {value!r} is no number") from None


def path(value: Any, argument: str) -> bytes:
    """Text that may name a file."""
    try:
        return os.fsencode(value)
    except TypeError:
        raise invalid(f"{argument}: {value!r} is neither text nor a path") from None


def filled(struct: type[Struct], fields: dict[str, Any], options: dict[str, Any]) -> Struct:
    """A struct of the C ABI with `fields`, and with numbers that somebody else has named."""
    kinds = {name: kind for name, kind, *_ in struct._fields_ if name not in {"size", "magic", *fields}}
    numbers: dict[str, int | float] = {}
    for name, value in options.items():
        if name not in kinds:
            raise invalid(f"{name}: there is no such option; there are {', '.join(sorted(kinds))}")
        if kinds[name] in _LARGEST:
            numbers[name] = whole(value, name, _LARGEST[kinds[name]])
        elif isinstance(value, (int, float)):
            numbers[name] = value
        else:
            raise invalid(f"{name}: {value!r} is no number")
    return struct(**fields, **numbers)


__all__ = ["LARGEST_I32", "LARGEST_U32", "LARGEST_U64", "filled", "path", "real", "text", "whole"]
