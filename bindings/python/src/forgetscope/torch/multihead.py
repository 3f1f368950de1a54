"""`nn.MultiheadAttention` is asked for the probabilities of every head, and the model gets what it had asked for."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

Seen = Callable[[torch.Tensor, torch.Tensor], None]


@contextmanager
def probabilities_of(module: nn.MultiheadAttention, seen: Seen) -> Iterator[None]:
    """Inside, each call of the module also calls `seen(output, probabilities)`, with a dimension for the heads."""
    signature = inspect.signature(module.forward)
    wanted: list[tuple[bool, bool]] = []

    def ask(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        call = signature.bind(*args, **kwargs)
        call.apply_defaults()
        wanted.append((call.arguments["need_weights"], call.arguments["average_attn_weights"]))
        call.arguments.update(need_weights=True, average_attn_weights=False)
        return call.args, call.kwargs

    def give(_: nn.Module, __: Any, outputs: Any) -> Any:
        output, weights = outputs
        seen(output, weights)
        is_needed, is_averaged = wanted.pop()
        if not is_needed:
            return output, None
        # The heads are in front of queries and keys.
        return output, weights.mean(dim=-3) if is_averaged else weights

    hooks = []
    if {"need_weights", "average_attn_weights"} <= signature.parameters.keys():
        hooks = [module.register_forward_pre_hook(ask, with_kwargs=True), module.register_forward_hook(give)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


__all__ = ["probabilities_of"]
