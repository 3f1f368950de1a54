"""What appears in a forward pass, taken by hooks that are there during the pass only.

Hidden states behind every layer, what heads put out (the input of the output projection), logits of routers, and
attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeGuard

import torch
from torch import nn

from ..scope import ProbePass
from ..watch import Watch
from .attention import AttentionCapture, sequences_first
from .pass_batch import PassBatch
from .points import Points
from .projection import Projection, router_logits
from .sharding import is_sharded, local


class Capture:
    """The hooks of one pass."""

    def __init__(self, probe: ProbePass, points: Points, watch: Watch) -> None:
        self._probe, self._points = probe, points
        self._batch = PassBatch(probe, watch)
        self._attention = AttentionCapture(probe, self._batch, points, watch)

    def new_batch(self, labels: Any) -> None:
        self._batch.new(labels)

    def returned(self, output: Any) -> None:
        """What the model has put out for the batch."""
        self._attention.returned(output)

    @contextmanager
    def hooks(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for layer, module in self._points.layers.items():
                stack.callback(module.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(self._hidden(layer)).remove)
            for layer, (module, heads) in self._points.outputs.items():
                stack.callback(module.register_forward_pre_hook(self._head_output(layer, heads)).remove)
            for layer, (module, top_k) in self._points.routers.items():
                stack.callback(module.register_forward_hook(self._router(layer, top_k)).remove)
            stack.enter_context(self._attention.hooks(model))
            yield

    def _enter(self, module: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
        """Attention within a layer may be cut into windows: what goes into the layer shows the batch's tokens."""
        states = inputs[0] if inputs else named.get("hidden_states")
        if _is_of_tokens(states) and states.ndim == 3:
            self._batch.begin_with(sequences_first(module, states))

    def _hidden(self, layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            if not _is_of_tokens(states) or not self._batch.is_first("hidden", layer):
                return
            states = sequences_first(module, states)
            self._batch.begin_with(states)
            if self._batch.has_states("hidden states", layer, states):
                self._probe.hidden(layer, states)

        return hook

    def _head_output(self, layer: int, heads: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            if not inputs or inputs[0].ndim not in (2, 3) or not self._batch.is_first("head_output", layer):
                return
            outputs, found = local(inputs[0]), Projection.of(module, heads)
            if outputs.ndim == 3:
                self._batch.begin_with(outputs)
            if found is None or outputs.shape[-1] != found.matrix.shape[1]:
                return
            if self._batch.has_states("outputs of heads", layer, outputs):
                self._probe.head_output(
                    layer,
                    found.heads,
                    outputs.contiguous(),
                    projection=found.matrix,
                    first_head=found.first_head,
                )

        return hook

    def _router(self, layer: int, top_k: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            logits = router_logits(module, inputs, output)
            if logits is None or logits.ndim not in (2, 3) or not self._batch.is_first("router", layer):
                return
            if self._batch.has_states("logits of routers", layer, logits):
                self._probe.router(layer, logits.contiguous(), top_k)

        return hook


def _is_of_tokens(states: Any) -> TypeGuard[torch.Tensor]:
    return isinstance(states, torch.Tensor) and not is_sharded(states) and states.ndim in (2, 3)


__all__ = ["Capture"]
