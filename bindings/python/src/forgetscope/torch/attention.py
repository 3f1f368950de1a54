"""Attention, as it is seen in a forward pass.

- transformers' attention functions get query, key and mask; they are handed over as they enter the product, and the
  library computes the few rows that it looks at;
- `nn.MultiheadAttention` is asked for its probabilities, which the model does not notice;
- a model that returns `attentions` (as with `output_attentions=True`) has them taken from there.

Of each layer the first attention that runs is looked at: with cross-attention, its self-attention. Masks that are
neither causal nor absent (padding) need whole matrices of probabilities: batches without padding are cheaper. What
sequences that are packed into one may see is not told to hooks: their attention is left out.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from .._abi import Mask
from ..scope import ProbePass
from ..watch import Watch
from .masks import is_unknown, plain_mask, probabilities, visible_keys
from .multihead import probabilities_of
from .pass_batch import PassBatch
from .points import Points
from .projection import Projection
from .sharding import local


class AttentionCapture:
    """Hands over the attention of every layer."""

    def __init__(self, probe: ProbePass, batch: PassBatch, points: Points, watch: Watch) -> None:
        self._probe, self._batch, self._points, self._watch = probe, batch, points, watch

    @contextmanager
    def hooks(self, model: nn.Module) -> Iterator[None]:
        with ExitStack() as stack:
            for module, layer in self._points.attentions.items():
                stack.enter_context(probabilities_of(module, self._seen_by(layer, module)))
            # Without hooks inside, this path of nn.TransformerEncoder would go past them.
            fast = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
            stack.callback(torch.backends.mha.set_fastpath_enabled, fast)
            for interface in _attention_interfaces(model):
                stack.enter_context(self._intercepted(interface))
            yield

    def returned(self, output: Any) -> None:
        """Attention that the model returned by itself."""
        attentions = getattr(output, "attentions", None) or ()
        for layer, returned in zip(sorted(self._points.layers), attentions, strict=False):
            if self._batch.is_begun and isinstance(returned, torch.Tensor) and self._is_first(layer):
                self._given(layer, returned)

    def _is_first(self, layer: int) -> bool:
        return self._batch.is_first("attention", layer)

    def _seen_by(self, layer: int, module: nn.MultiheadAttention) -> Callable[[torch.Tensor, torch.Tensor], None]:
        def seen(output: torch.Tensor, probabilities: torch.Tensor) -> None:
            if probabilities.ndim == 4 and self._is_first(layer):
                self._batch.begin_with(sequences_first(module, output))
                self._given(layer, probabilities)

        return seen

    @contextmanager
    def _intercepted(self, interface: Any) -> Iterator[None]:
        """Puts a function in front of each of transformers' attention functions."""
        mapping = interface._local_mapping
        before = dict(mapping)
        names = [*interface, "eager"]
        try:
            for name in names:
                interface[name] = self._in_front(before.get(name) or interface.get(name))
            yield
        finally:
            mapping.clear()
            mapping.update(before)

    def _in_front(self, function: Callable[..., Any] | None) -> Callable[..., Any]:
        def attention(
            module: nn.Module,
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            mask: Any,
            *rest: Any,
            **kwargs: Any,
        ) -> Any:
            layer = self._points.owners.get(module)
            if layer is not None and self._is_first(layer):
                self._computed(layer, module, query, key, mask, kwargs)
            # Eager attention is in no table: every model has its own.
            original = function or sys.modules[type(module).__module__].eager_attention_forward
            return original(module, query, key, value, mask, *rest, **kwargs)

        return attention

    def _computed(
        self,
        layer: int,
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        mask: Any,
        kwargs: Mapping[str, Any],
    ) -> None:
        """`query` and `key`: [sequences, heads, tokens, width]."""
        if kwargs.get("position_bias") is not None or kwargs.get("s_aux") is not None:
            return  # logits that query and key do not give
        if is_unknown(mask, len(query), kwargs):
            self._watch.say(
                "attention of probes is not measured",
                f"only the attention function of layer {layer} knows what queries see; give batches of sequences that "
                "are not packed, or a model with sdpa or eager attention",
            )
            return
        query, key = local(query), local(key)
        self._batch.begin(query.shape[0], query.shape[2])
        if not self._batch.has("attention", layer, query.shape[0], query.shape[2]):
            return
        scale = kwargs.get("scaling") or query.shape[-1] ** -0.5
        softcap = kwargs.get("softcap") or 0.0
        window = kwargs.get("sliding_window") or 0
        causal = kwargs.get("is_causal")
        causal = getattr(module, "is_causal", True) if causal is None else causal
        visible = visible_keys(mask, query.shape[2], key.shape[2])
        plain = plain_mask(visible, causal, window, query.shape[2], key.shape[2], query.device)
        if plain is None:
            self._given(layer, probabilities(query, key, visible, scale, softcap), window)
            return
        self._probe.attention(
            layer,
            query=query.transpose(1, 2),
            key=key.transpose(1, 2),
            scale=scale,
            softcap=softcap,
            mask=plain,
            window=window if plain == Mask.CAUSAL else 0,
            first_head=self._first_head(layer),
        )

    def _first_head(self, layer: int) -> int:
        """Number of the first head that is here: with tensor parallelism not 0 on every rank."""
        if layer not in self._points.outputs:
            return 0
        found = Projection.of(*self._points.outputs[layer])
        return 0 if found is None else found.first_head

    def _given(self, layer: int, probabilities: torch.Tensor, window: int = 0) -> None:
        """Probabilities, [sequences, heads, queries, keys]. In causal attention early queries see few keys."""
        sequences, _, queries, keys = probabilities.shape
        if not self._batch.has("attention", layer, sequences, queries):
            return
        is_causal = queries == keys > 1 and not bool(probabilities.triu(1).any())
        mask, window = (Mask.CAUSAL, window) if is_causal else (Mask.NONE, 0)
        self._probe.attention(
            layer,
            probabilities=probabilities.contiguous(),
            mask=mask,
            window=window,
            first_head=self._first_head(layer),
        )


def _attention_interfaces(model: nn.Module) -> list[Any]:
    """The tables of attention functions that the modules of a model look in."""
    found = {}
    for module in model.modules():
        source = sys.modules.get(type(module).__module__)
        interface = getattr(source, "ALL_ATTENTION_FUNCTIONS", None)
        if hasattr(interface, "_local_mapping"):
            found[id(interface)] = interface
    return list(found.values())


def sequences_first(module: nn.Module, states: torch.Tensor) -> torch.Tensor:
    """[sequences, tokens, width], also where PyTorch's own layers have tokens first."""
    attention = module if isinstance(module, nn.MultiheadAttention) else getattr(module, "self_attn", None)
    is_tokens_first = isinstance(attention, nn.MultiheadAttention) and not attention.batch_first
    return states.transpose(0, 1) if is_tokens_first and states.ndim == 3 else states


__all__ = ["AttentionCapture", "sequences_first"]
