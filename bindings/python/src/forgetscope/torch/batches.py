"""A batch on its way into a model: as keyword arguments if it is a mapping, else as the only argument."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def forward_of(model: nn.Module, batch: Any) -> Any:
    """What the model makes of a batch, wherever that lies."""
    batch = on_device(batch, model)
    return model(**batch) if isinstance(batch, Mapping) else model(batch)


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


__all__ = ["forward_of", "on_device"]
