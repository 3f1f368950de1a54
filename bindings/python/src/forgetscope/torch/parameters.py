"""What of a model is measured: every trainable parameter, by its role, layer, heads and, fused experts, one by one.

Names are those of `named_parameters()` without what wrappers put in front (wrappers.py). Parameters that are shared
(tied embeddings) come once, under the first of their names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .._abi import HeadLayout, Role
from .._library import invalid
from ..names import member
from .heads import WHOLE, HeadMap, fits, head_counts, head_map, layout_in
from .layers import layer_path, layers_of
from .roles import role_of
from .rules import Rule
from .sharding import is_flat
from .wrappers import module_paths, plain_parameters, plain_path

_EXPERT = re.compile(r"(?:^|\.)experts\.(\d+)(?=\.|$)")
# Its heads are others than those that the config counts.
_LINEAR_ATTENTION = re.compile(r"(?:^|\.)linear_attn\.")
# Of these data types the library can read values; others are quantised.
_MEASURABLE = {
    getattr(torch, name)
    for name in ("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
    if hasattr(torch, name)
}


@dataclass(frozen=True)
class Measured:
    """One tensor of the catalog: a parameter, or one expert of a parameter that has all of them."""

    name: str
    parameter: nn.Parameter
    shape: tuple[int, ...]
    role: Role
    layer: int | None
    expert: int | None
    """Number of the expert; where `is_slice` also the place along the parameter's first dimension."""
    heads: HeadMap
    is_known: bool
    """Whether a rule, the name or the module's type said what it is."""
    is_slice: bool = False
    layer_path: str | None = None
    """Plain path of the module that is its layer."""


def measured_parameters(model: nn.Module, rules: Sequence[Rule] = ()) -> list[Measured]:
    """Every trainable parameter, as the catalog takes it, in the order of `named_parameters()`."""
    parameters = plain_parameters(model)
    if not parameters:
        raise invalid("model: it has no parameters")
    if is_flat(model):
        raise invalid(
            "model: FullyShardedDataParallel of the first version has flat parameters, which are cut anywhere; "
            "use torch.distributed.fsdp.fully_shard"
        )
    paths = module_paths(model)
    around = {name: paths[plain_path(name.rpartition(".")[0])] for name in parameters}
    kinds = {name: _kind(name, around[name][-1], rules) for name in parameters}
    roles = {name: kind.role for name, kind in kinds.items()}
    layers = layers_of(model, roles, {name: parameter.numel() for name, parameter in parameters.items()})
    found: list[Measured] = []
    for name, parameter in parameters.items():
        if parameter.requires_grad and parameter.dtype in _MEASURABLE and parameter.numel():
            found.extend(_entries(name, parameter, around[name], kinds[name], layers))
    if not found:
        raise invalid("model: none of its parameters is trainable and of a floating type")
    return found


@dataclass(frozen=True)
class _Kind:
    """What a parameter is, and what says so."""

    role: Role
    layout: HeadLayout
    rule: Rule | None = None
    match: re.Match[str] | None = None
    is_known: bool = True


def _kind(name: str, module: nn.Module, rules: Sequence[Rule]) -> _Kind:
    for rule in rules:
        if match := rule.expression.search(name):
            layout = member(HeadLayout, rule.layout, "layout")
            return _Kind(member(Role, rule.role, "role"), layout, rule, match)
    found = role_of(name, module)
    return _Kind(*found) if found else _Kind(Role.OTHER, HeadLayout.NONE, is_known=False)


def _entries(
    name: str, parameter: nn.Parameter, around: list[nn.Module], kind: _Kind, layers: Mapping[str, int]
) -> Iterator[Measured]:
    shape, role, is_known = tuple(parameter.shape), kind.role, kind.is_known
    inside = layer_path(name, layers)
    layer = None if inside is None else layers[inside]
    expert_match = _EXPERT.search(name)
    expert = int(expert_match.group(1)) if expert_match else None
    if kind.rule is not None and kind.match is not None:
        heads = _ruled(kind.rule, name, kind, shape, around)
        if (named := kind.rule.number("layer", kind.match)) is not None:
            layer, inside = named, name[: kind.match.end("layer")]
        named = kind.rule.number("expert", kind.match)
        expert = expert if named is None else named
    else:
        heads = _known(name, role, kind.layout, shape, around)
    path, _, last = name.rpartition(".")
    dimensions = 2 if last.endswith("_bias") else 3
    if expert is not None or len(shape) != dimensions or not path.endswith("experts"):
        yield Measured(name, parameter, shape, role, layer, expert, heads, is_known, layer_path=inside)
        return
    for number in range(shape[0]):
        one = f"{name}.{number}"
        yield Measured(one, parameter, shape[1:], role, layer, number, WHOLE, is_known, True, inside)


def _known(name: str, role: Role, layout: HeadLayout, shape: tuple[int, ...], around: list[nn.Module]) -> HeadMap:
    counts = head_counts(around)
    if counts is None or not _keeps_heads(name, role) or _LINEAR_ATTENTION.search(name):
        return WHOLE
    return head_map(role, layout_in(around, role, layout), shape, *counts, _is_transposed(around[-1]))


def _keeps_heads(name: str, role: Role) -> bool:
    """Of an adapter's two matrices only the one at the side of the heads has them."""
    if "lora_A" in name:
        return role == Role.OUTPUT
    return not ("lora_B" in name and role == Role.OUTPUT)


def _is_transposed(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D"


def _ruled(rule: Rule, name: str, kind: _Kind, shape: tuple[int, ...], around: list[nn.Module]) -> HeadMap:
    role, layout = kind.role, kind.layout
    counted = head_counts(around) or (0, 0)
    heads = counted[0] if rule.heads is None else rule.heads
    kv_heads = rule.kv_heads or (counted[1] if rule.heads is None else heads)
    found = head_map(role, layout, shape, heads, kv_heads, _is_transposed(around[-1]))
    if rule.axis is not None and found is not WHOLE:
        found = HeadMap(found.heads, found.kv_heads, found.layout, rule.axis)
    elif rule.axis is not None and heads:
        found = HeadMap(heads, kv_heads, HeadLayout.SEPARATE if layout == HeadLayout.AUTO else layout, rule.axis)
    asked = rule.heads is not None and rule.heads > 0
    if asked and (found is WHOLE or not fits(role, found, shape)):
        raise invalid(
            f"rule {rule.match!r}: {name} of shape {shape} cannot be split evenly into {heads} heads and {kv_heads} "
            "key/value heads; check heads, kv_heads, layout and axis"
        )
    return found
