"""Optimizers as they are given to `attach`: one or several, perhaps wrapped."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .._library import invalid
from .steps import StepHooks

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer]


def optimizers_of(optimizer: Optimizers | None) -> list[torch.optim.Optimizer]:
    """Those whose steps can be hooked."""
    given = [] if optimizer is None else [optimizer] if not isinstance(optimizer, Sequence) else list(optimizer)
    found = []
    for one in given:
        # Accelerate and Lightning wrap the optimizer that makes the step, without hooks of their own. An optimizer that
        # calls another one, as Lookahead does, has some, and its step is the one that counts.
        while "_optimizer_step_pre_hooks" not in getattr(one, "__dict__", {}):
            inner = getattr(one, "optimizer", None)
            if inner is None:
                raise invalid(f"optimizer: a {type(one).__name__} is no torch.optim.Optimizer")
            one = inner
        found.append(one)
    return found


def is_watched(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a scope has its hooks on it."""
    hooks = optimizer._optimizer_step_pre_hooks.values()
    return any(isinstance(getattr(hook, "__self__", None), StepHooks) for hook in hooks)


def groups_of(optimizers: Sequence[torch.optim.Optimizer]) -> dict[int, int]:
    """Number of the parameter group of each parameter, counted over all optimizers."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return {id(parameter): number for number, group in enumerate(groups) for parameter in group["params"]}


__all__ = ["Optimizers", "groups_of", "is_watched", "optimizers_of"]
