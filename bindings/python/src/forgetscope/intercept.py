"""Calls in front of and behind functions that a trainer keeps in fields of its objects; each can be taken back.

What a trainer, or another tool, puts into the same field later stays: nothing is overwritten when it is taken back.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any


def call_around(owner: Any, method: str, around: Callable[..., Any]) -> Callable[[], None]:
    """`owner.method(…)` becomes `around(method, …)`. Returns what takes that back."""
    inner = getattr(owner, method)
    was_own = method in vars(owner)
    is_over = False

    @functools.wraps(inner)
    def outer(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs) if is_over else around(inner, *args, **kwargs)

    def back() -> None:
        nonlocal is_over
        is_over = True
        if vars(owner).get(method) is not outer:
            return  # in something that was put around it later
        if was_own:
            setattr(owner, method, inner)
        else:
            delattr(owner, method)

    setattr(owner, method, outer)
    return back


class _Followed:
    """A function, and a call behind it."""

    def __init__(self, inner: Callable[..., Any], then: Callable[[], None]) -> None:
        functools.update_wrapper(self, inner)
        self.inner, self._then = inner, then

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self.inner(*args, **kwargs)
        self._then()
        return result


def _new(kind: Any) -> Any:
    return kind.__new__(kind)


def call_after_field(owner: Any, field: str, then: Callable[[], None]) -> Callable[[], None]:
    """Calls `then()` after whatever function `owner.field` holds; returns what takes that back.

    A trainer may assign the function later than this. So the owner gets a class of its own, in which reading the field
    gives a wrapped function; writing it is as ever. Copies of the owner, and what is pickled, are of the plain class.
    """
    plain = type(owner)

    @functools.lru_cache(maxsize=1)
    def wrapped(inner: Callable[..., Any]) -> _Followed:
        return _Followed(inner, then)

    def get(self: Any) -> Any:
        inner = vars(self).get(field, getattr(plain, field, None))
        return wrapped(inner) if self is owner and inner is not None else inner

    def put(self: Any, function: Any) -> None:
        # What was read from the owner, to be written to a copy of it, is not for the copy.
        vars(self)[field] = function.inner if isinstance(function, _Followed) else function

    def reduce(self: Any, _: Any) -> Any:
        return _new, (plain,), vars(self).copy()

    def back() -> None:
        if type(owner) is watched:
            owner.__class__ = plain

    members = {field: property(get, put), "__reduce_ex__": reduce}
    watched = type(plain.__name__, (plain,), {**members, "__module__": plain.__module__})
    owner.__class__ = watched
    return back


__all__ = ["call_after_field", "call_around"]
