"""Names, layers and roles of parameters in the whole model: a stage, and a rank with experts, counts from 0."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from .._abi import Role

_LAYER = re.compile(r"(.*\blayers\.)(\d+)(\..*)")
_EXPERT = re.compile(r"(?<=\.local_experts\.)\d+|(?<=\.experts\.linear_fc[12]\.weight)\d+$")

# The first match decides.
_ROLES: Sequence[tuple[re.Pattern[str], Role]] = [
    (re.compile(pattern), role)
    for pattern, role in (
        (r"word_embeddings\.weight$", Role.EMBEDDING),
        (r"position_embeddings\.weight$", Role.POSITION),
        (r"output_layer\.weight$", Role.LM_HEAD),
        (r"layer_?norm[^.]*(weight|bias)?$|(layer_?norm|norm)\.(weight|bias)$", Role.NORM),
        (r"linear_qkv\.(weight|bias)$", Role.QKV),
        (r"linear_q(_up_proj|_proj)?\.(weight|bias)$", Role.QUERY),
        (r"linear_proj\.weight$", Role.OUTPUT),
        (r"router\.weight$", Role.ROUTER),
        (r"linear_fc1\.weight\d*$", Role.MLP_IN),
        (r"linear_fc2\.weight\d*$", Role.MLP_OUT),
        (r"bias\d*$", Role.BIAS),
    )
]


def role_of(name: str) -> Role | None:
    """None: nothing says what it is."""
    return next((role for pattern, role in _ROLES if pattern.search(name)), None)


def names_and_layers(chunk: Any) -> tuple[dict[torch.Tensor, str], dict[torch.Tensor, int]]:
    """Of every parameter of a chunk. `layer_number` counts the whole model's layers, from 1."""
    names, layers = {}, {}
    numbers = {
        name: module.layer_number - 1
        for name, module in chunk.module.named_modules()
        if isinstance(getattr(module, "layer_number", None), int)
    }
    for name, parameter in chunk.module.named_parameters():
        if match := _LAYER.match(name):
            layer = numbers.get(match[1] + match[2], int(match[2]))
            name, layers[parameter] = f"{match[1]}{layer}{match[3]}", layer
        names[parameter] = re.sub(r"(^|(?<=\.))module\.", "", name)
    return names, layers


def is_of_expert(name: str) -> bool:
    """Whether a parameter is a routed expert's; shared experts are as any other layer."""
    return ".experts." in name


def with_expert(name: str, experts: int, parallel: tuple[int, int]) -> tuple[str, int | None]:
    """The name and number of an expert in the whole model, of `experts` in all. `parallel`: rank and size.

    Experts that are in one parameter have no number; each rank's are a tensor of their own.
    """
    rank, size = parallel
    if match := _EXPERT.search(name):
        expert = rank * (experts // size) + int(match.group())
        return f"{name[: match.start()]}{expert}{name[match.end() :]}", expert
    return (f"{name}@ep{rank}" if size > 1 else name), None


__all__ = ["is_of_expert", "names_and_layers", "role_of", "with_expert"]
