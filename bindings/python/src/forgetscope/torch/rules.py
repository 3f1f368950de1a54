"""Rules: what a parameter is, by its name. For models whose naming the built-in table (roles.py) does not know.

A rule file is TOML; its rules are looked at in order, before the built-in ones, and the first match decides:

    [[tensor]]
    # Searched in the name, without wrappers such as "module.".
    match = 'blocks\\.(?P<layer>\\d+)\\.mixer\\.Wqkv\\.weight$'
    # A name of forgetscope.Role, in lower case.
    role = "qkv"
    # 0: not split; left out: from the model's config.
    heads = 16
    # Left out: from the model's config, or as many as heads.
    kv_heads = 4
    # A name of forgetscope.HeadLayout.
    layout = "interleaved"
    # 0: heads are bands of rows, 1: of columns; left out: by role and module.
    axis = 0

The groups `layer` and `expert` of the expression, where there are some, are numbers in the whole model.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .._abi import HeadLayout, Role
from .._library import invalid
from ..arguments import LARGEST_U32, whole
from ..names import member

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Rule:
    """What the parameters are whose name contains a match of `match`. None: as the model says."""

    match: str
    role: Role | str
    heads: int | None = None
    kv_heads: int | None = None
    layout: HeadLayout | str = HeadLayout.AUTO
    axis: int | None = None
    expression: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.match, str):
            raise invalid(f"match: {self.match!r} is no text")
        try:
            object.__setattr__(self, "expression", re.compile(self.match))
        except re.error as error:
            raise invalid(f"match: {self.match!r} is no regular expression: {error}") from None
        object.__setattr__(self, "role", member(Role, self.role, "role"))
        object.__setattr__(self, "layout", member(HeadLayout, self.layout, "layout"))
        if self.axis not in (None, 0, 1):
            raise invalid(f"axis: {self.axis!r} is neither 0 (rows) nor 1 (columns)")
        for name in ("heads", "kv_heads"):
            if (count := getattr(self, name)) is not None:
                whole(count, name, LARGEST_U32)

    def number(self, group: str, match: re.Match[str]) -> int | None:
        """The layer or expert that the name says, if the expression has a group for it."""
        text = match.groupdict().get(group)
        return None if text is None else int(text)


Rules = str | os.PathLike[str] | Iterable[Rule | Mapping[str, Any]]


def load_rules(rules: Rules | None) -> list[Rule]:
    """Rules from a TOML file, or from a list of `Rule`s and mappings with the same keys."""
    if rules is None:
        return []
    if not isinstance(rules, (str, os.PathLike)):
        return [rule if isinstance(rule, Rule) else _rule(rule, "rules") for rule in rules]
    try:
        with open(rules, "rb") as file:
            content = tomllib.load(file)
    except OSError as error:
        raise invalid(f"rules: {os.fspath(rules)} cannot be read: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise invalid(f"rules: {os.fspath(rules)} is no TOML: {error}") from None
    tables = content.pop("tensor", None)
    if content or not isinstance(tables, list):
        what = f"has {sorted(content)[0]!r}" if content else "has none"
        raise invalid(f"rules: {os.fspath(rules)} {what}; rules are tables [[tensor]]")
    return [_rule(entry, f"{os.fspath(rules)}, [[tensor]] {number}") for number, entry in enumerate(tables, 1)]


def _rule(entry: Any, where: str) -> Rule:
    if not isinstance(entry, Mapping):
        raise invalid(f"{where}: {entry!r} is no table with match and role")
    known = {"match", "role", "heads", "kv_heads", "layout", "axis"}
    if unknown := set(entry) - known:
        raise invalid(f"{where}: there is no key {sorted(unknown)[0]!r}; there are {', '.join(sorted(known))}")
    if missing := {"match", "role"} - set(entry):
        raise invalid(f"{where}: {sorted(missing)[0]!r} is missing")
    return Rule(**entry)
