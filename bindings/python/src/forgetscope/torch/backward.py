"""Models whose optimizer steps inside the backward pass, by hooks behind the accumulation of each gradient.

Their gradients are gone before `optimizer.step()` could be watched, and a backward pass beside training, for a
reference or for curvature, would train. So they are refused. Looking costs about 0.1 µs for each parameter.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from .._abi import Status
from .._library import Error

# Where hooks come from that reduce a gradient over ranks and leave the parameter alone.
_REDUCTIONS = {"torch.nn.parallel.distributed", "transformers.distributed.tensor_parallel", "transformers.trainer"}


def expect_plain_backward(model: nn.Module) -> None:
    """Raises if a backward pass may do more than compute gradients."""
    for name, parameter in model.named_parameters():
        for hook in (getattr(parameter, "_post_accumulate_grad_hooks", None) or {}).values():
            if _source(hook) not in _REDUCTIONS:
                raise Error(
                    Status.ERROR_UNSUPPORTED,
                    f"model: {name} has a hook behind the accumulation of its gradient, as optimizers have that step "
                    "inside the backward pass; these are not measured. Call optimizer.step() behind it, or remove "
                    "the hook",
                )


def _source(hook: Any) -> str:
    while isinstance(hook, functools.partial):
        hook = hook.func
    return getattr(hook, "__module__", "")


__all__ = ["expect_plain_backward"]
