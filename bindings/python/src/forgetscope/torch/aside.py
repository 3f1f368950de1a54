"""Work beside training: forward and backward passes that leave no trace in it.

Gradients, random numbers (PyTorch on host and devices, NumPy, Python, those that a DataLoader is shuffled by), and the
mode, attributes and buffers of every module are put back, so that training goes on bit by bit as if nothing had
happened. Compiled code is left alone: passes run eagerly.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from .sharding import reshard


@contextmanager
def aside(model: nn.Module, batches: Any = None) -> Iterator[list[nn.Parameter]]:
    """Evaluation mode, and everything is as it was afterwards. Gives the model's parameters, without gradients.

    `batches`: where data comes from; if it is a DataLoader, its next order is what it would have been.
    """
    parameters = list(model.parameters())
    gradients = [parameter.grad for parameter in parameters]
    with ExitStack() as stack:
        stack.enter_context(same_random_numbers(model, batches))
        stack.enter_context(_same_modules(model))
        if "torch._dynamo" in sys.modules:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        try:
            for parameter in parameters:
                parameter.grad = None
            for module in model.modules():
                # Not by `eval()`: modules that fold adapters into their weights in it would not unfold them again.
                module.training = False
            yield parameters
        finally:
            reshard(model)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient


@contextmanager
def same_random_numbers(model: nn.Module, batches: Any = None) -> Iterator[None]:
    """Whatever is drawn inside is drawn again afterwards."""
    devices = sorted({parameter.device.index or 0 for parameter in model.parameters() if parameter.is_cuda})
    legacy, python = np.random.get_state(), random.getstate()
    states = [(generator, generator.get_state()) for generator in _generators(batches)]
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        np.random.set_state(legacy)
        random.setstate(python)
        for generator, state in states:
            generator.set_state(state)


def _generators(batches: Any) -> list[torch.Generator]:
    """What a DataLoader and its samplers draw from, if not from the global generator."""
    sampler = getattr(batches, "batch_sampler", None)
    sources = [batches, getattr(batches, "sampler", None), sampler, getattr(sampler, "sampler", None)]
    found = [getattr(source, "generator", None) for source in sources]
    return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())


@contextmanager
def _same_modules(model: nn.Module) -> Iterator[None]:
    """Modules may set attributes and write to buffers in their forward pass: counters, tables of rotary embeddings.

    Inside, buffers are copies: what waits for its backward pass in training may need those that are there now.
    """
    before = [(vars(module), vars(module).copy(), module._buffers.copy()) for module in model.modules()]
    copies: dict[int, torch.Tensor] = {}
    try:
        for attributes, _, buffers in before:
            for name, buffer in buffers.items():
                if buffer is not None and not _is_packed(buffer):
                    if id(buffer) not in copies:
                        copies[id(buffer)] = buffer.detach().clone()
                    attributes["_buffers"][name] = copies[id(buffer)]
        yield
    finally:
        for attributes, old, buffers in before:
            _put_back(attributes, old)
            _put_back(attributes["_buffers"], buffers)


def _is_packed(buffer: torch.Tensor) -> bool:
    """Quantised weights: nothing writes to them, and there may be no memory for another copy."""
    return buffer.ndim > 1 and not buffer.is_floating_point() and buffer.dtype != torch.bool


def _put_back(now: dict[str, Any], before: dict[str, Any]) -> None:
    for name in now.keys() - before.keys():
        del now[name]
    now.update(before)


__all__ = ["aside", "same_random_numbers"]
