"""Backward passes beside training, and models that cannot have any.

Some models have their optimizer step inside the backward pass, by hooks behind the accumulation of each gradient. Their
gradients are gone before `optimizer.step()` could be watched, and a backward pass beside training, for a reference or
for curvature, would train. So they are refused. Looking costs about 0.1 µs for each parameter.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from .._abi import Status
from .._library import Error
from .sharding import is_fully_sharded, process_rank

_DDP = "torch.nn.parallel.distributed"
# Where hooks come from that reduce a gradient over ranks and leave the parameter alone.
_REDUCTIONS = {_DDP, "transformers.distributed.tensor_parallel", "transformers.trainer"}


def expect_plain_backward(model: nn.Module) -> None:
    """Raises if a backward pass may do more than compute gradients."""
    for name, source in _hooks(model):
        if source not in _REDUCTIONS:
            raise Error(
                Status.ERROR_UNSUPPORTED,
                f"model: {name} has a hook behind the accumulation of its gradient, as optimizers have that step "
                "inside the backward pass; these are not measured. Call optimizer.step() behind it, or remove "
                "the hook",
            )


def backward(model: nn.Module, loss: torch.Tensor, parameters: Sequence[nn.Parameter]) -> None:
    """As `loss.backward()`, but past the reducer of DistributedDataParallel.

    If a forward pass of training waits for its backward pass, the reducer is ready to take the next gradients that are
    accumulated for that one's, and to write them where other gradients of training lie.
    """
    if process_rank() is None or is_fully_sharded(model) or any(source != _DDP for _, source in _hooks(model)):
        loss.backward()
        return
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    gradients = list(torch.autograd.grad(loss, trained, allow_unused=True))
    for parameter in reversed(trained):
        gradient = gradients.pop()
        # Two of them may be the same memory, or seen through strides.
        is_plain = gradient is not None and not gradient.is_sparse
        parameter.grad = gradient.clone(memory_format=torch.contiguous_format) if is_plain else gradient


def _hooks(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Hooks behind the accumulation of gradients: name of the parameter, and the module that the hook is from."""
    for name, parameter in model.named_parameters():
        for hook in (getattr(parameter, "_post_accumulate_grad_hooks", None) or {}).values():
            yield name, _source(hook)


def _source(hook: Any) -> str:
    while isinstance(hook, functools.partial):
        hook = hook.func
    return getattr(hook, "__module__", "")


__all__ = ["backward", "expect_plain_backward"]
