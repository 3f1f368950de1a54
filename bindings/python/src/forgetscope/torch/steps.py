"""The life of a step, by hooks of the optimizer: gradients are final just before `optimizer.step()` and the update is
made just after it.

With a closure (LBFGS, Lightning) gradients are final when it has been evaluated for the first time, so it is that
moment that is measured. Several optimizers make one step: it begins with the first of them and ends when each had its
turn, or one has its second.

Costs about 2 µs for a step that is not sampled (`make bench-python`). Nothing here raises: what fails is said once, and
training goes on.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..scope import Scope
from ..watch import Watch
from .bindings import Bindings
from .loss_scale import LossScale

_UNIT = LossScale(None)


class StepHooks:
    """Hooks on optimizers, until `remove`."""

    def __init__(
        self,
        scope: Scope,
        bindings: Bindings,
        optimizers: Sequence[torch.optim.Optimizer],
        stream: Callable[[], int | None],
        watch: Watch,
        loss_scale: LossScale = _UNIT,
    ) -> None:
        self.step = 0
        """Number of the next step."""
        self._scope, self._bindings, self._stream, self._watch = scope, bindings, stream, watch
        self._loss_scale = loss_scale
        self._raw = scope.raw
        self._sampled = ctypes.c_int32()
        self._sampled_pointer = ctypes.byref(self._sampled)
        self._waiting: set[int] = set()
        self._after: list[Callable[[int], None]] = []
        self._is_open = self._is_given_up = False
        self._optimizers = list(optimizers)
        self._hooks = [
            hook
            for optimizer in optimizers
            for hook in (optimizer.register_step_pre_hook(self._before), optimizer.register_step_post_hook(self._done))
        ]

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def after_step(self, call: Callable[[int], None]) -> None:
        """Calls `call(step)` after every step, outside of it."""
        self._after.append(call)

    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            self._begin(optimizer)
            return None
        measured = self._measured(optimizer, closure)
        return ((args[0], measured, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": measured})

    def _measured(self, optimizer: torch.optim.Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure, with the beginning of the step after its first evaluation."""
        is_first = True

        @functools.wraps(closure)
        def evaluated() -> Any:
            nonlocal is_first
            result = closure()
            if is_first:
                is_first = False
                self._begin(optimizer)
            return result

        return evaluated

    def _begin(self, optimizer: torch.optim.Optimizer) -> None:
        if self._is_open:
            if id(optimizer) in self._waiting:
                return
            # Its second turn: the others have none in this step.
            self._end()
        try:
            self._ready(optimizer)
            self._is_given_up = False
        except Exception as error:
            # What is bound may be out of date: the library gives the step up when the next one begins.
            self._is_given_up = True
            self._watch.say("a step was not measured", str(error))
        self._is_open = True
        self._waiting = {id(other) for other in self._optimizers}

    def _ready(self, optimizer: torch.optim.Optimizer) -> None:
        raw, handle, stream = self._raw, self._scope.handle, self._stream()
        raw.fgs_step_begin(handle, self.step)
        raw.fgs_step_sampled(handle, self._sampled_pointer)
        scale = self._loss_scale.factor(optimizer)
        if self._sampled.value:
            self._bindings.update_parameters()
            self._bindings.update_gradients()
        self._check(raw.fgs_gradients_ready(handle, scale, 0, stream))

    def _done(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if not self._is_open:
            return
        self._waiting.discard(id(optimizer))
        if not self._waiting:
            self._end()

    def _end(self) -> None:
        self._is_open = False
        # A fused optimizer that skips its update does so on the device: the update is then of length zero, and the
        # gradients are flagged as not finite. Nobody has to wait for the answer.
        if not self._is_given_up:
            self._check(self._raw.fgs_step_end(self._scope.handle, self._is_readable(), self._stream()))
        step, self.step = self.step, self.step + 1
        for call in self._after:
            try:
                call(step)
            except Exception as error:
                self._watch.say(f"what was to be done after step {step}", str(error))

    def _is_readable(self) -> bool:
        """Whether parameters can be read after the update: an optimizer may have given them other memory in it."""
        if self._sampled.value:
            try:
                self._bindings.update_parameters()
            except Exception as error:
                self._watch.say("an update was not measured", str(error))
                return False
        return True

    def _check(self, status: int) -> None:
        if status < 0:
            self._watch.say("a step was not measured", self._raw.fgs_last_error().decode())
