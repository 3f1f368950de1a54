"""The life of a step, by hooks of the optimizer: gradients are final just before `optimizer.step()` and the update is
made just after it.

With a closure (LBFGS, Lightning) gradients are final when it has been evaluated for the first time, so it is that
moment that is measured. Several optimizers make one step: it begins with the first of them, which is when the gradients
of all have to be final, and ends when each had its turn, or one has its second. An optimizer that raises leaves its
step open: it is ended as one without an update as soon as anything else begins.

Costs about 4 µs for a step that is not sampled (`make bench-python`). Nothing here raises: what fails is said once, and
training goes on.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch

from ..scope import Scope
from ..watch import Watch
from .bindings import Bindings
from .loss_scale import LossScale

_UNIT = LossScale(None)
# Where the calls of the hooks are.
_HOOKED = torch.optim.Optimizer.profile_hook_step.__code__.co_filename


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
        # How many calls of `step()` each optimizer is in: more than one where a class calls that of its base.
        self._calls: dict[int, int] = {}
        # Of the step that is open: optimizers that had no turn yet, and those that have begun theirs.
        self._waiting: set[int] = set()
        self._running: set[int] = set()
        self._after: list[Callable[[int], None]] = []
        self._is_open = self._is_given_up = False
        self._ids = {id(optimizer) for optimizer in optimizers}
        # What stands in compiled code breaks the graph instead of being traced into it.
        self._before_in_graph, self._done_in_graph = map(torch.compiler.disable, (self._on_before, self._on_done))
        self._hooks = [
            hook
            for optimizer in optimizers
            for hook in (optimizer.register_step_pre_hook(self._before), optimizer.register_step_post_hook(self._done))
        ]

    def remove(self) -> None:
        self.settle()
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def after_step(self, call: Callable[[int], None]) -> None:
        """Calls `call(step)` after every step, outside of it."""
        self._after.append(call)

    def settle(self) -> None:
        """Between steps: ends one that an exception, or an optimizer without a turn, has left open."""
        if self._is_open:
            self._end()

    def _before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        # Asking costs a tenth of the call that is never traced.
        call = self._before_in_graph if torch.compiler.is_dynamo_compiling() else self._on_before
        return call(optimizer, args, kwargs)

    def _done(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        call = self._done_in_graph if torch.compiler.is_dynamo_compiling() else self._on_done
        call(optimizer)

    def _on_before(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Any:
        key = id(optimizer)
        if key in self._calls:
            if _is_within_its_own_step(optimizer):
                self._calls[key] += 1
                return None
            if key in self._running:
                # Its last step has raised.
                self._end()
        self._calls[key] = 1
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
        key = id(optimizer)
        if self._is_open and key not in self._waiting:
            # Its second turn: the others have none in this step.
            self._end()
        if not self._is_open:
            self._is_open, self._is_given_up = True, False
            self._waiting = self._ids.copy()
            try:
                self._ready(optimizer)
            except Exception as error:
                # What is bound may be out of date, and must not be read.
                self._is_given_up = True
                self._watch.say("a step was not measured", str(error))
        self._running.add(key)

    def _ready(self, optimizer: torch.optim.Optimizer) -> None:
        raw, handle, stream = self._raw, self._scope.handle, self._stream()
        raw.fgs_step_begin(handle, self.step)
        raw.fgs_step_sampled(handle, self._sampled_pointer)
        scale = self._loss_scale.factor(optimizer)
        if self._sampled.value:
            self._bindings.update_parameters()
            self._bindings.update_gradients()
        self._check(raw.fgs_gradients_ready(handle, scale, 0, stream))

    def _on_done(self, optimizer: torch.optim.Optimizer) -> None:
        key = id(optimizer)
        calls = self._calls.pop(key, 1) - 1
        if calls:
            self._calls[key] = calls
        elif self._is_open:
            self._waiting.discard(key)
            self._running.discard(key)
            if not self._waiting:
                self._end()

    def _end(self) -> None:
        # An optimizer that is still running has raised: nobody knows how far its update came.
        is_complete = not self._running
        # A fused optimizer that skips its update does so on the device: the update is then of length zero, and the
        # gradients are flagged as not finite. Nobody has to wait for the answer.
        applied = is_complete and not self._is_given_up and self._is_readable()
        self._is_open = False
        self._running.clear()
        self._check(self._raw.fgs_step_end(self._scope.handle, applied, self._stream()))
        step, self.step = self.step, self.step + 1
        if not is_complete:
            return
        for call in self._after:
            try:
                call(step)
            except Exception as error:
                self._watch.say("what was to be done after a step", f"after step {step}: {error}")

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


def _is_within_its_own_step(optimizer: torch.optim.Optimizer) -> bool:
    """Whether `step()` was called by `step()`: PyTorch calls hooks in both of them. The other way to be called twice
    without an end is an exception, which leaves no trace but that the first call is not on the stack any more."""
    calls = 0
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        calls += frame.f_code.co_filename == _HOOKED and frame.f_locals.get("self") is optimizer
        frame = frame.f_back
    return calls > 1
