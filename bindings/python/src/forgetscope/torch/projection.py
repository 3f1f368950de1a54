"""What a layer's linear maps make of a probe's tokens, as far as their matrices are here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .sharding import is_sharded, local, part_of


@dataclass(frozen=True)
class Projection:
    """The output projection of the heads that are here: all, or with tensor parallelism this rank's."""

    matrix: torch.Tensor
    """[model width, heads · width]"""
    heads: int
    first_head: int

    @classmethod
    def of(cls, module: nn.Module, heads: int) -> Projection | None:
        """None: the module has no plain matrix, as quantised layers, or it is cut within a head."""
        weight = getattr(module, "weight", None)
        if not isinstance(weight, torch.Tensor) or not weight.is_floating_point() or weight.ndim != 2:
            return None
        part, whole = part_of(weight), tuple(weight.shape)
        matrix, axis = local(weight.detach()), 1
        if type(module).__name__ == "Conv1D":
            # [in, out]
            matrix, axis = matrix.t(), 0
        width = whole[axis] // heads
        if part.shape[1 - axis] != whole[1 - axis] or part.offset[axis] % width or part.shape[axis] % width:
            return None
        return cls(matrix, part.shape[axis] // width, part.offset[axis] // width)


def router_logits(module: nn.Module, inputs: Any, output: Any) -> torch.Tensor | None:
    """Logits of a router, from its input: what it returns may be anything made of them. None: they cannot be told."""
    if isinstance(module, nn.Linear) and isinstance(output, torch.Tensor):
        return None if is_sharded(output) else output
    weight, bias = (getattr(module, name, None) for name in ("weight", "bias"))
    states = inputs[0] if inputs else None
    if not isinstance(states, torch.Tensor) or not isinstance(weight, torch.Tensor) or is_sharded(states):
        return None
    if is_sharded(weight) or not weight.is_floating_point() or states.shape[-1:] != weight.shape[1:]:
        return None
    shift = bias.float() if isinstance(bias, torch.Tensor) and bias.shape == weight.shape[:1] else None
    return nn.functional.linear(states.float(), weight.float(), shift)


__all__ = ["Projection", "router_logits"]
