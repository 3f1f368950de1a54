"""Gradients at fixed weights: the reference of a task, and the answers of a curvature run.

One batch costs a forward and a backward pass. Under DistributedDataParallel the mean over the ranks' batches is taken;
FSDP2 reduces by itself. Ranks take as many batches as the one with the fewest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import distributed, nn

from .._abi import Status
from .._library import Error, invalid
from ..scope import Scope
from .aside import aside, same_random_numbers
from .backward import expect_plain_backward
from .bindings import Bindings
from .sharding import is_sharded, local
from .together import Together

Loss = Callable[[nn.Module, Any], torch.Tensor]


def loss_of(model: nn.Module, batch: Any) -> torch.Tensor:
    """The loss that the model itself computes, as transformers' models do from `labels`."""
    if isinstance(batch, (list, tuple)):
        kind = type(batch).__name__
        raise invalid(
            f"loss_fn: what of this {kind} is the input and what the target is not known; give loss_fn(model, batch)"
        )
    output = model(**on_device(batch, model)) if isinstance(batch, Mapping) else model(on_device(batch, model))
    loss = getattr(output, "loss", None)
    if loss is None:
        raise invalid("loss_fn: the model computes no loss from this batch; give loss_fn(model, batch)")
    return loss


def on_device(batch: Any, model: nn.Module) -> Any:
    """A batch where the model's first parameter is."""
    device = next(model.parameters()).device
    if isinstance(batch, torch.Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {name: on_device(value, model) for name, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        moved = [on_device(value, model) for value in batch]
        # A named tuple takes its fields one by one.
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch


def terms_of(batch: Any) -> int:
    """Loss terms that the mean of a batch is over, as far as its labels say: tokens of a causal model, else labels."""
    labels = batch.get("labels") if isinstance(batch, Mapping) else None
    if not isinstance(labels, torch.Tensor):
        return 0
    # transformers shifts the labels of a language model by one.
    return int((labels[..., 1:] if labels.ndim > 1 else labels).ne(-100).sum())


def add_reference(
    scope: Scope,
    bindings: Bindings,
    model: nn.Module,
    task: str,
    batches: Iterable[Any],
    loss_fn: Loss | None,
    examples: int | Callable[[Any], int] | None,
    stream: Callable[[], int | None],
    limit: int,
    average: distributed.ProcessGroup | None,
    together: Together,
) -> int:
    """Hands over the gradient of each batch; returns how many there were."""
    expect_plain_backward(model)
    count = 0
    with aside(model) as parameters:
        for batch in together.batches(batches, limit):
            with together.in_step():
                _drop_gradients(parameters)
                _backward((loss_fn or loss_of)(model, batch))
            if average is not None:
                _take_mean(parameters, average)
            count += 1
            if not bindings.parameters:
                continue  # all that is here are further copies
            bindings.update_parameters()
            bindings.update_gradients()
            given = terms_of(batch) if examples is None else examples
            scope.reference_add(task, examples=given(batch) if callable(given) else given, stream=stream())
    return count


def _drop_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Before the forward pass: during it FSDP2 has other parameters in the model."""
    for parameter in parameters:
        parameter.grad = None


def _backward(loss: Any) -> None:
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
        shape = f"tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        raise invalid(f"loss_fn: it returned a {shape}; a tensor of a single number is needed")
    loss.backward()


def _take_mean(parameters: Sequence[nn.Parameter], average: distributed.ProcessGroup) -> None:
    for parameter in parameters:
        if parameter.requires_grad:
            # All ranks take part, also where a parameter had no part in this one's batch.
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(local(parameter.grad), group=average)
            parameter.grad /= distributed.get_world_size(average)


def run_curvature(
    scope: Scope,
    bindings: Bindings,
    model: nn.Module,
    task: str,
    batch: Any,
    loss_fn: Loss | None,
    blocks: Sequence[str],
    stream: Callable[[], int | None],
    options: Mapping[str, int | float],
) -> None:
    """Answers the requests of a curvature run with the loss and gradients of one batch."""
    if any(is_sharded(parameter) for parameter in bindings.parameters):
        raise Error(Status.ERROR_UNSUPPORTED, "model: curvature needs whole parameters, not those that are sharded")
    expect_plain_backward(model)
    if unknown := set(blocks) - set(bindings.ids):
        raise invalid(f"blocks: there is no tensor {sorted(unknown)[0]!r}; scope.tensors has the names")
    with aside(model) as parameters:

        def answer(with_gradient: bool) -> float:
            # The same random numbers every time, if the model draws any.
            with same_random_numbers(model):
                _drop_gradients(parameters)
                with torch.set_grad_enabled(with_gradient):
                    loss = (loss_fn or loss_of)(model, batch)
                if with_gradient:
                    _backward(loss)
                    bindings.update_gradients()
            return loss.item()

        # The gradients have to be there when the run begins.
        if not math.isfinite(answer(True)):
            raise invalid("batch: its loss is not finite")
        bindings.update_parameters()
        bindings.update_gradients()
        ids = [bindings.ids[name] for name in blocks]
        scope.curvature(task, answer, blocks=ids, stream=stream(), **options)
