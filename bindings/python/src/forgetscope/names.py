"""Names of roles and of members of enumerations, as people and files write them."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, TypeVar

from ._abi import Role
from ._library import invalid

# As records, rings and layout files call them.
ROLE_NAMES = {
    Role.OTHER: "other",
    Role.EMBEDDING: "embedding",
    Role.POSITION: "position",
    Role.QUERY: "q",
    Role.KEY: "k",
    Role.VALUE: "v",
    Role.QKV: "qkv",
    Role.OUTPUT: "o",
    Role.GATE: "gate",
    Role.MLP_IN: "mlp_in",
    Role.MLP_OUT: "mlp_out",
    Role.MLP_GATE: "mlp_gate",
    Role.NORM: "norm",
    Role.ROUTER: "router",
    Role.LM_HEAD: "lm_head",
    Role.BIAS: "bias",
}
_SHORT = {name: role for role, name in ROLE_NAMES.items()}

Member = TypeVar("Member", bound=IntEnum)


def member(enumeration: type[Member], value: Any, argument: str) -> Member:
    """A member of an enumeration, given as it is, as its number or by its name in lower case."""
    if isinstance(value, str):
        if enumeration is Role and value in _SHORT:
            return _SHORT[value]  # type: ignore[return-value]
        if value.upper() in enumeration.__members__:
            return enumeration[value.upper()]
    elif value in list(enumeration):
        return enumeration(value)
    raise invalid(f"{argument}: {value!r} is none of {', '.join(name.lower() for name in enumeration.__members__)}")
