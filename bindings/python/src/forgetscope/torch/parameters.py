"""What of a model is measured: every trainable parameter, by its role, layer, heads and, fused experts, one by one.

Names are those of `named_parameters()` without what wrappers put in front (DistributedDataParallel, torch.compile,
activation checkpoints), so that they are the same on every rank and in every run. Parameters that are shared (tied
embeddings) come once, under the first of their names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .._abi import HeadLayout, Role
from .._library import invalid
from ..names import member
from .heads import WHOLE, HeadMap, fits, head_counts, head_map, layout_in
from .roles import role_of
from .rules import Rule

_WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:module|_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_NUMBER = re.compile(r"(?:^|\.)(\d+)(?=\.|$)")
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


def plain_name(name: str) -> str:
    """A parameter's or module's name without the wrappers that it is in."""
    return _WRAPPERS.sub("", name)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile, whose forward has none of their effects."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def module_paths(model: nn.Module) -> dict[str, list[nn.Module]]:
    """For every module by its plain name: itself and those around it, outermost first."""
    paths: dict[str, list[nn.Module]] = {}
    for name, module in model.named_modules():
        plain = plain_name(f"{name}.").rstrip(".")
        around = paths.get(plain.rpartition(".")[0], []) if plain else []
        paths[plain] = [*around, module] if plain not in paths else [*paths[plain], module]
    return paths


def layer_numbers(names: Sequence[str]) -> dict[str, int]:
    """For every prefix that is one of a list ("model.layers.3"): its number in the whole model.

    A model with several lists of layers (encoder and decoder) has its layers numbered one after another.
    """
    lists: dict[str, int] = {}
    for name in names:
        if match := _NUMBER.search(name):
            container = name[: match.start()]
            lists[container] = max(lists.get(container, 0), int(match.group(1)) + 1)
    numbers: dict[str, int] = {}
    first = 0
    for container, length in lists.items():
        for index in range(length):
            numbers[f"{container}.{index}".lstrip(".")] = first + index
        first += length
    return numbers


def layer_prefix(name: str) -> str | None:
    """The part of a name up to the number of its layer: "model.layers.3"."""
    match = _NUMBER.search(name)
    return name[: match.end()] if match else None


def measured_parameters(model: nn.Module, rules: Sequence[Rule] = ()) -> list[Measured]:
    """Every trainable parameter, as the catalog takes it, in the order of `named_parameters()`."""
    parameters = {plain_name(name): parameter for name, parameter in model.named_parameters()}
    if not parameters:
        raise invalid("model: it has no parameters")
    if any(name.endswith("_flat_param") for name in parameters):
        raise invalid(
            "model: FullyShardedDataParallel of the first version has flat parameters, whose parts have no names; "
            "use torch.distributed.fsdp.fully_shard"
        )
    paths = module_paths(model)
    layers = layer_numbers(list(parameters))
    found: list[Measured] = []
    for name, parameter in parameters.items():
        if parameter.requires_grad and parameter.dtype in _MEASURABLE and parameter.numel():
            around = paths[name.rpartition(".")[0]]
            found.extend(_entries(name, parameter, around, rules, layers.get(layer_prefix(name) or "")))
    if not found:
        raise invalid("model: none of its parameters is trainable and of a floating type")
    return found


def _entries(
    name: str, parameter: nn.Parameter, around: list[nn.Module], rules: Sequence[Rule], layer: int | None
) -> Iterator[Measured]:
    shape = tuple(parameter.shape)
    expert_match = _EXPERT.search(name)
    expert = int(expert_match.group(1)) if expert_match else None
    for rule in rules:
        if match := rule.expression.search(name):
            named = rule.number("layer", match)
            role, is_known = member(Role, rule.role, "role"), True
            heads = _ruled(rule, name, role, shape, around)
            layer = layer if named is None else named
            named = rule.number("expert", match)
            expert = expert if named is None else named
            break
    else:
        found = role_of(name, around[-1])
        role, layout, is_known = (*found, True) if found else (Role.OTHER, HeadLayout.NONE, False)
        heads = _known(name, role, layout, shape, around)
    path, _, last = name.rpartition(".")
    dimensions = 2 if last.endswith("_bias") else 3
    if expert is not None or len(shape) != dimensions or not path.endswith("experts"):
        yield Measured(name, parameter, shape, role, layer, expert, heads, is_known)
        return
    for number in range(shape[0]):
        one = f"{name}.{number}"
        yield Measured(one, parameter, shape[1:], role, layer, number, WHOLE, is_known, is_slice=True)


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


def _ruled(rule: Rule, name: str, role: Role, shape: tuple[int, ...], around: list[nn.Module]) -> HeadMap:
    counted = head_counts(around) or (0, 0)
    heads = counted[0] if rule.heads is None else rule.heads
    kv_heads = rule.kv_heads or (counted[1] if rule.heads is None else heads)
    layout = member(HeadLayout, rule.layout, "layout")
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
