"""Work beside training: forward and backward passes that leave no trace in it.

Gradients, random numbers (PyTorch on host and devices, NumPy, Python) and the mode of every module are put back, so
that training goes on bit by bit as if nothing had happened. Compiled code is left alone: passes run eagerly.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import nn

from .sharding import reshard


@contextmanager
def aside(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Evaluation mode, and everything is as it was afterwards. Gives the model's parameters, without gradients."""
    parameters = list(model.parameters())
    gradients = [parameter.grad for parameter in parameters]
    modes = [(module, module.training) for module in model.modules()]
    with ExitStack() as stack:
        stack.enter_context(same_random_numbers(model))
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
            for module, mode in modes:
                module.training = mode
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient


@contextmanager
def same_random_numbers(model: nn.Module) -> Iterator[None]:
    """Whatever is drawn inside is drawn again afterwards."""
    devices = sorted({parameter.device.index or 0 for parameter in model.parameters() if parameter.is_cuda})
    legacy, python = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        np.random.set_state(legacy)
        random.setstate(python)
