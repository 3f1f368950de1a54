"""What gradients still have to be multiplied by when `optimizer.step()` is called: the rest of a loss scale.

`GradScaler.step` unscales the gradients before it calls the optimizer, so there is nothing left to do, except for fused
optimizers (`fused=True`): they unscale inside their kernel, and the scale is a tensor on the device. Waiting for it
would make the trainer wait, so it is copied to the host in the order of the stream and the latest copy that has
arrived is used: in the few steps after the scale changes, sizes of gradients may be off by that factor (2 by default).
Directions and updates are not, and `scaler.unscale_(optimizer)` before the step, as for clipping, makes everything
exact.
"""

from __future__ import annotations

from typing import Any

import torch


class LossScale:
    """The factor of each step. `scaler`: the GradScaler that is used, for the scale before the first step."""

    def __init__(self, scaler: Any) -> None:
        self._known = float(scaler.get_scale()) if scaler is not None and scaler.is_enabled() else 1.0
        self._copy: torch.Tensor | None = None
        self._arrived: torch.cuda.Event | None = None

    def factor(self, optimizer: torch.optim.Optimizer) -> float:
        scale = getattr(optimizer, "grad_scale", None)
        if scale is None:
            return 1.0
        if not isinstance(scale, torch.Tensor):
            return 1.0 / float(scale)
        if not scale.is_cuda:
            return 1.0 / scale.item()
        if self._copy is None or self._arrived is None:
            self._copy, self._arrived = torch.empty(1, pin_memory=True), torch.cuda.Event()
        elif self._arrived.query():
            self._known = self._copy.item()
        else:
            # The last copy is on its way.
            return 1.0 / self._known
        self._copy.copy_(scale.detach().reshape(1), non_blocking=True)
        self._arrived.record()
        return 1.0 / self._known
